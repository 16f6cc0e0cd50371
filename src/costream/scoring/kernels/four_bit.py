"""The kernel for large collections: a scan of 4-bit codes proposes, true scores decide.

`turbovec` keeps half a byte a dimension and scans all of it, so there is nothing to train, adding a
row is cheap, and neither removals nor filters degrade it. What it proposes is scored again with the
float16 truth, of which only those rows are read: it may lie in a file that is larger than memory.

Two things are done for queries of another modality than what is stored. The mean of the rows is
taken off before they are coded: it adds the same to every score of a query, and without it the
codes spend their precision on the cone that all pictures lie in. And many more rows are proposed
than are wanted, but only those scored again that could still belong to the answer, by the known
error of a coded score.

Shape letters: Q queries, N rows, M some of them, P proposals, D dimensions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from turbovec import TurboQuantIndex  # type: ignore[import-untyped]

from costream.errors import ConfigError
from costream.scoring.dot import BLOCK_QUERIES, ExactScan, unit_queries, widen
from costream.scoring.kernels.protocol import Found, Metric
from costream.scoring.kernels.rows import Rows
from costream.scoring.matrix import Matrix

# turbovec searches in stages, of which the first compares signs only: what is proposed beyond what
# is wanted makes up for what that stage gets wrong. The more rows there are, the more of them lie
# beside the best. Of several queries at once turbovec keeps less for its later stages: twice as
# many proposals find as much as those of one query.
PROPOSALS, PROPOSALS_PER_RESULT = 60, 4
MANY_ROWS = 2**20
# Up to so many rows that can be found are all scored, which is exact.
FEW = 4096
# Times the number of proposals is raised when the last one might still belong to the answer.
MORE, MOST_ROUNDS = 4, 4
# Rows that are coded while searches wait.
CODED_ROWS = 2**14
# Rows from which the mean is taken; while there are fewer it is taken anew when they have grown.
MEAN_ROWS = 2**16
# How many standard errors below the worst result a coded score may be and still be checked.
STANDARD_ERRORS = 4.0
# Root of the mean squared error of the best 16 levels for normally distributed values.
_LEVEL_ERROR = 0.0975
_LARGEST_DIM = 16384


class FourBitKernel:
    """The best rows of each query, nearly always all of them.

    Args:
        vectors_ND: float16 (N, D), finite, no row zero; in memory or in files.
        metric: How a pair is scored.
        codes: Codes of exactly these rows, made before; None to make them.

    Attributes:
        depth: Multiplies the number of proposals; raise it when recall is too low.

    Raises:
        ConfigError: There are more than 16,384 dimensions.
    """

    name = "four_bit"
    exact = False

    def __init__(
        self,
        vectors_ND: Matrix,
        metric: Metric = "dot",
        *,
        codes: Codes | None = None,
    ) -> None:
        self.depth = 1.0
        rows = Rows(vectors_ND=vectors_ND, metric=metric)
        # One assignment, so that a search in another thread sees all of it or nothing.
        self._state = (rows, Codes.of(rows) if codes is None else codes)
        self._change = threading.Lock()

    def __len__(self) -> int:
        return len(self._state[0])

    @property
    def rows(self) -> Rows:
        """The truth at present."""
        return self._state[0]

    @property
    def codes(self) -> Codes:
        """What is searched, to be kept in a file."""
        return self._state[1]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the codes, and of a scale a row."""
        rows, codes = self._state
        return len(rows) * (codes.width // 2 + 4)

    def top(
        self,
        queries_QD: NDArray[Any],
        top: int,
        allowed_N: NDArray[np.bool_] | None = None,
        *,
        order_N: NDArray[np.int64] | None = None,
    ) -> Found:
        """Rows and scores of the best rows of each query; see `Kernel.top`."""
        rows, codes = self._state
        unit_QD = unit_queries(queries_QD, rows.vectors_ND.shape[1], top)
        findable_N = rows.findable(allowed_N, order_N)
        num_findable = len(rows) if findable_N is None else int(np.count_nonzero(findable_N))
        if num_findable <= max(top, FEW):
            scan = ExactScan(rows.vectors_ND, codes.longest, rows.metric == "cosine")
            near = scan.candidates(unit_QD, top, findable_N)
        else:
            num = math.ceil(self.depth * num_proposals(top, num_findable, len(unit_QD)))
            near = []
            for start in range(0, len(unit_QD), BLOCK_QUERIES):
                part_QD = unit_QD[start : start + BLOCK_QUERIES]
                near.extend(codes.near(rows, part_QD, top, num, findable_N, num_findable))
        return rows.decide(queries_QD, near, top, order_N)

    def grow(self, vectors_ND: Matrix) -> None:
        """Take in rows that were added; see `Kernel.grow`."""
        with self._change:
            rows, codes = self._state[0].grown(vectors_ND), self._state[1]
            if codes.num_averaged < min(MEAN_ROWS, len(rows) // 4):
                codes = Codes.of(rows)
            else:
                codes.add(rows, len(self._state[0]))
            self._state = (rows, codes)

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Never find these rows again; see `Kernel.remove`."""
        with self._change:
            self._state = (self._state[0].without(rows), self._state[1])

    def deepen(self) -> None:
        """Propose twice as many rows from now on; see `Kernel.deepen`."""
        self.depth *= 2


def num_proposals(top: int, num_rows: int, num_queries: int) -> float:
    """How many rows are proposed at first.

    Args:
        top: How many are wanted.
        num_rows: How many can be found.
        num_queries: How many queries are asked at once.

    Example:
        >>> [num_proposals(10, rows, 1) for rows in (2**18, 2**20, 2**22)]
        [100.0, 100.0, 200.0]
    """
    growth = max(1.0, math.sqrt(num_rows / MANY_ROWS))
    return (PROPOSALS + PROPOSALS_PER_RESULT * top) * growth * (1 if num_queries == 1 else 2)


@dataclass(slots=True, eq=False)
class Codes:
    """The codes of rows with their mean taken off.

    Attributes:
        mean_W: float32 (W,), what was taken off; W is D rounded up to a multiple of 8.
        num_averaged: Rows that it is the mean of.
        error: Standard error of a coded score for a query of length 1, at most.
        longest: Length of the longest row, mean included, at least.
        index: The codes.
    """

    mean_W: NDArray[np.float32]
    num_averaged: int
    error: float = 0.0
    longest: float = 0.0
    index: TurboQuantIndex = field(init=False, repr=False)
    # Held while codes are searched or added, so that a mask has as many values as there are codes.
    _using: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def of(cls, rows: Rows) -> Codes:
        """Code all rows.

        Raises:
            ConfigError: There are more dimensions than can be coded.
        """
        dim = rows.vectors_ND.shape[1]
        if not 0 < dim <= _LARGEST_DIM:
            raise ConfigError(
                f"got vectors with {dim} dimensions, expected 1 to {_LARGEST_DIM} for 4-bit codes",
                hint="choose the kernel 'exact'",
            )
        mean_W = np.zeros(-(-dim // 8) * 8, dtype=np.float32)
        sample_MW = _sample(rows, len(mean_W))
        if len(sample_MW):
            mean_W = sample_MW.mean(axis=0, dtype=np.float64).astype(np.float32)
        codes = cls(mean_W, len(sample_MW))
        codes.index = TurboQuantIndex(dim=len(mean_W), bit_width=4)
        codes.add(rows, 0)
        return codes

    @classmethod
    def read(
        cls,
        path: Path,
        mean_W: NDArray[np.float32],
        num_averaged: int,
        *,
        error: float,
        longest: float,
    ) -> Codes:
        """Codes that were written to a file before.

        Args:
            path: What `index.write` wrote.
            mean_W: As of the class.
            num_averaged: As of the class.
            error: As of the class.
            longest: As of the class.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no codes.
        """
        codes = cls(mean_W, num_averaged, error, longest)
        codes.index = TurboQuantIndex.load(str(path))
        codes.index.prepare()
        return codes

    @property
    def width(self) -> int:
        """Dimensions of what is coded."""
        return len(self.mean_W)

    def add(self, rows: Rows, start: int) -> None:
        """Code the rows from `start` on; the next ones are read while some are coded."""
        for wide_MW in self._read_ahead(rows, start):
            with self._using:
                self.index.add(wide_MW, chunk_size=0)
        with self._using:
            self.index.prepare()

    def _read_ahead(self, rows: Rows, start: int) -> Iterator[NDArray[np.float32]]:
        with ThreadPoolExecutor(1) as reader:
            waiting: Future[NDArray[np.float32]] | None = None
            for first in range(start, len(rows), CODED_ROWS):
                following = reader.submit(self._read, rows, first)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()

    def _read(self, rows: Rows, first: int) -> NDArray[np.float32]:
        """Some rows with their mean taken off, float32 (M, W)."""
        wide_MW = _wide(rows, slice(first, first + CODED_ROWS), self.width)
        self.longest = max(self.longest, _length_bound(wide_MW))
        wide_MW -= self.mean_W
        error = _LEVEL_ERROR * _length_bound(wide_MW) / math.sqrt(self.width)
        self.error = max(self.error, error)
        return wide_MW

    def near(
        self,
        rows: Rows,
        unit_QD: NDArray[np.float32],
        top: int,
        num: int,
        findable_N: NDArray[np.bool_] | None,
        num_findable: int,
    ) -> list[NDArray[np.int64]]:
        """Rows whose true scores are worth knowing.

        Args:
            rows: What is searched.
            unit_QD: float32 (Q, D), of length 1.
            top: How many best rows are wanted.
            num: How many are proposed at first.
            findable_N: bool (N,), which rows can be found; None for all.
            num_findable: How many these are.

        Returns:
            Per query int64 rows, each once.
        """
        found: dict[int, NDArray[np.int64]] = {}
        waiting = list(range(len(unit_QD)))
        for _ in range(MOST_ROUNDS):
            num = min(num, num_findable)
            proposed = self._propose(rows, unit_QD[waiting], num, findable_N)
            short = []
            for query, coded_P, rows_P in zip(waiting, *proposed, strict=True):
                first_M = rows.scores(unit_QD[query], rows_P[: 2 * top])
                # The answer holds no lower score than the last of the best so far.
                worst = np.sort(first_M)[-top:][0]
                near_P = coded_P >= worst - STANDARD_ERRORS * self.error
                near_P[: 2 * top] = True
                found[query] = rows_P[near_P]
                if near_P[-1] and num < num_findable:
                    short.append(query)
            if not short:
                break
            waiting, num = short, num * MORE
        return [found[query] for query in range(len(unit_QD))]

    def _propose(
        self,
        rows: Rows,
        unit_QD: NDArray[np.float32],
        num: int,
        findable_N: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Coded scores (Q, P) and the rows (Q, P) they belong to, best first."""
        query_QW = np.zeros((len(unit_QD), self.width), dtype=np.float32)
        query_QW[:, : unit_QD.shape[1]] = unit_QD
        with self._using:
            num_coded = len(self.index)
            if num_coded > len(rows):  # more are being added
                findable_N = _padded(findable_N, len(rows), num_coded)
            coded_QP, rows_QP = self.index.search(query_QW, num, mask=findable_N, chunk_size=0)
        return coded_QP + (query_QW @ self.mean_W)[:, None], rows_QP


def _padded(
    findable_N: NDArray[np.bool_] | None, num_rows: int, num_coded: int
) -> NDArray[np.bool_]:
    mask = np.zeros(num_coded, dtype=bool)
    mask[:num_rows] = True if findable_N is None else findable_N
    return mask


def _wide(rows: Rows, which: slice, width: int) -> NDArray[np.float32]:
    """Rows in float32 with zeros up to `width`, of length 1 when scored by cosine."""
    narrow_MD = np.ascontiguousarray(rows.vectors_ND[which])
    wide_MD = widen(narrow_MD, np.empty(narrow_MD.shape, dtype=np.float32))
    if rows.metric == "cosine":
        wide_MD /= np.sqrt(np.einsum("nd,nd->n", wide_MD, wide_MD))[:, None]
    if wide_MD.shape[1] == width:
        return wide_MD
    return np.pad(wide_MD, ((0, 0), (0, width - wide_MD.shape[1])))


def _length_bound(wide_MW: NDArray[np.float32]) -> float:
    """Length of the longest row, rounded up a little."""
    longest = float(np.sqrt(np.einsum("nd,nd->n", wide_MW, wide_MW).max()))
    bound: float = longest * (1 + (wide_MW.shape[1] + 1) * 2.0**-23)
    return bound


def _sample(rows: Rows, width: int) -> NDArray[np.float32]:
    """About MEAN_ROWS rows from all over, in pieces, which a disk reads well."""
    num_pieces = 64
    piece = MEAN_ROWS // num_pieces
    if len(rows) <= MEAN_ROWS:
        return _wide(rows, slice(0, len(rows)), width)
    starts = np.linspace(0, len(rows) - piece, num_pieces).astype(int)
    return np.concatenate([_wide(rows, slice(start, start + piece), width) for start in starts])
