"""Scores of queries against a gallery, a few rows at a time and free of rounding noise.

A float32 matrix product gives the same pair a different last bit depending on the shape of the
block it is computed in. That is enough to break ties between equal vectors by accident and to make
a metric depend on the block size. Here vectors are first rounded to a grid so coarse that float64
holds every partial sum *exactly*, whatever the order of summation; the only rounding left is the
one to float32 at the end. So a score depends on its two vectors and on nothing else: not on the
block, the number of threads, or the BLAS library.

Shape letters: Q queries, G items of the gallery, D dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costream.errors import DataError, NumericalError

# Rows are scaled to lengths of at most 1.3, so a (partial) dot product stays below 1.69 < 2. On a
# grid of 2^-26 the products are multiples of 2^-52, and every multiple of 2^-52 up to 2 is a
# float64.
_GRID_BITS = 26
_LONGEST = 1.3


class DotScores:
    """Dot products of two sets of vectors, computed by rows on demand.

    The grid is relative to each vector's own length, about as fine as float32 itself: the error of
    a score is below 1e-8 times both lengths before it is rounded to float32.

    Args:
        queries: float (Q, D).
        gallery: float (G, D). Both are copied to float64: (Q + G) x D x 8 bytes.

    Raises:
        DataError: When a shape is not (rows, D) or the two D differ.
        NumericalError: When a vector has a value that is not finite.

    Example:
        >>> scores = DotScores(np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]]))
        >>> scores.rows(1, 2)
        array([[0. , 0.8]], dtype=float32)
    """

    def __init__(self, queries: ArrayLike, gallery: ArrayLike) -> None:
        rows, columns = as_vectors(queries, "query"), as_vectors(gallery, "item")
        if rows.shape[1] != columns.shape[1]:
            raise DataError(
                f"queries have {rows.shape[1]} dimensions and items {columns.shape[1]}, "
                "expected the same number",
                hint="encode both with the same model",
            )
        self._queries, self._query_scale = _to_grid(rows)
        self._gallery, self._gallery_scale = _to_grid(columns)

    @property
    def num_queries(self) -> int:
        """Number of rows."""
        return len(self._queries)

    @property
    def num_items(self) -> int:
        """Number of columns."""
        return len(self._gallery)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Scores float32 (stop - start, G) of the queries from `start` up to `stop`."""
        exact = self._queries[start:stop] @ self._gallery.T
        exact *= self._query_scale[start:stop, None]
        exact *= self._gallery_scale
        # Too long vectors overflow to infinity here; the ranking function names the pair.
        with np.errstate(over="ignore"):
            return exact.astype(np.float32)


class GivenScores:
    """A score matrix that exists already, in the form that the ranking function takes.

    Args:
        scores: float (Q, G), compared as float32.

    Raises:
        DataError: When the array is not two-dimensional.

    Example:
        >>> GivenScores([[0.5, 0.25]]).rows(0, 1)
        array([[0.5 , 0.25]], dtype=float32)
    """

    def __init__(self, scores: ArrayLike) -> None:
        self._scores = np.asarray(scores)
        if self._scores.ndim != 2:
            raise DataError(
                f"scores have shape {self._scores.shape}, expected (queries, items)",
                hint="give one row a query",
            )

    @property
    def num_queries(self) -> int:
        """Number of rows."""
        return int(self._scores.shape[0])

    @property
    def num_items(self) -> int:
        """Number of columns."""
        return int(self._scores.shape[1])

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Scores float32 (stop - start, G) of the queries from `start` up to `stop`."""
        with np.errstate(over="ignore"):
            return self._scores[start:stop].astype(np.float32)


def as_vectors(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Check vectors and return them as a new float64 array (rows, D).

    Args:
        values: float (rows, D).
        what: What a row is, for messages.

    Returns:
        float64 (rows, D), contiguous by rows.

    Raises:
        DataError: When the shape is not (rows, D), with at least one row and dimension.
        NumericalError: When a value is not finite.
    """
    vectors = np.array(values, dtype=np.float64, order="C")
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise DataError(
            f"{what} vectors have shape {vectors.shape}, expected (number, dimensions), both >= 1",
            hint="stack the vectors as rows of one array",
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise NumericalError(
            f"the vector of {what} {row} has a value that is not finite, expected finite numbers",
            hint="look at what was encoded there and at the model's weights",
        )
    return vectors


def _to_grid(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows scaled by powers of two (exact) and rounded to the grid, with the scales to undo it."""
    largest = np.abs(vectors).max(axis=1)
    _, exponent = np.frexp(largest)
    # First by the largest value, so that squaring neither overflows nor vanishes.
    scaled = np.ldexp(vectors, -exponent[:, None])
    length = np.sqrt(np.square(scaled).sum(axis=1))
    _, rest = np.frexp(length / _LONGEST)
    scaled = np.ldexp(scaled, -rest[:, None])
    grid = np.ldexp(np.rint(np.ldexp(scaled, _GRID_BITS)), -_GRID_BITS)
    return grid, np.ldexp(np.ones(len(vectors)), exponent + rest)
