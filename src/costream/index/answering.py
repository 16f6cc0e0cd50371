"""Questions to an index: conditions, vectors and words, answered as rankings.

Shape letters: Q queries, N rows, R results.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from costream.index import best, conditions, rows, vector_rows, words
from costream.index.check import encoded_id
from costream.index.filters import Filter
from costream.index.resident import Resident
from costream.index.schema import DamageError, SpaceRow, State
from costream.records import Ranking

# From a share of 1 / this of all items on, reading every id beats looking them up one by one.
_MANY = 20
_FILTERS_KEPT = 8
_IDS_KEPT = 200_000
_SCORE = attrgetter("score")


@dataclass(slots=True)
class Answers:
    """What was found out about one state of an index and is likely to be asked again.

    Attributes:
        token: The state.
    """

    token: bytes = b""
    _keys: list[tuple[str, NDArray[np.int64]]] = field(default_factory=list)
    _ids: dict[int, str] = field(default_factory=dict)

    def keys(
        self, connection: sqlite3.Connection, state: State, where: Filter | None
    ) -> NDArray[np.int64] | None:
        """Keys of the items for which a filter holds; None for all items."""
        if where is None or where.is_empty:
            return None
        self._begin(state)
        name = repr(where)  # tells values of different types apart, unlike ==
        for known, keys in self._keys:
            if known == name:
                return keys
        condition, values = conditions.condition(connection, where)
        query = f"SELECT key FROM items WHERE {condition}"  # noqa: S608  # values are bound
        found = connection.execute(query, values)
        keys = np.fromiter((key for (key,) in found), dtype=np.int64)
        self._keys = [*self._keys[1 - _FILTERS_KEPT :], (name, keys)]
        return keys

    def names(
        self, connection: sqlite3.Connection, state: State, keys: Iterable[int]
    ) -> dict[int, str]:
        """Ids of items by key.

        Raises:
            DamageError: An item is not there or not what was written.
        """
        self._begin(state)
        wanted = set(keys)
        # Not by a difference of sets, which would go through all that are known.
        missing = {key for key in wanted if key not in self._ids}
        if len(missing) * _MANY > state.num_items:
            self._ids = {key: item.id for key, item in rows.select_all(connection, state)}
        elif missing:
            if len(self._ids) > _IDS_KEPT:
                self._ids, missing = {}, wanted
            found = rows.select(connection, "key", missing)
            self._ids.update((key, item.id) for key, item in found)
        if any(key not in self._ids for key in wanted):
            raise DamageError("an item that was found is not there")
        return self._ids

    def forget(self) -> None:
        """Give the memory back."""
        self.token, self._keys, self._ids = b"", [], {}

    def _begin(self, state: State) -> None:
        if self.token != state.token:
            self.token, self._keys, self._ids = state.token, [], {}


class Hit(NamedTuple):
    """One vector, or one item, that may be in an answer.

    Attributes:
        score: Higher is better.
        key: Of the item.
        part: Number of the vector within the item.
    """

    score: float
    key: int
    part: int = 0


def by_vectors(
    resident: Resident,
    queries: NDArray[Any],
    top: int,
    allowed: NDArray[np.bool_] | None,
    *,
    group: bool,
) -> list[list[Hit]]:
    """What may be in the answer to each query, best first.

    Args:
        resident: The vectors.
        queries: Floating point (Q, D).
        top: How many are wanted.
        allowed: bool (N,), which rows may be found; None for all.
        group: Whether of an item only the best moment is a result.
    """
    group = group and resident.entry.num_vectors > resident.entry.num_items
    keys_N = vector_rows.keys_of(resident.places) if group else None
    results = []
    for rows_R, scores_R in best.candidates(resident.kernel(), queries, top, allowed, keys_N):
        places = resident.places[rows_R]
        parts = vector_rows.parts_of(places)
        order = np.lexsort((parts, -scores_R))
        keys = vector_rows.keys_of(places)
        if group:
            _, firsts = np.unique(keys[order], return_index=True)
            order = order[np.sort(firsts)]
        columns = (scores_R[order].tolist(), keys[order].tolist(), parts[order].tolist())
        results.append([Hit._make(row) for row in zip(*columns, strict=True)])
    return results


def by_words(
    connection: sqlite3.Connection,
    text: str,
    top: int,
    where: Filter | None,
) -> list[Hit]:
    """What may be in the answer to a question in words, best first.

    Args:
        connection: In a transaction.
        text: The question.
        top: How many are wanted.
        where: Conditions on the items.
    """
    asked = words.question(text)
    if asked is None:
        return []
    condition = None if where is None else conditions.condition(connection, where)
    count = top + 1
    while True:
        keys, scores = words.search(connection, asked, count, condition)
        cut = best.cut(np.array(keys, np.int64), np.array(scores, np.float32), top)
        if cut is not None or len(keys) < count:
            return [Hit(s, k) for s, k in zip(scores[:cut], keys[:cut], strict=True)]
        count *= 4


def ranking(
    connection: sqlite3.Connection,
    entry: SpaceRow | None,
    hits: Sequence[Sequence[Hit]],
    names: dict[int, str],
    top: int,
) -> Ranking:
    """Hits as the best so many of each query, equal scores in the order of ids.

    Raises:
        DamageError: A vector is not there or not what was written.
    """
    sorted_hits = [_sorted(some, names)[:top] for some in hits]
    spans: list[tuple[tuple[float, float] | None, ...]] = []
    if entry is not None and entry.num_spans:
        for some in sorted_hits:
            places = [vector_rows.place_of(entry.number, hit.key, hit.part) for hit in some]
            stored = vector_rows.select_places(connection, entry, places)
            spans.append(tuple(one.span for one in stored))
    return Ranking(
        ids=tuple(tuple(names[hit.key] for hit in some) for some in sorted_hits),
        scores=tuple(np.array([hit.score for hit in some], np.float32) for some in sorted_hits),
        spans=tuple(spans) if any(any(some) for some in spans) else (),
    )


def _sorted(hits: Sequence[Hit], names: dict[int, str]) -> list[Hit]:
    """Best first; equal scores, which are few among vectors, in the order of ids and parts."""

    def place(hit: Hit) -> tuple[bytes, int]:
        return encoded_id(names[hit.key]), hit.part

    found: list[Hit] = []
    for _, equal in groupby(sorted(hits, key=_SCORE, reverse=True), _SCORE):
        first, *more = equal
        found += sorted([first, *more], key=place) if more else [first]
    return found
