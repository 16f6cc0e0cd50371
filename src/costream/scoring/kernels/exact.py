"""The kernel that misses nothing: a fast pass proposes, true scores decide.

Small collections, and the first passes over large ones, are scanned in float32 by numpy
(`costream.scoring.dot`). A large collection that is searched again and again is scanned in 8-bit
integers by torch: a quarter of the memory to read, and several times the arithmetic on processors
with instructions for it. Either way the fast scores carry a proven bound on their error, everything
within the bound of the best is scored again in float64, and the answers are the same to the last
bit.

Shape letters: Q queries, N rows, D dimensions.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costream.scoring.dot import ExactScan, unit_queries
from costream.scoring.kernels.protocol import Found, Metric
from costream.scoring.kernels.rows import Rows
from costream.scoring.matrix import Matrix

if TYPE_CHECKING:
    from costream.scoring.kernels.int8 import Int8Pass

# Below this many numbers a float32 pass takes a few milliseconds and integers gain nothing.
LARGE = 2**25
# Importing torch and coding everything takes as long as about this many float32 passes.
PASSES_BEFORE_TORCH = 8
# Up to a share of 1 / this of all rows, fetching those wanted is faster than a pass over integers.
FEW = 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _State:
    """What a search sees all of; replaced as a whole when anything changes."""

    rows: Rows
    scan: ExactScan
    low: Int8Pass | None = None


class ExactKernel:
    """The best rows of each query as a brute-force scan would find them.

    Args:
        vectors_ND: float16 (N, D), finite, no row zero.
        metric: How a pair is scored.

    Example:
        >>> kernel = ExactKernel(np.float16([[1, 0], [0, 1], [2, 0]]), metric="cosine")
        >>> rows, scores = kernel.top(np.float32([[3, 0]]), 2)
        >>> rows[0].tolist(), scores[0].tolist()
        ([0, 2], [1.0, 1.0])
    """

    name = "exact"
    exact = True

    def __init__(self, vectors_ND: Matrix, metric: Metric = "dot") -> None:
        rows = Rows(vectors_ND=vectors_ND, metric=metric)
        self._state = _State(rows=rows, scan=ExactScan(vectors_ND, cosine=metric == "cosine"))
        self._num_passes = 0
        self._change = threading.Lock()

    def __len__(self) -> int:
        return len(self._state.rows)

    @property
    def rows(self) -> Rows:
        """The truth at present."""
        return self._state.rows

    @property
    def memory_bytes(self) -> int:
        """Bytes of the copies that are held at present."""
        low = self._state.low
        return self._state.scan.memory_bytes + (low.memory_bytes if low else 0)

    def top(
        self,
        queries_QD: NDArray[Any],
        top: int,
        allowed_N: NDArray[np.bool_] | None = None,
        *,
        order_N: NDArray[np.int64] | None = None,
    ) -> Found:
        """Rows and scores of the best rows of each query; see `Kernel.top`."""
        state = self._ready()
        rows = state.rows
        unit_QD = unit_queries(queries_QD, rows.vectors_ND.shape[1], top)
        findable_N = rows.findable(allowed_N, order_N)
        candidates = self._candidates(state, unit_QD, top, findable_N)
        return rows.decide(queries_QD, candidates, top, order_N)

    def _candidates(
        self,
        state: _State,
        unit_QD: NDArray[np.float32],
        top: int,
        findable_N: NDArray[np.bool_] | None,
    ) -> list[NDArray[np.int64]]:
        few = findable_N is not None and np.count_nonzero(findable_N) * FEW <= len(state.rows)
        if state.low is not None and not few:
            found = state.low.candidates(unit_QD, top, findable_N)
            if found is not None:
                return found
        return state.scan.candidates(unit_QD, top, findable_N)

    def _ready(self) -> _State:
        """The present state, with integer codes as soon as that pays."""
        state = self._state
        self._num_passes += 1
        is_late = self._num_passes > (1 if "torch" in sys.modules else PASSES_BEFORE_TORCH)
        if state.low is None and state.rows.vectors_ND.size >= LARGE and is_late:
            from costream.scoring.kernels.int8 import Int8Pass, fits, pays

            with self._change:
                state = self._state
                shape = state.rows.vectors_ND.shape
                if state.low is None and fits(*shape) and pays(shape[1]):
                    state = self._state = replace(state, low=Int8Pass.of(state.rows))
        return state

    def grow(self, vectors_ND: Matrix) -> None:
        """Take in rows that were added; see `Kernel.grow`."""
        with self._change:
            state = self._state
            rows, low = state.rows.grown(vectors_ND), state.low
            if low is not None:
                low = type(low).of(rows, low)
            self._state = _State(rows=rows, scan=state.scan.grown(vectors_ND), low=low)

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Never find these rows again; see `Kernel.remove`."""
        with self._change:
            self._state = replace(self._state, rows=self._state.rows.without(rows))

    def deepen(self) -> None:
        """Nothing to do: every row is looked at."""


def exactly(
    rows: Rows,
    queries_QD: NDArray[Any],
    top: int,
    allowed_N: NDArray[np.bool_] | None = None,
) -> Found:
    """The answer of a brute-force scan, in one pass that keeps nothing.

    Args:
        rows: What is searched.
        queries_QD: Floating point (Q, D), of any length but zero.
        top: How many are wanted, at least 1.
        allowed_N: As of `Kernel.top`.

    Returns:
        As `Kernel.top`.

    Raises:
        ConfigError: As of `Kernel.top`.
        DataError: As of `Kernel.top`.
        NumericalError: As of `Kernel.top`.
    """
    unit_QD = unit_queries(queries_QD, rows.vectors_ND.shape[1], top)
    scan = ExactScan(rows.vectors_ND, cosine=rows.metric == "cosine")
    near = scan.candidates(unit_QD, top, rows.findable(allowed_N))
    return rows.decide(queries_QD, near, top)
