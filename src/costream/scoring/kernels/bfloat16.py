"""A pass over the vectors in bfloat16, which reads half of what float32 does, with a proven bound.

With x the stored vector, q the query of length 1, x' and q' what bfloat16 makes of them, and s the
score as torch returns it, rounded to bfloat16:

    |q . x - s| <= |x - x'| + |q - q'| |x'| + accumulation + 2**-8 |s|

by the inequality of Cauchy and Schwarz, since q . x - q' . x' = q . (x - x') + (q - q') . x'. The
lengths of the differences are measured, not estimated. Sums are accumulated in float32; four times
the float32 bound is allowed for them, and `pays` tests on this machine that it holds.

So every score lies in a known interval. The `top`-th best lower end found so far is a floor: a row
whose upper end is below it cannot belong to the answer. To find the others without looking at every
score, rows are taken in groups of 32 of which first the best score only is compared.

Shape letters: Q queries, N rows, B rows of a block, G groups, W rows of a group, D dimensions.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from costream.scoring.dot import error_bound
from costream.scoring.kernels.rows import Rows

# Scores of one block: 2 MB in bfloat16, which stays in the processor's cache.
BLOCK_SCORES = 2**20
GROUP_ROWS = 32
# Rows rounded at a time.
ROUNDED_ROWS = 2**14
# When more than N / this rows a query are left, float32 is faster: many near ties, or lengths that
# differ by orders of magnitude.
HOPELESS = 64
# A bfloat16 copy may take up to this share of the machine's memory; else rows are rounded anew in
# each pass.
MEMORY_SHARE = 0.4

_ROUNDING = 2.0**-8 * 1.02
_LOWEST = float(torch.finfo(torch.bfloat16).min)


@dataclass(slots=True, eq=False)
class Bfloat16Pass:
    """Proposes rows that may be among the best.

    Attributes:
        rows: What is searched.
        residual: At least the length of any difference between a row and its rounded form.
        longest: At least the length of any rounded row.
    """

    rows: Rows
    residual: float = 0.0
    longest: float = 0.0
    _space_ND: Tensor = field(
        default_factory=lambda: torch.empty((0, 0), dtype=torch.bfloat16), repr=False
    )

    @classmethod
    def of(cls, rows: Rows, before: Bfloat16Pass | None = None) -> Bfloat16Pass:
        """Round all rows, or only those that `before` does not have.

        Args:
            rows: What is searched.
            before: The pass over the first of these rows, whose memory is taken over.
        """
        num_rows, dim = rows.vectors_ND.shape
        made = cls(rows)
        num_known = 0
        if before is not None:
            num_known = len(before.rows)
            made.residual, made.longest = before.residual, before.longest
            made._space_ND = before._space_ND
        keep = 2 * num_rows * dim <= MEMORY_SHARE * _memory_bytes()
        if not keep:
            made._space_ND = torch.empty((0, dim), dtype=torch.bfloat16)
        elif len(made._space_ND) < num_rows:
            spare = 0 if before is None else num_rows // 4
            space_ND = torch.empty((num_rows + spare, dim), dtype=torch.bfloat16)
            if num_known:
                space_ND[:num_known] = made._space_ND[:num_known]
            made._space_ND = space_ND
        for start in range(num_known, num_rows, ROUNDED_ROWS):
            wide_BD = made._wide(start, min(start + ROUNDED_ROWS, num_rows))
            rounded_BD = wide_BD.bfloat16()
            made.residual = max(made.residual, _length_bound(wide_BD - rounded_BD))
            made.longest = max(made.longest, _length_bound(rounded_BD.float()))
            if keep:
                made._space_ND[start : start + len(rounded_BD)] = rounded_BD
        return made

    @property
    def memory_bytes(self) -> int:
        """Bytes of the rounded copy."""
        return self._space_ND.numel() * 2

    def candidates(
        self,
        unit_QD: NDArray[np.float32],
        top: int,
        findable_N: NDArray[np.bool_] | None = None,
    ) -> list[NDArray[np.int64]] | None:
        """Rows that may be among the best, all that are and few others.

        Args:
            unit_QD: float32 (Q, D), of length 1.
            top: How many best ones are wanted, at least 1.
            findable_N: bool (N,), which rows count; None for all.

        Returns:
            Per query int64 rows in ascending order; None when there are too many of them.
        """
        num_queries, num_rows = len(unit_QD), len(self.rows)
        if not num_queries or not num_rows:
            return [np.empty(0, dtype=np.int64)] * num_queries
        wide_QD = torch.from_numpy(unit_QD)
        query_QD = wide_QD.bfloat16()
        survivors = _Survivors(top, self._bounds(wide_QD, query_QD))
        rows_per_block = max(BLOCK_SCORES // num_queries // GROUP_ROWS, 1) * GROUP_ROWS
        findable = None if findable_N is None else torch.from_numpy(findable_N)
        for start in range(0, num_rows, rows_per_block):
            stop = min(start + rows_per_block, num_rows)
            scores_QB = torch.mm(query_QD, self._rounded(start, stop).t())
            if findable is not None:
                scores_QB.masked_fill_(~findable[start:stop], -math.inf)
            survivors.offer(start, scores_QB)
            if survivors.num_rows * HOPELESS > num_queries * (num_rows + HOPELESS**2 * top):
                return None
        return survivors.rows()

    def _bounds(self, wide_QD: Tensor, query_QD: Tensor) -> Tensor:
        """Largest error of each query's scores before they are rounded, float32 (Q, 1)."""
        dim = wide_QD.shape[1]
        lost_Q1 = torch.linalg.vector_norm(wide_QD - query_QD, dim=1, keepdim=True) * 1.001
        accumulation = 4 * error_bound(dim, self.longest + self.residual) + dim * 2.0**-100
        bounds_Q1: Tensor = lost_Q1 * self.longest + (1.001 * self.residual + accumulation)
        return bounds_Q1

    def _rounded(self, start: int, stop: int) -> Tensor:
        if len(self._space_ND):
            return self._space_ND[start:stop]
        parts = [
            self._wide(first, min(first + ROUNDED_ROWS, stop)).bfloat16()
            for first in range(start, stop, ROUNDED_ROWS)
        ]
        return torch.cat(parts)

    def _wide(self, start: int, stop: int) -> Tensor:
        """Rows as they are before rounding: float32, of length 1 when scored by cosine."""
        # Copied because torch warns of memory that must not be written, as of a mapped file.
        wide_BD = torch.from_numpy(self.rows.vectors_ND[start:stop].copy()).float()
        if self.rows.metric == "cosine":
            wide_BD /= torch.linalg.vector_norm(wide_BD, dim=1, keepdim=True)
        return wide_BD


@dataclass(slots=True, eq=False)
class _Survivors:
    """Rows whose interval reaches above the floor, of all queries together."""

    top: int
    bounds_Q1: Tensor
    num_rows: int = 0
    _lower_QK: Tensor = field(init=False)
    _least_Q1: Tensor = field(init=False)
    _parts: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    _num_blocks: int = 0

    def __post_init__(self) -> None:
        self._lower_QK = torch.empty((len(self.bounds_Q1), 0))
        self._least_Q1 = torch.full_like(self.bounds_Q1, _LOWEST)

    def offer(self, start: int, scores_QB: Tensor) -> None:
        """Take what is good enough of the rows `start` and following; never what scores -inf."""
        num_queries, num_block = scores_QB.shape
        num_groups = num_block // GROUP_ROWS
        if num_groups < self.top:
            # So few rows, or so many wanted, that every row is looked at.
            num_groups = num_block
        num_grouped = num_groups * (num_block // num_groups)
        grouped_QWG = scores_QB[:, :num_grouped].view(num_queries, -1, num_groups)
        best_QG = grouped_QWG.amax(dim=1).float()
        if self._num_blocks & (self._num_blocks - 1) == 0:
            self._raise_floor(best_QG)
        self._num_blocks += 1
        queries_P, groups_P = torch.nonzero(best_QG >= self._least_Q1, as_tuple=True)
        members_PW = grouped_QWG[queries_P, :, groups_P].float()
        pairs_M, places_M = torch.nonzero(members_PW >= self._least_Q1[queries_P], as_tuple=True)
        rows_M = start + places_M * num_groups + groups_P[pairs_M]
        self._take(queries_P[pairs_M], rows_M, members_PW[pairs_M, places_M])
        if num_grouped < num_block:
            rest_QR = scores_QB[:, num_grouped:].float()
            queries_M, places_M = torch.nonzero(rest_QR >= self._least_Q1, as_tuple=True)
            rows_M = start + num_grouped + places_M
            self._take(queries_M, rows_M, rest_QR[queries_M, places_M])

    def _take(self, queries_M: Tensor, rows_M: Tensor, scores_M: Tensor) -> None:
        self.num_rows += len(rows_M)
        self._parts.append((queries_M, rows_M, scores_M))

    def _raise_floor(self, best_QG: Tensor) -> None:
        """The best score of a group is that of a row, so its lower end counts."""
        lower_QK = torch.cat([self._lower_QK, self._lower(best_QG)], dim=1)
        if lower_QK.shape[1] > self.top:
            lower_QK = lower_QK.topk(self.top, dim=1, sorted=False).values
        self._lower_QK = lower_QK
        if lower_QK.shape[1] == self.top:
            self._least_Q1 = self._least(lower_QK.amin(dim=1, keepdim=True))

    def _lower(self, scores: Tensor) -> Tensor:
        return scores - scores.abs() * _ROUNDING - self.bounds_Q1

    def _least(self, floor_Q1: Tensor) -> Tensor:
        """The smallest score whose upper end reaches the floor."""
        least_Q1 = floor_Q1 - self.bounds_Q1
        least_Q1 -= least_Q1.abs() * _ROUNDING
        return least_Q1.clamp_min(_LOWEST)

    def rows(self) -> list[NDArray[np.int64]]:
        """Per query what is left after all rows were offered, in ascending order."""
        queries_M, rows_M, scores_M = (
            torch.cat(parts).numpy() for parts in zip(*self._parts, strict=True)
        )
        order = np.lexsort((rows_M, queries_M))
        queries_M, rows_M, scores_M = queries_M[order], rows_M[order], scores_M[order]
        ends = np.searchsorted(queries_M, np.arange(len(self.bounds_Q1) + 1))
        found = []
        for query, (start, stop) in enumerate(itertools.pairwise(ends)):
            mine = torch.from_numpy(scores_M[start:stop])
            if stop - start > self.top:
                bound = self.bounds_Q1[query]
                floor = (mine - mine.abs() * _ROUNDING - bound).topk(self.top).values[-1]
                least = floor - bound
                keep = mine >= least - least.abs() * _ROUNDING
                found.append(rows_M[start:stop][keep.numpy()])
            else:
                found.append(rows_M[start:stop])
        return found


def _length_bound(vectors_BD: Tensor) -> float:
    """At least the length of the longest row."""
    if not len(vectors_BD):
        return 0.0
    longest = float(torch.linalg.vector_norm(vectors_BD, dim=1).max())
    return longest * (1 + (vectors_BD.shape[1] + 8) * 2.0**-23)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def pays(dim: int) -> bool:
    """Whether bfloat16 products are faster than float32 ones here, and as exact as they must be.

    Args:
        dim: Number of dimensions.

    Returns:
        What was measured, in some milliseconds, once a process.
    """
    generator = torch.Generator().manual_seed(0)
    # All of one sign: the worst case for the rounding of sums.
    rows_BD = torch.rand((4096, dim), generator=generator)
    rows_BD /= torch.linalg.vector_norm(rows_BD, dim=1, keepdim=True)
    narrow_BD = rows_BD.bfloat16()
    query_QD, narrow_QD = rows_BD[:64], narrow_BD[:64]
    true_QB = narrow_QD.double() @ narrow_BD.double().t()
    scores_QB = torch.mm(narrow_QD, narrow_BD.t()).double()
    bound_QB = 4 * error_bound(dim, 1.01) + scores_QB.abs() * _ROUNDING
    if bool(((scores_QB - true_QB).abs() > bound_QB).any()):
        return False
    wide = _fastest(lambda: torch.mm(query_QD, rows_BD.t()))
    return _fastest(lambda: torch.mm(narrow_QD, narrow_BD.t())) < wide


def _fastest(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(7):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)
