"""Pictures that are nearly the same, of which one is enough.

Two versions of a picture have close vectors, or close fingerprints and vectors that are not far
from each other. Vectors see through cropping, which moves a fingerprint's cells; fingerprints see
through resizing, which some models do not. How close two vectors must be depends on the model and
on the collection (photographs of a holiday lie further apart than products on white), so it is
learned from pairs of other pictures: the share of pairs within a distance falls as a power of the
distance, the line through the nearest 1 % and 0.1 % is drawn on to the nearest 0.001 %, and what is
nearer is no coincidence.

`benchmarks/duplicates.py` measures what this finds and mistakes.

Shape letters: N items, D dimensions, K items kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from costream.data.perceptual import hash_bits

SAMPLE: Final = 1024
"""Vectors that are enough to learn how close other pictures come."""

_FAR, _NEAR, _CHANCE = 1e-2, 1e-3, 1e-5
# Bits of 64 in which two versions may differ: of 500,000 pairs of other photographs none did.
_MOST_BITS: Final = 8
_FEWEST_PAIRS: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """From which cosines on two pictures of a collection are nearly the same.

    The values given are those for collections too small to learn from.

    Attributes:
        same: Whatever their fingerprints say.
        alike: When their fingerprints say so.
    """

    # Also the highest that is learned: where half of a collection are copies, they look usual.
    same: float = 0.98
    alike: float = 0.8


def learn_likeness(sample_ND: NDArray[np.float32]) -> Likeness:
    """Learn from pairs of other pictures how close is close.

    Args:
        sample_ND: float32 (N, D), vectors drawn from the collection.

    Returns:
        The cosines.

    Example:
        >>> learn_likeness(np.eye(4, dtype=np.float32)).same
        0.98
    """
    unit_ND = _unit(sample_ND[:SAMPLE])
    cosines = (unit_ND @ unit_ND.T)[np.triu_indices(len(unit_ND), 1)]
    usual = Likeness()
    if len(cosines) < _FEWEST_PAIRS:
        return usual
    far, near = (1.0 - np.quantile(cosines, (1 - _FAR, 1 - _NEAR))).tolist()
    if near <= 0:
        return usual
    power = math.log(far / near) / math.log(_FAR / _NEAR)
    same = min(1.0 - near * (_CHANCE / _NEAR) ** power, usual.same)
    return Likeness(same=same, alike=min(1.0 - far, same))


def collapse(
    ids: Sequence[str],
    vectors_ND: NDArray[np.float32],
    hashes: Sequence[str],
    likeness: Likeness,
) -> dict[str, tuple[str, ...]]:
    """Keep the first of all that are nearly the same.

    Args:
        ids: Best first.
        vectors_ND: float32 (N, D), one an id.
        hashes: One an id, as of `difference_hash`; empty where it is not known.
        likeness: How close is close.

    Returns:
        Id kept to the ids left out for it, in order.

    Example:
        >>> vectors = np.float32([[1, 0], [0, 1], [0.999, 0.04]])
        >>> collapse(["a", "b", "c"], vectors, ["", "", ""], Likeness())
        {'a': ('c',), 'b': ()}
    """
    unit_ND = _unit(vectors_ND)
    bits = [hash_bits(digest) for digest in hashes]
    groups: dict[int, list[int]] = {}
    for row in range(len(ids)):
        kept = list(groups)
        cosines = (unit_ND[kept] @ unit_ND[row]).tolist()
        for first, cosine in zip(kept, cosines, strict=True):
            near = cosine >= likeness.alike and _is_near(bits[first], bits[row])
            if near or cosine >= likeness.same:
                groups[first].append(row)
                break
        else:
            groups[row] = []
    return {ids[first]: tuple(ids[row] for row in rest) for first, rest in groups.items()}


def _is_near(one: NDArray[np.uint8] | None, other: NDArray[np.uint8] | None) -> bool:
    if one is None or other is None:
        return False
    return int(np.count_nonzero(one != other)) <= _MOST_BITS


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = vectors_ND / np.maximum(lengths_N1, 1e-12)
    return unit_ND
