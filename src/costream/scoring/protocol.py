"""How queries are compared with items, and what is done to the scores afterwards.

Shape letters: Q queries, C candidates, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from costream.records import Features

Scores = NDArray[np.float32]


class Scorer(Protocol):
    """A way to compare queries with items.

    Attributes:
        cost: What a pair costs: a `dot` product of two vectors, a `late` interaction of two sets of
            vectors, or a `pair` pass of some network.
        needs: Whether it reads the `pooled` vectors of features only, or their `tokens` too.
    """

    @property
    def cost(self) -> Literal["dot", "late", "pair"]:
        """What a pair costs."""

    @property
    def needs(self) -> Literal["pooled", "tokens"]:
        """What it reads of features."""

    def score(self, query: Features, gallery: Features) -> Tensor:
        """Scores float32 (Q, C), more is better.

        A score depends on its pair alone: not on the batch, nor on padding. `modality` of the
        features says which side is which.
        """


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankContext:
    """What a rank step may look at.

    Attributes:
        queries: Unit vectors float32 (Q, D).
        items: Unit vectors float32 (C, D), the columns of the scores.
        modality: Of the queries.
        item_modality: Of the items.
    """

    queries: NDArray[np.float32]
    items: NDArray[np.float32]
    modality: str
    item_modality: str = "image"


class RankStep(Protocol):
    """Something done to scores after the first stage.

    It gets scores and gives scores of the same pairs, so it cannot invent items; equal scores keep
    the order they had.

    Attributes:
        needs: Whether it works on the best candidates (`topk`), or must see `all` items of the
            gallery to be right.
    """

    @property
    def needs(self) -> Literal["topk", "all"]:
        """Which items must be there."""

    def rescore(self, scores: Scores, context: RankContext) -> Scores:
        """Scores float32 (Q, C) to new ones of the same shape."""


@runtime_checkable
class ItemBias(Protocol):
    """A rank step that is one number an item: `rescore` subtracts it, whatever the query.

    It can be computed before any query comes, and any index that finds by inner product can serve
    it, by one more coordinate.
    """

    def bias(self, items: NDArray[np.float32], modality: str, item_modality: str) -> Scores:
        """What is subtracted.

        Args:
            items: Unit vectors float32 (C, D).
            modality: Of the queries.
            item_modality: Of the items.

        Returns:
            float32 (C,); that of an item does not depend on the others.
        """
