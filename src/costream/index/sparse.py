"""An inverted index: items as weights of words, found by the words of the query, with reasons.

For each word it holds the items that have it and their weights, so that a search touches only the
words of the query. Scores are those of the dot product of the whole vectors, to the bit of a sum in
float64.

Shape letters: Q queries, N items, V words of the vocabulary, K words of one item.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError
from costream.index.check import check_same, encoded_id
from costream.records import Ranking, Space

Weights = NDArray[np.float32]

_FILE = "sparse.npz"
_FORMAT = "costream-sparse-1"
_DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseStats:
    """Size of an inverted index.

    Attributes:
        num_items: Items.
        num_entries: Weights that are held.
        num_words: Words that some item has.
        space: Where the vectors live.
    """

    num_items: int
    num_entries: int
    num_words: int
    space: Space


@dataclass(frozen=True, slots=True)
class _Row:
    """What one item weighs: words (K,) rising, and weights (K,), none of them 0."""

    words: NDArray[np.int64]
    weights: Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Postings:
    """Entries word by word: those of word v are from `starts[v]` to `starts[v + 1]`."""

    ids: tuple[str, ...]
    starts: NDArray[np.int64]
    items: NDArray[np.int64]
    weights: Weights


class SparseIndex:
    """Items with a weight for each of a few words.

    Args:
        space: Where vectors live; of kind `sparse`, `dim` words.
        words: What they are called, for explanations; `dim` of them, or none.

    Raises:
        ConfigError: The space is of another kind, or there is another number of words.

    Example:
        >>> space = Space(
        ...     encoder="toy", weights_hash="", preprocessing_hash="", dim=3, kind="sparse"
        ... )
        >>> index = SparseIndex(space, words=("dog", "snow", "car"))
        >>> index.add(["a", "b"], np.float32([[0.8, 0.6, 0], [0, 0, 1]]), space)
        >>> asked = np.float32([[1, 1, 0]])
        >>> index.search(asked, space, top=5).ids
        (('a',),)
        >>> [word for word, _ in index.explain(asked[0], "a")]
        ['dog', 'snow']
    """

    def __init__(self, space: Space, words: Sequence[str] = ()) -> None:
        if space.kind != "sparse":
            raise ConfigError(f"got a space of {space.kind} vectors, expected sparse ones")
        if words and len(words) != space.dim:
            raise ConfigError(f"got {len(words)} words, expected one for each of {space.dim}")
        self.space = space
        self.words = tuple(words)
        self._rows: dict[str, _Row] = {}
        self._postings: _Postings | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[str]:
        """Every id, in the order of their UTF-8 bytes."""
        return sorted(self._rows, key=encoded_id)

    def stats(self) -> SparseStats:
        """Size and origin."""
        postings = self._compiled()
        return SparseStats(
            num_items=len(self),
            num_entries=len(postings.items),
            num_words=int((np.diff(postings.starts) > 0).sum()),
            space=self.space,
        )

    # --- changes ---

    def add(self, ids: Sequence[str], vectors: NDArray[Any], space: Space) -> None:
        """Add items, or replace those with the same ids; all or none.

        Args:
            ids: Each once.
            vectors: Floating point (N, V); what is 0 is not stored.
            space: That of the index.

        Raises:
            SpaceMismatch: The space is another one.
            DataError: The arrays do not fit each other, or an id comes twice.
            NumericalError: A weight is not finite, or an item has none.
        """
        check_same(self.space, space, "in memory")
        vectors_NV = self._checked(vectors, len(ids))
        if len(set(ids)) < len(ids):
            raise DataError("got an id twice, expected each once")
        rows = {}
        for item_id, vector in zip(ids, vectors_NV, strict=True):
            words = np.flatnonzero(vector)
            if not len(words):
                raise NumericalError(f"item {item_id!r} has no word with a weight")
            rows[item_id] = _Row(words, vector[words].astype(np.float32))
        self._rows |= rows
        self._postings = None

    def remove(self, ids: Iterable[str]) -> int:
        """Remove items; ids that are not there are ignored. Gives how many were there."""
        gone = [item_id for item_id in set(ids) if self._rows.pop(item_id, None) is not None]
        self._postings = None if gone else self._postings
        return len(gone)

    # --- questions ---

    def search(self, vectors: NDArray[Any], space: Space, top: int) -> Ranking:
        """The best items that share a word with the query.

        Args:
            vectors: Floating point (Q, V); a bag of words is one of zeros and ones.
            space: That of the index.
            top: How many are wanted, at least 1.

        Returns:
            Equal scores in the order of the ids' UTF-8 bytes.

        Raises:
            SpaceMismatch: The space is another one.
            DataError: The array has another form.
            NumericalError: A weight is not finite.
            ConfigError: `top` is below 1.
        """
        check_same(self.space, space, "in memory")
        if top < 1:
            raise ConfigError(f"got top={top}, expected at least 1")
        found = [self._best(vector, top) for vector in self._checked(vectors, None)]
        return Ranking(
            ids=tuple(ids for ids, _ in found),
            scores=tuple(scores for _, scores in found),
            kernel="inverted",
        )

    def explain(self, vector: NDArray[Any], item_id: str) -> list[tuple[str, float]]:
        """Why an item has its score: its words in the query, the greatest share first.

        Args:
            vector: The query, floating point (V,).
            item_id: Of the item.

        Returns:
            Word (its number where words have no names) and product of the two weights; the sum is
            the score.

        Raises:
            DataError: There is no such item.
        """
        if item_id not in self._rows:
            raise DataError(f"item {item_id!r} is not in the index")
        (asked,) = self._checked(np.asarray(vector)[None], None)
        row = self._rows[item_id]
        products = asked[row.words].astype(np.float64) * row.weights
        order = np.lexsort((row.words, -products))
        return [
            (self.words[row.words[at]] if self.words else str(row.words[at]), float(products[at]))
            for at in order
            if products[at]
        ]

    def _best(self, vector: Weights, top: int) -> tuple[tuple[str, ...], Weights]:
        postings = self._compiled()
        scores = np.zeros(len(postings.ids))
        is_met = np.zeros(len(postings.ids), dtype=np.bool_)
        for word in np.flatnonzero(vector):
            some = slice(postings.starts[word], postings.starts[word + 1])
            # An item comes once under a word, so that no sum is lost.
            scores[postings.items[some]] += float(vector[word]) * postings.weights[some]
            is_met[postings.items[some]] = True
        met = np.flatnonzero(is_met)
        order = met[np.argsort(-scores[met], kind="stable")][:top]
        ids = tuple(postings.ids[number] for number in order)
        return ids, scores[order].astype(np.float32)

    def _compiled(self) -> _Postings:
        if self._postings is None:
            ids = tuple(self.ids())
            rows = [self._rows[item_id] for item_id in ids]
            words = np.concatenate([np.zeros(0, np.int64), *(row.words for row in rows)])
            weights = np.concatenate([np.zeros(0, np.float32), *(row.weights for row in rows)])
            items = np.repeat(np.arange(len(ids)), [len(row.words) for row in rows])
            order = np.argsort(words, kind="stable")
            counts = np.bincount(words, minlength=self.space.dim)
            starts = np.concatenate([[0], np.cumsum(counts)])
            self._postings = _Postings(ids, starts, items[order], weights[order])
        return self._postings

    def _checked(self, vectors: NDArray[Any], count: int | None) -> Weights:
        vectors = np.asarray(vectors)
        fits = vectors.ndim == 2 and vectors.dtype.kind == "f"
        if not fits or vectors.shape != (len(vectors) if count is None else count, self.space.dim):
            raise DataError(
                f"got vectors of type {vectors.dtype} and shape {vectors.shape}, expected floating "
                f"point ({'Q' if count is None else count}, {self.space.dim})"
            )
        if not np.isfinite(vectors).all():
            raise NumericalError("got a weight that is not finite; nothing was done")
        return vectors.astype(np.float32)

    # --- files ---

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write it to a folder, in one step.

        Args:
            directory: Made if absent.

        Returns:
            The file.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        ids = self.ids()
        rows = [self._rows[item_id] for item_id in ids]
        about = {"format": _FORMAT, "space": asdict(self.space), "words": self.words, "ids": ids}
        working = folder / f".{_FILE}.{os.getpid()}.part"
        with working.open("wb") as file:
            np.savez(
                file,
                about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
                counts=np.array([len(row.words) for row in rows], np.int64),
                words=np.concatenate([np.zeros(0, np.int64), *(row.words for row in rows)]),
                weights=np.concatenate([np.zeros(0, np.float32), *(row.weights for row in rows)]),
            )
            file.flush()
            os.fsync(file.fileno())
        return working.replace(folder / _FILE)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> SparseIndex:
        """Read what `save` wrote.

        Args:
            directory: Where to.

        Returns:
            The index.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = Path(directory) / _FILE
        try:
            with np.load(path, allow_pickle=False) as file:
                stored = {name: file[name] for name in ("about", "counts", "words", "weights")}
            about = json.loads(stored["about"].tobytes())
            index = cls(Space(**about["space"]), about["words"])
            index._fill(about, stored)
        except FileNotFoundError:
            raise DataError(f"there is no {path}", hint="save() writes one") from None
        except (*_DAMAGES, ConfigError) as error:
            raise DataError(f"{path} is damaged ({error})", hint="make it again") from error
        return index

    def _fill(self, about: Mapping[str, Any], stored: Mapping[str, NDArray[Any]]) -> None:
        stops = np.cumsum(stored["counts"])
        words, weights = stored["words"], stored["weights"]
        total = int(stops[-1]) if len(stops) else 0
        if about["format"] != _FORMAT or not len(words) == len(weights) == total:
            raise ValueError("its parts do not fit each other")
        if total and not (0 <= words.min() and words.max() < self.space.dim):
            raise ValueError("it has words that its vocabulary has not")
        parts = (np.split(words, stops[:-1]), np.split(weights, stops[:-1]))
        for item_id, some, its in zip(about["ids"], *parts, strict=True):
            self._rows[item_id] = _Row(some, its)
