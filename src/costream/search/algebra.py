"""Terms added and subtracted: the vector of a question.

The law is the sum of weight times unit vector, made unit length again. The sum is rounded once, so
that the order of the terms does not matter to the last bit and what is added and subtracted again
leaves no trace.

Shape letters: T terms, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, NumericalError

# A float32 vector is this close to the length that it was normalised to.
_ROUNDING = 1e-6


def combine(vectors_TD: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """The unit vector of a question.

    Args:
        vectors_TD: float32 (T, D), one a term, of any length but zero.
        weights: One a term, not 0; below 0 the term is subtracted.

    Returns:
        float32 (D,) of length 1; the vector itself when there is one term of length 1, added.

    Raises:
        ConfigError: The terms cancel each other, so that nothing is asked.
        NumericalError: A vector is zero or not finite.

    Example:
        >>> combine(np.float32([[1, 0], [0, 1]]), [3, -4]).tolist()
        [0.6000000238418579, -0.800000011920929]
    """
    terms_TD = np.stack([_unit(vector.astype(np.float64)) for vector in vectors_TD])
    terms_TD *= np.asarray(weights, dtype=np.float64)[:, None]
    total_D = np.array([math.fsum(column) for column in terms_TD.T])
    # What is left of float32 vectors that should cancel but were rounded apart says nothing.
    if np.linalg.norm(total_D) <= 4 * _ROUNDING * np.abs(weights).sum():
        raise ConfigError(
            "the terms of the query cancel each other, so that nothing is left to search for",
            hint="do not add and subtract the same thing; change a weight or a term",
        )
    unit_D: NDArray[np.float32] = _unit(total_D).astype(np.float32)
    return unit_D


def multiply(vectors_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The unit vector of a question whose terms are multiplied element by element.

    Its inner product with an item is the multilinear product of all terms and the item: what a
    model of three modalities was trained to make large for what belongs together.

    Args:
        vectors_TD: float32 (T, D), one a term, of any length but zero.

    Returns:
        float32 (D,) of length 1; the vector itself when there is one term of length 1.

    Raises:
        ConfigError: The product is zero: the terms have no dimension in common.
        NumericalError: A vector is zero or not finite.

    Example:
        >>> multiply(np.float32([[0.6, 0.8], [1, 0]])).tolist()
        [1.0, 0.0]
    """
    product_D = np.prod([_unit(vector.astype(np.float64)) for vector in vectors_TD], axis=0)
    if not product_D.any():
        raise ConfigError(
            "the product of the terms of the query is zero, so that nothing is left to search for",
            hint="add the terms instead",
        )
    unit_D: NDArray[np.float32] = _unit(product_D).astype(np.float32)
    return unit_D


def _unit(vector_D: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector_D))
    if not math.isfinite(length) or length == 0:
        raise NumericalError(
            f"a term of the query has a vector of length {length}, expected a direction",
            hint="check the model's weights",
        )
    # Dividing what is unit already would only move its last bits.
    return vector_D if abs(length - 1) <= _ROUNDING else vector_D / length
