"""What is relevant to what, by position: the form of truth that the ranking function takes.

Shape letters: Q queries, G items of the gallery.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costream.errors import DataError
from costream.records import Qrels

Positions = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """Relevant and excluded items of each query, as positions in the gallery.

    Attributes:
        relevant: For each query the positions of its relevant items, at least one, each once.
        num_items: Size of the gallery.
        excluded: For each query positions that are not ranked at all (the query's own picture,
            say); None where nothing is excluded.

    Raises:
        DataError: When a query has no relevant item, a position is outside the gallery or named
            twice, or a relevant item is also excluded.

    Example:
        >>> truth = Truth(relevant=[np.array([0, 1]), np.array([2])], num_items=3)
        >>> truth.num_queries
        2
    """

    relevant: Sequence[Positions]
    num_items: int
    excluded: Sequence[Positions] | None = None

    def __post_init__(self) -> None:
        for query, positions in enumerate(self.relevant):
            if len(positions) == 0:
                raise DataError(
                    f"query {query} has no relevant item, expected at least one",
                    hint="leave out queries without a truth: no metric is defined for them",
                )
            self._check_positions(query, positions, "relevant")
        if self.excluded is None:
            return
        if len(self.excluded) != len(self.relevant):
            raise DataError(
                f"got exclusions for {len(self.excluded)} queries, expected {len(self.relevant)}",
                hint="give one (possibly empty) array a query",
            )
        for query, positions in enumerate(self.excluded):
            self._check_positions(query, positions, "excluded")
            both = np.intersect1d(positions, self.relevant[query])
            if len(both):
                raise DataError(
                    f"item {int(both[0])} of query {query} is both relevant and excluded",
                    hint="exclude only items that must not count",
                )

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return len(self.relevant)

    def _check_positions(self, query: int, positions: Positions, what: str) -> None:
        outside = positions[(positions < 0) | (positions >= self.num_items)]
        if len(outside):
            raise DataError(
                f"{what} item {int(outside[0])} of query {query} is outside the gallery, "
                f"expected 0 to {self.num_items - 1}",
                hint="positions count from 0 in the order of the gallery",
            )
        if len(np.unique(positions)) != len(positions):
            raise DataError(
                f"query {query} names one {what} item twice",
                hint="name each position once",
            )


def truth_from_groups(
    query_groups: Sequence[Hashable] | NDArray[np.int64],
    item_groups: Sequence[Hashable] | NDArray[np.int64],
) -> Truth:
    """Truth where an item is relevant to the queries of its own group.

    Args:
        query_groups: Group of each query, length Q.
        item_groups: Group of each item, length G.

    Returns:
        The truth by position.

    Raises:
        DataError: When a query's group has no item.

    Example:
        >>> truth_from_groups(["cat", "dog"], ["dog", "cat", "dog"]).relevant
        (array([1]), array([0, 2]))
    """
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(_plain(item_groups)):
        members.setdefault(group, []).append(position)
    positions = {group: np.array(found, dtype=np.int64) for group, found in members.items()}
    relevant: list[Positions] = []
    for query, group in enumerate(_plain(query_groups)):
        if group not in positions:
            raise DataError(
                f"query {query} is of group {group!r}, which no item of the gallery has",
                hint="leave the query out, or add its match to the gallery",
            )
        relevant.append(positions[group])
    return Truth(relevant=tuple(relevant), num_items=len(item_groups))


def truth_from_qrels(qrels: Qrels, query_ids: Sequence[str], item_ids: Sequence[str]) -> Truth:
    """Truth by position from truth by id; a grade above 0 is relevant.

    Exclusions are exactly those of `qrels.exclude`: an item whose id equals the query's id is
    ranked like any other.

    Args:
        qrels: The truth by id.
        query_ids: Ids of the queries in the order of the score rows.
        item_ids: Ids of the gallery in the order of the score columns, each once.

    Returns:
        The truth by position.

    Raises:
        DataError: When an id of the gallery is repeated, a query is not in `qrels`, or a relevant
            or excluded id is not in the gallery.

    Example:
        >>> qrels = Qrels(grades={"q": {"b": 1.0, "a": 0.0}})
        >>> truth_from_qrels(qrels, ["q"], ["a", "b"]).relevant
        (array([1]),)
    """
    position = {item: number for number, item in enumerate(item_ids)}
    if len(position) != len(item_ids):
        raise DataError(
            f"the gallery has {len(item_ids)} items but {len(position)} different ids",
            hint="give every item its own id",
        )
    relevant: list[Positions] = []
    excluded: list[Positions] = []
    for query in query_ids:
        if query not in qrels.grades:
            raise DataError(
                f"query {query!r} is not in the truth, which has {len(qrels.grades)} queries "
                f"like {next(iter(qrels.grades), None)!r}",
                hint="rename the queries, or leave this one out",
            )
        grades = qrels.grades[query]
        wanted = [item for item, grade in grades.items() if grade > 0]
        relevant.append(_positions(wanted, position, query))
        excluded.append(_positions(sorted(qrels.exclude.get(query, ())), position, query))
    return Truth(
        relevant=tuple(relevant),
        num_items=len(item_ids),
        excluded=tuple(excluded) if any(len(each) for each in excluded) else None,
    )


def _plain(groups: Sequence[Hashable] | NDArray[np.int64]) -> Sequence[Hashable]:
    if isinstance(groups, np.ndarray):
        listed: list[Hashable] = groups.tolist()
        return listed
    return groups


def _positions(items: Sequence[str], position: dict[str, int], query: str) -> Positions:
    absent = [item for item in items if item not in position]
    if absent:
        raise DataError(
            f"the truth of query {query!r} names item {absent[0]!r}, which the gallery does not "
            f"have ({len(position)} ids like {next(iter(position), None)!r})",
            hint="rename the items, or add what is missing",
        )
    return np.array([position[item] for item in items], dtype=np.int64)
