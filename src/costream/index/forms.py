"""How an item is kept in an index and found again, where one vector is not enough.

Shape letters: N items, V vectors of an item or of a query, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from costream.data.picture import PictureSource
    from costream.records import Space

Vectors = NDArray[np.float32]


@runtime_checkable
class ItemForm(Protocol):
    """Several vectors an item, several a query: what `costream index` stores, `search` asks.

    The first stage finds, for each vector of the query, the items with the best vectors; their
    scores are then computed from all vectors that are stored of them.
    """

    @property
    def space(self) -> Space:
        """Where the vectors live; of kind `multi`."""

    def of_images(self, images: Sequence[PictureSource]) -> list[Vectors]:
        """What is stored of N pictures: float32 (V, D) each, V at least 1."""

    def of_texts(self, texts: Sequence[str]) -> list[Vectors]:
        """What N texts ask with: float32 (V, D) each."""

    def score(self, query: Vectors, item: Vectors) -> float:
        """The score of a query (V, D) and an item (W, D), from what is stored."""

    def bound(self, best_V: Vectors) -> float:
        """The greatest score of an item whose best products with the query's vectors are these.

        Nor has an item a greater score none of whose products with vector v is above best_V[v].
        """
