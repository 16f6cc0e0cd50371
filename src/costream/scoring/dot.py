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
from costream.scoring.matrix import Matrix

# Rows a block: its float32 copy (4 MB at 256 dimensions) stays in the processor's cache.
BLOCK_ROWS = 4096
# Queries multiplied at a time; bounds the memory of one pass to Q x block.
BLOCK_QUERIES = 64
# Pairs summed at a time in float64.
BLOCK_PAIRS = 2048
# A float32 copy of the vectors is kept from the second search on if it is at most this large.
WIDE_BYTES = 256 * 2**20
# Up to a share of 1 / this of all rows, fetching those wanted is faster than passing over all.
FEW = 4
# Lengths of a query between which no float32 score over- or underflows.
SHORTEST, LONGEST = 1e-20, 1e20
# Below every score but that of a row which does not count.
_LOWEST = float(np.finfo(np.float32).min)


def pair_scores(
    query_D: NDArray[np.float32], vectors_MD: NDArray[Any], *, cosine: bool = False
) -> NDArray[np.float32]:
    """Dot products of one query with some vectors; a pair's score never depends on the others.

    Args:
        query_D: float32 (D,).
        vectors_MD: float16 or float32 (M, D).
        cosine: Whether to divide by the lengths of both.

    Returns:
        float32 (M,): summed in float64, rounded once.

    Example:
        >>> pair_scores(np.float32([0.6, 0.8]), np.float16([[1, 0], [0.5, 0.5]])).tolist()
        [0.6000000238418579, 0.7000000476837158]
    """
    scores_M = np.empty(len(vectors_MD), dtype=np.float32)
    query64_D = query_D.astype(np.float64)
    length = math.sqrt((query64_D**2).sum())
    for start in range(0, len(vectors_MD), BLOCK_PAIRS):
        block = slice(start, start + BLOCK_PAIRS)
        wide_MD = vectors_MD[block].astype(np.float64)
        # A sum along contiguous rows adds each row in the same order however many there are; a
        # matrix product would not.
        sums_M = (wide_MD * query64_D).sum(axis=1)
        if cosine:
            sums_M /= np.sqrt((wide_MD**2).sum(axis=1)) * length
        scores_M[block] = sums_M
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
        cosine: Whether scores are divided by the lengths of both vectors; no row may be zero.

    Example:
        >>> scan = ExactScan(np.float16([[1, 0], [0, 1], [1, 0]]))
        >>> rows, scores = scan.top(np.float32([[1, 0]]), 2)
        >>> rows[0].tolist(), scores[0].tolist()
        ([0, 2], [1.0, 1.0])
    """

    vectors_ND: Matrix
    longest: float | None = None
    cosine: bool = False
    _inverse_N: NDArray[np.float32] | None = field(default=None, init=False, repr=False)
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
        unit_QD = unit_queries(queries_QD, self.vectors_ND.shape[1], top)
        num_rows = len(self.vectors_ND)
        if allowed_N is not None and (
            allowed_N.dtype != np.bool_ or allowed_N.shape != (num_rows,)
        ):
            raise DataError(
                f"got allowed rows of type {allowed_N.dtype} and shape {allowed_N.shape}, "
                f"expected bool ({num_rows},)"
            )
        rows: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        near = self.candidates(unit_QD, top, allowed_N)
        for query_D, rows_M in zip(queries_QD, near, strict=True):
            scores_M = pair_scores(
                query_D.astype(np.float32), self.vectors_ND[rows_M], cosine=self.cosine
            )
            best = np.lexsort((rows_M, -scores_M))[:top]
            rows.append(rows_M[best])
            scores.append(scores_M[best])
        return rows, scores

    def candidates(
        self,
        unit_QD: NDArray[np.float32],
        top: int,
        findable_N: NDArray[np.bool_] | None = None,
    ) -> list[NDArray[np.int64]]:
        """Rows that may be among the best, all that are and few others, found by the fast pass.

        Args:
            unit_QD: float32 (Q, D), of length 1.
            top: How many best ones are wanted, at least 1.
            findable_N: bool (N,), which rows count; None for all.

        Returns:
            Per query int64 rows in ascending order.
        """
        found: list[NDArray[np.int64]] = []
        margin = 2 * self._bound()
        for start in range(0, len(unit_QD), BLOCK_QUERIES):
            chunk_QD = unit_QD[start : start + BLOCK_QUERIES]
            shortlists = [Shortlist(top, margin) for _ in chunk_QD]
            for rows_M, block_MD, findable_M in self._blocks(findable_N):
                fast_QM = chunk_QD @ block_MD.T
                if self._inverse_N is not None:
                    fast_QM *= self._inverse_N[rows_M]
                if findable_M is not None:
                    fast_QM[:, ~findable_M] = -np.inf
                for shortlist, fast_M in zip(shortlists, fast_QM, strict=True):
                    shortlist.offer(rows_M, fast_M)
            found.extend(shortlist.rows() for shortlist in shortlists)
        return found

    @property
    def memory_bytes(self) -> int:
        """Bytes of the copies that are held at present."""
        held = (self._wide_ND, self._inverse_N)
        return sum(array.nbytes for array in held if array is not None)

    def grown(self, vectors_ND: Matrix) -> ExactScan:
        """The scan of more rows, of which the first are those of this one."""
        made = ExactScan(vectors_ND, cosine=self.cosine)
        new_MD = vectors_ND[len(self.vectors_ND) :]
        if self.longest is not None:
            made.longest = max(self.longest, longest_vector(new_MD))
        if self._inverse_N is not None:
            made._inverse_N = np.concatenate([self._inverse_N, inverse_lengths(new_MD)])
        return made

    def _bound(self) -> float:
        """How far a fast score can be from the true one."""
        dim = self.vectors_ND.shape[1]
        if not self.cosine:
            if self.longest is None:
                self.longest = longest_vector(self.vectors_ND)
            return error_bound(dim, self.longest)
        if self._inverse_N is None:
            self._inverse_N = inverse_lengths(self.vectors_ND)
        # The inverse length is itself off by fewer roundings than a dot product has.
        return 2 * error_bound(dim, 1.0)

    def _blocks(
        self, findable_N: NDArray[np.bool_] | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_] | None]]:
        """Row numbers, float32 values (rows, D), and which of them count, of each block."""
        num_rows = len(self.vectors_ND)
        if findable_N is None:
            for start, block_MD in self._wide_blocks():
                yield np.arange(start, start + len(block_MD)), block_MD, None
        elif (num_found := int(np.count_nonzero(findable_N))) * FEW <= num_rows:
            (found_M,) = np.nonzero(findable_N)
            for start in range(0, num_found, BLOCK_ROWS):
                rows_M = found_M[start : start + BLOCK_ROWS]
                narrow_MD = self.vectors_ND[rows_M]
                yield rows_M, widen(narrow_MD, np.empty(narrow_MD.shape, np.float32)), None
        else:
            for start, block_MD in self._wide_blocks():
                findable_M = findable_N[start : start + len(block_MD)]
                yield np.arange(start, start + len(block_MD)), block_MD, findable_M

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


@dataclass(slots=True)
class Shortlist:
    """Rows of one query whose fast score is within `margin` of the `top`-th best so far.

    Attributes:
        top: How many best ones are wanted.
        margin: Twice the largest error of a fast score.
    """

    top: int
    margin: float
    _best: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    _rows: list[NDArray[np.int64]] = field(default_factory=list)
    _fast: list[NDArray[np.float32]] = field(default_factory=list)

    def _floor(self) -> float:
        return float(self._best[0]) - self.margin if len(self._best) == self.top else _LOWEST

    def offer(self, rows_M: NDArray[np.int64], fast_M: NDArray[np.float32]) -> None:
        """Take what is good enough of some rows, in ascending order; never what scores -inf."""
        (near,) = np.nonzero(fast_M >= self._floor())
        if not len(near):
            return
        fast = fast_M[near]
        merged = np.concatenate([self._best, fast])
        if len(merged) > self.top:
            merged = np.partition(merged, len(merged) - self.top)[-self.top :]
        self._best = merged
        # The partition leaves the smallest first only when something was cut off.
        smallest = int(np.argmin(self._best))
        self._best[[0, smallest]] = self._best[[smallest, 0]]
        still = fast >= self._floor()
        self._rows.append(rows_M[near[still]])
        self._fast.append(fast[still])

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


def longest_vector(vectors_ND: Matrix) -> float:
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


def inverse_lengths(vectors_ND: Matrix) -> NDArray[np.float32]:
    """One over the length of each row, float32 (N,).

    Raises:
        NumericalError: A row is zero; names it.
    """
    num_rows, dim = vectors_ND.shape
    buffer = np.empty((min(BLOCK_ROWS, num_rows), dim), dtype=np.float32)
    squared_N = np.empty(num_rows, dtype=np.float32)
    for start in range(0, num_rows, BLOCK_ROWS):
        narrow = vectors_ND[start : start + BLOCK_ROWS]
        block = widen(narrow, buffer[: len(narrow)])
        np.einsum("nd,nd->n", block, block, out=squared_N[start : start + len(narrow)])
    if not squared_N.all():
        raise NumericalError(
            f"the vector of row {int(np.argmin(squared_N))} is zero, which has no cosine",
            hint="remove it, or score by dot product",
        )
    inverse_N: NDArray[np.float32] = np.reciprocal(np.sqrt(squared_N), dtype=np.float32)
    return inverse_N


def unit_queries(queries_QD: NDArray[Any], dim: int, top: int) -> NDArray[np.float32]:
    """Queries of length 1; refuses what cannot be searched for.

    Args:
        queries_QD: Floating point (Q, D).
        dim: Number of dimensions of what is searched.
        top: How many results are wanted.

    Returns:
        float32 (Q, D).

    Raises:
        ConfigError: `top` is below 1.
        DataError: The queries have another form or another number of dimensions.
        NumericalError: A query is not finite, or too short or long to be scored.
    """
    if top < 1:
        raise ConfigError(f"got top={top}, expected at least 1")
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
