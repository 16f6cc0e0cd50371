"""Exact search by dot product: a fast float32 pass proposes, a float64 sum decides.

Stored vectors are float16. Blocks of them are widened to float32 and multiplied with the queries by
the matrix library, whose rounding depends on block and batch shapes. Each of its scores is within
`error_bound` of the true one, so every item whose fast score is within twice that bound of the
`top`-th best is kept; the rest cannot belong to the answer. Those kept are scored again by
`pair_scores`, which sums every pair alone in float64 and rounds once to float32. The answer is that
of a brute-force scan with `pair_scores`, whatever the block size, the batch or the machine.

Shape letters: Q queries, N stored vectors, M some of them, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError

# Rows a block: its float32 copy (4 MB at 256 dimensions) stays in the processor's cache.
BLOCK_ROWS = 4096
# Queries multiplied at a time; bounds the memory of one pass to Q x block.
BLOCK_QUERIES = 64
# Pairs summed at a time in float64.
BLOCK_PAIRS = 2048
# A float32 copy of the vectors is kept from the second search on if it is at most this large.
WIDE_BYTES = 256 * 2**20
# Lengths of a query between which no float32 score over- or underflows.
SHORTEST, LONGEST = 1e-20, 1e20


def pair_scores(query_D: NDArray[np.float32], vectors_MD: NDArray[Any]) -> NDArray[np.float32]:
    """Dot products of one query with some vectors; a pair's score never depends on the others.

    Args:
        query_D: float32 (D,).
        vectors_MD: float16 or float32 (M, D).

    Returns:
        float32 (M,): summed in float64, rounded once.

    Example:
        >>> pair_scores(np.float32([0.6, 0.8]), np.float16([[1, 0], [0.5, 0.5]])).tolist()
        [0.6000000238418579, 0.7000000476837158]
    """
    scores_M = np.empty(len(vectors_MD), dtype=np.float32)
    query64_D = query_D.astype(np.float64)
    for start in range(0, len(vectors_MD), BLOCK_PAIRS):
        block = slice(start, start + BLOCK_PAIRS)
        # A sum along contiguous rows adds each row in the same order however many there are; a
        # matrix product would not.
        scores_M[block] = (vectors_MD[block].astype(np.float64) * query64_D).sum(axis=1)
    return scores_M


def error_bound(dim: int, longest: float) -> float:
    """Largest distance between a float32 dot product and the true one, for a query of length 1.

    Any order of `dim` additions is wrong by at most `dim * u / (1 - dim * u)` times the product of
    the lengths, u = 2**-24. The 16 extra roundings cover making the query unit length and rounding
    the final score; the last term covers products that underflow.

    Args:
        dim: Number of dimensions.
        longest: Length of the longest stored vector.

    Returns:
        The bound, in units of the score.

    Example:
        >>> f"{error_bound(256, 1.0):.1e}"
        '1.6e-05'
    """
    relative = (dim + 16) * 2.0**-24
    return relative / (1 - relative) * 1.01 * longest + dim * 2.0**-126


@dataclass(slots=True)
class ExactScan:
    """The best stored vectors of each query, exactly.

    Attributes:
        vectors_ND: float16 (N, D), finite; of equal scores the earlier row comes first.
        longest: Length of the longest vector, or None to measure it.

    Example:
        >>> scan = ExactScan(np.float16([[1, 0], [0, 1], [1, 0]]))
        >>> rows, scores = scan.top(np.float32([[1, 0]]), 2)
        >>> rows[0].tolist(), scores[0].tolist()
        ([0, 2], [1.0, 1.0])
    """

    vectors_ND: NDArray[np.float16]
    longest: float | None = None
    _wide_ND: NDArray[np.float32] | None = field(default=None, init=False, repr=False)
    _num_passes: int = field(default=0, init=False, repr=False)

    def top(
        self,
        queries_QD: NDArray[np.float32],
        top: int,
        allowed_N: NDArray[np.bool_] | None = None,
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
        """Rows and scores of the best vectors of each query, best first.

        Args:
            queries_QD: float32 (Q, D), of any length but zero.
            top: How many are wanted, at least 1; fewer come when fewer are stored or allowed.
            allowed_N: bool (N,): the rows that may be found; None for all.

        Returns:
            Per query the row numbers int64 (min(top, N allowed),) and the scores float32, the same
            shape.

        Raises:
            ConfigError: When `top` is below 1.
            DataError: When the queries have another form or another number of dimensions, or
                `allowed_N` is not one truth value a row.
            NumericalError: When a query is not finite, or too short or long to be scored.
        """
        if top < 1:
            raise ConfigError(f"got top={top}, expected at least 1")
        unit_QD = _unit_queries(queries_QD, self.vectors_ND.shape[1])
        rows_M = None if allowed_N is None else _allowed_rows(allowed_N, len(self.vectors_ND))
        if self.longest is None:
            self.longest = longest_vector(self.vectors_ND)
        rows: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        for start in range(0, len(unit_QD), BLOCK_QUERIES):
            chunk = slice(start, start + BLOCK_QUERIES)
            near = self._candidates(unit_QD[chunk], top, rows_M)
            for query_D, near_M in zip(queries_QD[chunk], near, strict=True):
                scores_M = pair_scores(query_D.astype(np.float32), self.vectors_ND[near_M])
                best = np.lexsort((near_M, -scores_M))[:top]
                rows.append(near_M[best])
                scores.append(scores_M[best])
        return rows, scores

    def _candidates(
        self, unit_QD: NDArray[np.float32], top: int, rows_M: NDArray[np.int64] | None
    ) -> list[NDArray[np.int64]]:
        """Per query the rows that may be among its best, found by the fast pass."""
        margin = 2 * error_bound(self.vectors_ND.shape[1], self.longest or 0.0)
        shortlists = [_Shortlist(top, margin) for _ in unit_QD]
        blocks = self._wide_blocks() if rows_M is None else self._chosen_blocks(rows_M)
        for start, block_ND in blocks:
            fast_QN = unit_QD @ block_ND.T
            for shortlist, fast_N in zip(shortlists, fast_QN, strict=True):
                shortlist.offer(start, fast_N)
        found = [shortlist.rows() for shortlist in shortlists]
        return found if rows_M is None else [rows_M[near_M] for near_M in found]

    def _wide_blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First row and float32 values (rows, D) of each block."""
        num_rows, dim = self.vectors_ND.shape
        self._num_passes += 1
        keep = self._num_passes > 1 and num_rows * dim * 4 <= WIDE_BYTES
        if self._wide_ND is None and keep:
            wide_ND = np.empty((num_rows, dim), dtype=np.float32)
            for start in range(0, num_rows, BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                widen(self.vectors_ND[block], wide_ND[block])
            self._wide_ND = wide_ND
        buffer = np.empty((0 if keep else min(BLOCK_ROWS, num_rows), dim), dtype=np.float32)
        for start in range(0, num_rows, BLOCK_ROWS):
            if self._wide_ND is not None:
                yield start, self._wide_ND[start : start + BLOCK_ROWS]
            else:
                narrow = self.vectors_ND[start : start + BLOCK_ROWS]
                yield start, widen(narrow, buffer[: len(narrow)])

    def _chosen_blocks(
        self, rows_M: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First place among the chosen rows, and float32 values (rows, D), of each block."""
        buffer = np.empty((min(BLOCK_ROWS, len(rows_M)), self.vectors_ND.shape[1]), np.float32)
        for start in range(0, len(rows_M), BLOCK_ROWS):
            narrow = self.vectors_ND[rows_M[start : start + BLOCK_ROWS]]
            yield start, widen(narrow, buffer[: len(narrow)])


@dataclass(slots=True)
class _Shortlist:
    """Rows of one query whose fast score is within `margin` of the `top`-th best so far."""

    top: int
    margin: float
    _best: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    _rows: list[NDArray[np.int64]] = field(default_factory=list)
    _fast: list[NDArray[np.float32]] = field(default_factory=list)

    def _floor(self) -> float:
        return float(self._best[0]) - self.margin if len(self._best) == self.top else -math.inf

    def offer(self, start: int, fast_N: NDArray[np.float32]) -> None:
        """Take what is good enough of the scores of rows `start` and following."""
        (near_M,) = np.nonzero(fast_N >= self._floor())
        if not len(near_M):
            return
        fast_M = fast_N[near_M]
        merged = np.concatenate([self._best, fast_M])
        if len(merged) > self.top:
            merged = np.partition(merged, len(merged) - self.top)[-self.top :]
        self._best = merged
        # The partition leaves the smallest first only when something was cut off.
        smallest = int(np.argmin(self._best))
        self._best[[0, smallest]] = self._best[[smallest, 0]]
        still = fast_M >= self._floor()
        self._rows.append(near_M[still].astype(np.int64) + start)
        self._fast.append(fast_M[still])

    def rows(self) -> NDArray[np.int64]:
        """What is left after all rows were offered, in row order."""
        if not self._rows:
            return np.empty(0, dtype=np.int64)
        keep = np.concatenate(self._fast) >= self._floor()
        return np.concatenate(self._rows)[keep]


def widen(narrow: NDArray[np.float16], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy finite float16 values into a float32 array, exactly.

    Args:
        narrow: float16, any shape, finite.
        out: float32 of the same shape, C-contiguous; overwritten.

    Returns:
        `out`.

    Example:
        >>> widen(np.float16([1.5, -6e-8]), np.empty(2, np.float32)).tolist()
        [1.5, -5.960464477539063e-08]
    """
    if _flushes_denormals():
        np.copyto(out, narrow)
        return out
    # Five times as fast as numpy's conversion: float32 has the same fields with three more bits of
    # exponent, so shift them into place and correct the exponent's offset of 112.
    bits = out.view(np.int32)
    np.copyto(bits, narrow.view(np.int16))
    bits <<= 13
    bits &= _SIGN_AND_SHIFTED
    out *= np.float32(2.0**112)
    return out


_SIGN_AND_SHIFTED = np.array(0x8FFFFFFF, dtype=np.uint32).view(np.int32)
_SMALLEST = np.array([2.0**-149], dtype=np.float32)


def _flushes_denormals() -> bool:
    """Whether this thread takes the smallest numbers for zero, as some libraries ask."""
    return bool((_SMALLEST * np.float32(2.0**112))[0] == 0)


def longest_vector(vectors_ND: NDArray[np.float16]) -> float:
    """Length of the longest row, rounded up a little; 0 when there is none."""
    num_rows, dim = vectors_ND.shape
    buffer = np.empty((min(BLOCK_ROWS, num_rows), dim), dtype=np.float32)
    squared: float = 0.0
    for start in range(0, num_rows, BLOCK_ROWS):
        narrow = vectors_ND[start : start + BLOCK_ROWS]
        block = widen(narrow, buffer[: len(narrow)])
        squared = max(squared, float(np.einsum("nd,nd->n", block, block).max()))
    longest: float = math.sqrt(squared) * (1 + (dim + 1) * 2.0**-23)
    return longest


def _allowed_rows(allowed_N: NDArray[np.bool_], num_rows: int) -> NDArray[np.int64]:
    if allowed_N.dtype != np.bool_ or allowed_N.shape != (num_rows,):
        raise DataError(
            f"got allowed rows of type {allowed_N.dtype} and shape {allowed_N.shape}, "
            f"expected bool ({num_rows},)"
        )
    return np.flatnonzero(allowed_N)


def _unit_queries(queries_QD: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Queries of length 1; refuses those that have no direction."""
    if queries_QD.ndim != 2 or queries_QD.dtype.kind != "f":
        raise DataError(
            f"got queries of type {queries_QD.dtype} and shape {queries_QD.shape}, "
            f"expected float32 (Q, {dim})",
            hint="pass one query as vector[None]",
        )
    if queries_QD.shape[1] != dim:
        raise DataError(
            f"got queries with {queries_QD.shape[1]} dimensions, expected {dim} as stored",
            hint="encode the queries with the model that made the index",
        )
    wide_QD = queries_QD.astype(np.float32).astype(np.float64)
    finite_Q = np.isfinite(wide_QD).all(axis=1)
    if not finite_Q.all():
        raise NumericalError(
            f"query {int(np.argmin(finite_Q))} has a value that is not finite",
            hint="check what the query was made of",
        )
    lengths_Q = np.sqrt((wide_QD**2).sum(axis=1))
    fine_Q = (lengths_Q >= SHORTEST) & (lengths_Q <= LONGEST)
    if not fine_Q.all():
        worst = int(np.argmin(fine_Q))
        raise NumericalError(
            f"query {worst} has length {lengths_Q[worst]:.3g}, "
            f"expected between {SHORTEST:g} and {LONGEST:g}",
            hint="a query of length 0 matches everything equally; normalise queries",
        )
    unit_QD: NDArray[np.float32] = (wide_QD / lengths_Q[:, None]).astype(np.float32)
    return unit_QD
