"""A toy space with hubs: items drift towards the mean of the queries, each by its own amount.

Shape letters: Q queries, G items, M rows of a bank, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DIM = 64
_NOISE = 0.9
# Length of the mean of the queries, in standard deviations of a coordinate's sum.
_MEAN = 8.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ToyWorld:
    """Unit vectors; query i means item i.

    Attributes:
        queries: (Q, D).
        items: (Q, D).
        query_bank: (M, D), queries of the same domain that mean none of the items.
        foreign_bank: (M, D), queries of another domain.
        gallery_bank: (M, D), other items.
    """

    queries: Array
    items: Array
    query_bank: Array
    foreign_bank: Array
    gallery_bank: Array

    def scores(self) -> Array:
        """Cosines (Q, Q)."""
        return self.queries @ self.items.T


def make_toy(seed: int, *, queries: int = 1000, bank: int = 4000, hub: float = 0.6) -> ToyWorld:
    """Draw a world.

    Args:
        seed: Of everything.
        queries: Queries, and items.
        bank: Rows of each bank.
        hub: How far items drift towards the mean of the queries, at most: 0 for no hubs.

    Example:
        >>> make_toy(0, queries=10, bank=20).scores().shape
        (10, 10)
    """
    rng = np.random.default_rng(seed)
    mean, other = (_MEAN * row for row in _unit(rng.standard_normal((2, _DIM))))

    def as_query(meant: Array, towards: Array) -> Array:
        return _unit(meant + _NOISE * rng.standard_normal(meant.shape) + towards)

    def as_item(meant: Array) -> Array:
        drift = hub * rng.uniform(0, 1, (len(meant), 1)) * mean
        return _unit(meant + _NOISE * rng.standard_normal(meant.shape) + drift)

    meant, asked, foreign, held = (
        rng.standard_normal((count, _DIM)) for count in (queries, bank, bank, bank)
    )
    return ToyWorld(
        queries=as_query(meant, mean),
        items=as_item(meant),
        query_bank=as_query(asked, mean),
        foreign_bank=as_query(foreign, other),
        gallery_bank=as_item(held),
    )


def hit_at_1(scores_QQ: Array) -> float:
    """Percent of queries whose own item, the one of the same number, is the only best."""
    own = np.diag(scores_QQ)[:, None]
    return 100.0 * float(((scores_QQ >= own).sum(axis=1) == 1).mean())


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
