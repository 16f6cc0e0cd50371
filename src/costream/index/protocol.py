"""What every index can do, wherever it keeps its vectors.

Shape letters: Q queries, N items, M vectors of moments, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from costream.index.filters import Filter
from costream.index.records import IndexStats, Item, Moment, SpaceEntry
from costream.records import Ranking, Space


class SearchIndex(Protocol):
    """Items with one vector or several each, durable, found by vectors, words and conditions.

    What a change has returned from survives a kill and a loss of power; a change is made wholly or
    not at all. Errors are those of `costream.errors`. Ranks of equal scores follow the UTF-8 bytes
    of the ids, and within an item the order of its moments.
    """

    @property
    def space(self) -> Space | None:
        """The active space; None while nothing was ever added."""

    @property
    def location(self) -> str:
        """Where it is, as messages name it; never with a password."""

    def close(self) -> None:
        """Give back what is held; closing again is no error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def __len__(self) -> int:
        """Count the items."""

    # --- what is inside ---

    def ids(self) -> list[str]:
        """Every id, in the order of their UTF-8 bytes."""

    def items(self) -> list[Item]:
        """Every item, in the order of `ids`."""

    def get(self, ids: Iterable[str]) -> list[Item]:
        """Items in the order asked for; DataError names an unknown id."""

    def vectors(self, ids: Iterable[str]) -> NDArray[np.float32]:
        """Vectors of the active space, float32 (N, D); of an item with moments its first."""

    def all_vectors(self, ids: Iterable[str]) -> NDArray[np.float32]:
        """Every vector of the active space of each item, float32 (M, D), in order of `moments`."""

    def moments(self, ids: Iterable[str]) -> list[tuple[Moment, ...]]:
        """Per item what its vectors in the active space stand for, in their order."""

    def matches(self, where: Filter | None) -> set[str]:
        """Ids of the items for which the conditions hold."""

    def count(self, where: Filter | None = None) -> int:
        """How many `matches` would give."""

    def sample_vectors(self, count: int, seed: int, space: Space) -> NDArray[np.float32]:
        """Vectors drawn without repetition from those of a space.

        Args:
            count: How many are wanted; fewer come when fewer are stored.
            seed: The same seed draws the same from the same state.
            space: Must be the active one.

        Returns:
            float32 (count, D).
        """

    def token(self) -> str:
        """Names the present state: another one after every change, whoever made it; cheap."""

    def stats(self) -> IndexStats:
        """Size and origin."""

    def check(self) -> tuple[str, ...]:
        """Read everything; what is wrong, one sentence each."""

    def load(self) -> None:
        """Bring into memory what searching needs."""

    # --- changes ---

    def add(self, items: Sequence[Item], vectors: NDArray[Any], space: Space) -> None:
        """Add items with one vector each, or replace those with the same ids.

        Args:
            items: Each id once.
            vectors: Floating point (N, D).
            space: Must be the active one, unless the index is empty.
        """

    def add_moments(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        parents: NDArray[Any],
        spans: NDArray[Any],
        space: Space,
    ) -> None:
        """Add items with any number of vectors each, or replace those with the same ids.

        Args:
            items: Each id once, each with at least one vector.
            vectors: Floating point (M, D).
            parents: Integer (M,): which of the items a vector belongs to.
            spans: Floating point (M, 2): start and end in seconds; both NaN for no span.
            space: Must be the active one, unless the index is empty.
        """

    def reuse(self, items: Sequence[Item], *, remove: Iterable[str] = ()) -> list[Item]:
        """Add items whose content the index holds, with its vectors; gives those it has not."""

    def remove(self, ids: Iterable[str]) -> int:
        """Remove items; ids that are not there are ignored. Gives how many were there."""

    def touch(self, items: Sequence[Item]) -> None:
        """Note size, times and date of files whose content is the same."""

    def forget(self, ids: Iterable[str]) -> int:
        """Remove items so that no file of the index holds a byte of them any more."""

    # --- search ---

    def search(
        self,
        vectors: NDArray[Any],
        space: Space,
        top: int,
        *,
        where: Filter | None = None,
        group: bool = True,
    ) -> Ranking:
        """The best items of each query, among those for which the conditions hold.

        Args:
            vectors: Floating point (Q, D), of any length but zero.
            space: Must be the active one.
            top: How many are wanted, at least 1; fewer come only when fewer match.
            where: Conditions on the items.
            group: Whether an item comes once, by its best moment; otherwise every moment is a
                result of its own and ids repeat.
        """

    def search_text(self, words: str, top: int, *, where: Filter | None = None) -> Ranking:
        """The items that hold some of the words, by BM25, as the ranking of one query.

        Args:
            words: Any text; what it holds besides letters and digits has no meaning.
            top: How many are wanted, at least 1.
            where: Conditions on the items.

        Returns:
            Searched are file names, captions, tags and texts. Higher scores are better.
        """

    # --- spaces ---

    def spaces(self) -> tuple[SpaceEntry, ...]:
        """The spaces of which vectors are held, the active one first."""

    def begin_space(self, space: Space) -> None:
        """Make room for a second set of vectors; again for the same space is no error."""

    def missing(self, space: Space, count: int, *, after: str = "") -> list[Item]:
        """Items that have no vector in a space, in the order of their ids.

        Args:
            space: A space of this index.
            count: How many at most.
            after: Only those with greater ids.
        """

    def fill_space(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        space: Space,
        *,
        parents: NDArray[Any] | None = None,
        spans: NDArray[Any] | None = None,
    ) -> int:
        """Store vectors of a space being built.

        Args:
            items: What was embedded, as `missing` gave it.
            vectors: Floating point (N, D), or (M, D) with parents and spans.
            space: A space that `begin_space` was called with.
            parents: As of `add_moments`.
            spans: As of `add_moments`.

        Returns:
            How many items got theirs; one that is gone or has other content by now does not.
        """

    def switch_space(self, space: Space, *, allow_missing: bool = False) -> None:
        """Make a space the active one in one step; the one before stays, to switch back to.

        Args:
            space: One that is being built, or a retired one.
            allow_missing: Whether items without a vector in it are accepted; they are then found
                by words and conditions only.
        """

    def drop_space(self, space: Space) -> None:
        """Remove the vectors of a space that is not active."""
