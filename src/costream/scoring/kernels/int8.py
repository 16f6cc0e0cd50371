"""A pass over the vectors in 8-bit integers, a quarter of what float32 reads, with a proven bound.

Rows and queries are first turned by one orthogonal matrix, which changes no score but spreads the
few large coordinates that many models have. 32 rows whose largest coordinates are then alike share
a scale s: a row x is kept as integers c between -127 and 127 with x' = s c, and a query q of length
1 likewise as q'. The product of integers is exact, so that the errors that count are of rounding:

    |q . x - q' . x'| <= |x - x'| + |q - q'| |x'|

by the inequality of Cauchy and Schwarz, since q . x - q' . x' = q . (x - x') + (q - q') . x'. The
lengths of the differences are measured, not estimated.

So every score lies in a known interval. The `top`-th best lower end found so far is a floor: a row
whose upper end is below it cannot belong to the answer. Of each 32 rows the best score only is
compared at first. What is left, some hundred rows a query, is scored in float32, whose interval is
a thousandth of that, before anything is summed in float64.

Shape letters: Q queries, N rows, B rows of a block, S of a slice, G groups, W rows of a group, D
dimensions, R turned together.
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

# Codes of one block: 32 MB at 512 dimensions. The rows after the last whole block are in smaller
# ones, of which the last is coded again with each addition.
BLOCK_ROWS = 2**16
LAST_ROWS = 2**13
GROUP_ROWS = 32
# Rows coded at a time: 1 MB as float32, a multiple of a group.
CODED_ROWS = 512
# Coordinates that are turned together, at most.
TURNED = 128
# Queries at a time: their scores of a block stay in the processor's cache.
BATCH_QUERIES = 128
# When more than N / this rows a query are left, float32 is faster: many near ties, or lengths that
# differ by orders of magnitude.
HOPELESS = 64
# The codes may take up to this share of the machine's memory.
MEMORY_SHARE = 0.4

_LARGEST = 127
_SMALLEST = 2.0**-100
# Of the conversion of a score to float32 and its scaling.
_ROUNDING = 2.0**-21
_HIDDEN = torch.iinfo(torch.int32).min
_LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Codes of some neighbouring rows, in groups with a scale each.

    Attributes:
        codes_BD: int8, rows that fill the last group are zero.
        rows_B: int64, the row of each code; -1 for those that fill.
        scales_G: float32.
        lengths_G: At least |x'| of each row of the group.
        errors_G: At least the error of a score by the rounding of the group's rows.
    """

    codes_BD: Tensor
    rows_B: Tensor
    scales_G: Tensor
    lengths_G: Tensor
    errors_G: Tensor

    @classmethod
    def of(cls, rows: Rows, start: int, stop: int) -> _Block:
        rows_B = np.arange(start, stop)
        largest_B = torch.cat([_largest(_wide(rows, some)) for some in _slices(rows_B)])
        largest_B, order_B = largest_B.sort()
        rows_B = rows_B[order_B.numpy()]
        num_filled = -len(rows_B) % GROUP_ROWS
        largest_B = torch.cat([largest_B, largest_B[-1:].expand(num_filled)])
        filled_B = np.concatenate([rows_B, rows_B[-1:].repeat(num_filled)])
        scales_G = (largest_B.view(-1, GROUP_ROWS).amax(dim=1) / _LARGEST).clamp_min_(_SMALLEST)
        codes_BD = torch.empty((len(filled_B), rows.vectors_ND.shape[1]), dtype=torch.int8)
        lengths, residuals = [], []
        place = 0
        for some in _slices(filled_B):
            wide_SD = _wide(rows, some)
            here = slice(place, place + len(some))
            scales_S1 = scales_G.repeat_interleave(GROUP_ROWS)[here, None]
            rounded_SD = _code(wide_SD, scales_S1)
            codes_BD[here] = rounded_SD
            rounded_SD *= scales_S1
            lengths.append(_longest(rounded_SD))
            residuals.append(_longest(wide_SD.sub_(rounded_SD)))
            place += len(some)
        if num_filled:
            codes_BD[-num_filled:] = 0
            filled_B[-num_filled:] = -1
        lengths_G, residuals_G = torch.cat(lengths), torch.cat(residuals)
        dim = codes_BD.shape[1]
        return cls(
            codes_BD=codes_BD,
            rows_B=torch.from_numpy(filled_B),
            scales_G=scales_G,
            lengths_G=lengths_G,
            errors_G=residuals_G * 1.001 + 4 * error_bound(dim, float(lengths_G.max()) * 1.01),
        )

    def hidden(self, findable_N: Tensor | None) -> Tensor | None:
        """Which codes may not be found, bool (B,); None when all may."""
        filled_B = self.rows_B < 0
        if findable_N is None:
            return filled_B if filled_B[-1] else None
        return filled_B | ~findable_N[self.rows_B]


@dataclass(frozen=True, slots=True, eq=False)
class Int8Pass:
    """Proposes rows that may be among the best.

    Attributes:
        rows: What is searched.
    """

    rows: Rows
    _blocks: tuple[_Block, ...] = field(repr=False)

    @classmethod
    def of(cls, rows: Rows, before: Int8Pass | None = None) -> Int8Pass:
        """Code all rows, or only those that are not in the same block of `before`.

        Args:
            rows: What is searched, no row zero.
            before: The pass over the first of these rows.
        """
        known: dict[tuple[int, int], _Block] = {}
        if before is not None:
            known = dict(zip(_bounds(len(before.rows)), before._blocks, strict=True))
        bounds = _bounds(len(rows))
        return cls(rows, tuple(known.get(each) or _Block.of(rows, *each) for each in bounds))

    @property
    def memory_bytes(self) -> int:
        """Bytes of the codes and of what goes with them."""
        return sum(
            each.numel() * each.element_size()
            for block in self._blocks
            for each in (block.codes_BD, block.rows_B, block.scales_G)
        )

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
        if not len(self.rows):
            return [np.empty(0, dtype=np.int64)] * len(unit_QD)
        findable = None if findable_N is None else torch.from_numpy(findable_N)
        hidden = [block.hidden(findable) for block in self._blocks]
        found: list[NDArray[np.int64]] = []
        for start in range(0, len(unit_QD), BATCH_QUERIES):
            survivors = _Survivors(_Queries.of(unit_QD[start : start + BATCH_QUERIES]), top)
            for block, hidden_B in zip(self._blocks, hidden, strict=True):
                survivors.offer(block, hidden_B)
                if survivors.too_many(len(self.rows)):
                    return None
            found += survivors.rows()
        return [
            _narrowed(self.rows, unit_D, near_M, top)
            for unit_D, near_M in zip(unit_QD, found, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """Queries in 8 bits.

    Attributes:
        codes_QD: int8.
        scales_Q1: float32.
        residuals_Q1: At least |q - q'|.
    """

    codes_QD: Tensor
    scales_Q1: Tensor
    residuals_Q1: Tensor

    @classmethod
    def of(cls, unit_QD: NDArray[np.float32]) -> _Queries:
        wide_QD = _turned(torch.from_numpy(unit_QD))
        scales_Q1 = _largest(wide_QD)[:, None] / _LARGEST
        codes_QD = _code(wide_QD, scales_Q1)
        residuals_Q1 = _longest(wide_QD - codes_QD * scales_Q1, group_rows=1)[:, None]
        return cls(codes_QD.to(torch.int8), scales_Q1, residuals_Q1)

    def errors(self, block: _Block) -> Tensor:
        """At least the error of the score of any row of a group, float32 (Q, G)."""
        return torch.addcmul(block.errors_G, self.residuals_Q1, block.lengths_G, value=1.001)


@dataclass(slots=True, eq=False)
class _Survivors:
    """Rows whose interval reaches above the floor, of all queries together."""

    queries: _Queries
    top: int
    num_rows: int = 0
    _floor_Q1: Tensor = field(init=False)
    _lower_QK: Tensor = field(init=False)
    _parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    _num_blocks: int = 0

    def __post_init__(self) -> None:
        num_queries = len(self.queries.codes_QD)
        self._lower_QK = torch.empty((num_queries, 0))
        self._floor_Q1 = torch.full((num_queries, 1), _LOWEST)

    def offer(self, block: _Block, hidden_B: Tensor | None) -> None:
        """Take what is good enough of a block."""
        products_QB = torch._int_mm(self.queries.codes_QD, block.codes_BD.t())
        if hidden_B is not None:
            products_QB.masked_fill_(hidden_B, _HIDDEN)
        scales_QG = self.queries.scales_Q1 * block.scales_G
        errors_QG = self.queries.errors(block)
        group_rows = GROUP_ROWS
        if len(block.scales_G) < self.top:
            # So many are wanted that each row is looked at.
            group_rows = 1
            scales_QG = scales_QG.repeat_interleave(GROUP_ROWS, dim=1)
            errors_QG = errors_QG.repeat_interleave(GROUP_ROWS, dim=1)
        products_QGW = products_QB.view(len(products_QB), -1, group_rows)
        best_QG = _scores(products_QGW.amax(dim=2), scales_QG, hidden_B)
        # The best of a group is the score of a row, so that its lower end counts.
        if self._num_blocks & (self._num_blocks - 1) == 0:
            self._raise_floor(_lower(best_QG, errors_QG))
        self._num_blocks += 1
        hopeful_QG = _upper(best_QG, errors_QG) >= self._floor_Q1
        queries_P, groups_P = torch.nonzero(hopeful_QG, as_tuple=True)
        products_PW = products_QGW[queries_P, groups_P]
        scores_PW = _scores(products_PW, scales_QG[queries_P, groups_P, None], hidden_B)
        errors_P1 = errors_QG[queries_P, groups_P, None]
        upper_PW = _upper(scores_PW, errors_P1)
        pairs_M, places_M = torch.nonzero(upper_PW >= self._floor_Q1[queries_P], as_tuple=True)
        rows_M = block.rows_B[groups_P[pairs_M] * group_rows + places_M]
        self.num_rows += len(rows_M)
        lower_M = _lower(scores_PW, errors_P1)[pairs_M, places_M]
        self._parts.append((queries_P[pairs_M], rows_M, lower_M, upper_PW[pairs_M, places_M]))

    def too_many(self, num_rows: int) -> bool:
        """Whether another way is faster."""
        return self.num_rows * HOPELESS > len(self._floor_Q1) * (num_rows + HOPELESS**2 * self.top)

    def _raise_floor(self, lower_QG: Tensor) -> None:
        lower_QK = torch.cat([self._lower_QK, lower_QG], dim=1)
        if lower_QK.shape[1] >= self.top:
            lower_QK = lower_QK.topk(self.top, dim=1, sorted=False).values
            self._floor_Q1 = lower_QK.amin(dim=1, keepdim=True).clamp_min(_LOWEST)
        self._lower_QK = lower_QK

    def rows(self) -> list[NDArray[np.int64]]:
        """Per query what is left after all rows were offered, in ascending order."""
        queries_M, rows_M, lower_M, upper_M = (
            torch.cat(parts).numpy() for parts in zip(*self._parts, strict=True)
        )
        order = np.lexsort((rows_M, queries_M))
        ends = np.searchsorted(queries_M[order], np.arange(len(self._floor_Q1) + 1))
        found = []
        for start, stop in itertools.pairwise(ends):
            mine = order[start:stop]
            if len(mine) > self.top:
                floor = np.partition(lower_M[mine], -self.top)[-self.top]
                mine = mine[upper_M[mine] >= floor]
            found.append(rows_M[mine])
        return found


def _narrowed(
    rows: Rows, unit_D: NDArray[np.float32], near_M: NDArray[np.int64], top: int
) -> NDArray[np.int64]:
    """Those of some rows that may be among the best by a float32 product and its bound."""
    if len(near_M) <= 2 * top:
        return near_M
    wide_MD = torch.from_numpy(rows.vectors_ND[near_M]).float()
    scores_M = wide_MD @ torch.from_numpy(unit_D)
    lengths_M = torch.linalg.vector_norm(wide_MD, dim=1)
    if rows.metric == "cosine":
        scores_M /= lengths_M
        # The length is itself off by fewer roundings than a dot product has.
        bound = 2 * error_bound(len(unit_D), 1.0)
    else:
        bound = error_bound(len(unit_D), float(lengths_M.max()) * 1.001)
    floor = float(scores_M.topk(top).values[-1]) - 2 * bound
    kept_M: NDArray[np.int64] = near_M[(scores_M >= floor).numpy()]
    return kept_M


def _scores(products: Tensor, scales: Tensor, hidden_B: Tensor | None) -> Tensor:
    """Scores of products; -inf of those that are hidden."""
    scores = products * scales
    return scores if hidden_B is None else scores.masked_fill_(products == _HIDDEN, -math.inf)


def _lower(scores: Tensor, errors: Tensor) -> Tensor:
    return torch.add(scores, scores.abs(), alpha=-_ROUNDING).sub_(errors)


def _upper(scores: Tensor, errors: Tensor) -> Tensor:
    """Upper ends; NaN, which is above no floor, of what is hidden."""
    return torch.add(scores, scores.abs(), alpha=_ROUNDING).add_(errors)


def _code(wide: Tensor, scales: Tensor) -> Tensor:
    return (wide / scales).round_().clamp_(-_LARGEST, _LARGEST)


def _bounds(num_rows: int) -> list[tuple[int, int]]:
    """First row of each block and the one after its last."""
    num_whole = num_rows - num_rows % BLOCK_ROWS
    starts = [*range(0, num_whole, BLOCK_ROWS), *range(num_whole, num_rows, LAST_ROWS), num_rows]
    return list(itertools.pairwise(starts))


def _slices(rows_B: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows_B[start : start + CODED_ROWS] for start in range(0, len(rows_B), CODED_ROWS)]


def _wide(rows: Rows, rows_S: NDArray[np.int64]) -> Tensor:
    """Rows as they are scored, turned: float32, of length 1 when scored by cosine."""
    wide_SD = torch.from_numpy(rows.vectors_ND[rows_S]).float()
    if rows.metric == "cosine":
        wide_SD /= torch.linalg.vector_norm(wide_SD, dim=1, keepdim=True)
    return _turned(wide_SD)


def _turned(wide_SD: Tensor) -> Tensor:
    rotation_RR = _rotation(wide_SD.shape[1])
    return torch.mm(wide_SD.reshape(-1, len(rotation_RR)), rotation_RR).view(wide_SD.shape)


@functools.cache
def _rotation(dim: int) -> Tensor:
    """An orthogonal matrix for as many coordinates as divide `dim`."""
    size = max(each for each in range(1, min(dim, TURNED) + 1) if dim % each == 0)
    values_RR = np.random.default_rng(0).standard_normal((size, size))
    return torch.from_numpy(np.linalg.qr(values_RR).Q.astype(np.float32))


def _largest(wide_SD: Tensor) -> Tensor:
    """The largest absolute coordinate of each row."""
    return torch.maximum(wide_SD.amax(dim=1), -wide_SD.amin(dim=1))


def _longest(vectors_BD: Tensor, group_rows: int = GROUP_ROWS) -> Tensor:
    """At least the length of the longest row of each group."""
    lengths_B: Tensor = torch.linalg.vector_norm(vectors_BD, dim=1)
    room = 1 + (vectors_BD.shape[1] + 8) * 2.0**-23
    return lengths_B.view(-1, group_rows).amax(dim=1) * room


def fits(num_rows: int, dim: int) -> bool:
    """Whether the codes of so many rows may be held in memory."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return num_rows * dim <= MEMORY_SHARE * memory_bytes


@functools.cache
def pays(dim: int) -> bool:
    """Whether products of integers are faster than those of float32 here, and exact.

    Args:
        dim: Number of dimensions.

    Returns:
        What was measured, in some milliseconds, once a process.
    """
    generator = torch.Generator().manual_seed(0)
    codes_BD = torch.randint(-_LARGEST, _LARGEST + 1, (4096, dim), generator=generator)
    # The largest sums, of either sign.
    codes_BD[:64] = _LARGEST
    codes_BD[64:128] = -_LARGEST
    narrow_BD, wide_BD = codes_BD.to(torch.int8), codes_BD.float()
    if not torch.equal(
        torch._int_mm(narrow_BD[:128], narrow_BD.t()).long(), codes_BD[:128] @ codes_BD.t()
    ):
        return False
    wide = _fastest(lambda: torch.mm(wide_BD[:64], wide_BD.t()))
    return _fastest(lambda: torch._int_mm(narrow_BD[:64], narrow_BD.t())) < wide


def _fastest(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(7):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)
