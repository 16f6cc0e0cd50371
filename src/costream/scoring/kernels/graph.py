"""The kernel for the shortest answers: a graph of neighbours is walked, true scores decide.

`usearch` builds a hierarchical navigable small world graph. A walk looks at a few thousand rows
however many there are; building takes minutes a million rows, and queries of another modality find
fewer of the best than those like what is stored. It is never chosen unless asked for by name.

Shape letters: Q queries, N rows, M some of them, D dimensions.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index as Graph

from costream.errors import ConfigError
from costream.scoring.dot import ExactScan, longest_vector, unit_queries
from costream.scoring.kernels.protocol import Found, Metric
from costream.scoring.kernels.rows import Rows
from costream.scoring.matrix import Matrix

# Neighbours a row, and rows looked at when one is added and when one is searched for.
NEIGHBOURS, LOOKED_AT_ADDING, LOOKED_AT = 16, 128, 512
PROPOSALS, PROPOSALS_PER_RESULT = 40, 2
# Up to a share of 1 / this of all rows, or this number, those that can be found are all scored.
FEW, FEW_ROWS = 20, 50_000
# Rows that are added while searches wait.
ADDED_ROWS = 1024
# The first rows are added by one thread: several at once can leave a row without a way to it while
# there are few others.
FIRST_ROWS = 8192
# How many times as long as usual the longest vector may be when scored by dot product.
LARGEST_RATIO = 8.0


class GraphKernel:
    """Most of the best rows of each query.

    Args:
        vectors_ND: float16 (N, D), finite, no row zero; in memory or mapped from a file.
        metric: How a pair is scored.

    Attributes:
        depth: Multiplies how many rows a walk looks at; raise it when recall is too low.

    Raises:
        ConfigError: Scored by dot product, a vector is many times as long as the others.
    """

    name = "graph"
    exact = False

    def __init__(self, vectors_ND: Matrix, metric: Metric = "dot") -> None:
        self.depth = 1.0
        self._change = threading.Lock()
        # One assignment, so that a search in another thread sees all of it or nothing.
        self._state = _State.of(Rows(vectors_ND=vectors_ND, metric=metric))

    def __len__(self) -> int:
        return len(self._state.rows)

    @property
    def rows(self) -> Rows:
        """The truth at present."""
        return self._state.rows

    @property
    def memory_bytes(self) -> int:
        """Bytes of the graph, which holds the vectors in float16."""
        return int(self._state.graph.memory_usage)

    def top(
        self,
        queries_QD: NDArray[Any],
        top: int,
        allowed_N: NDArray[np.bool_] | None = None,
        *,
        order_N: NDArray[np.int64] | None = None,
    ) -> Found:
        """Rows and scores of the best rows of each query; see `Kernel.top`."""
        state = self._state
        rows = state.rows
        unit_QD = unit_queries(queries_QD, rows.vectors_ND.shape[1], top)
        findable_N = rows.findable(allowed_N, order_N)
        num_findable = len(rows) if findable_N is None else int(np.count_nonzero(findable_N))
        near = []
        for unit_D in unit_QD:
            near_M = None
            if num_findable > max(len(rows) // FEW, FEW_ROWS, top):
                # As many more as are expected to fall to the filter.
                wanted = self.depth * (PROPOSALS + PROPOSALS_PER_RESULT * top)
                num = math.ceil(wanted * len(rows) / num_findable)
                near_M = state.walk(unit_D, num, self.depth, findable_N)
            if near_M is None or len(near_M) < top:
                (near_M,) = state.scan.candidates(unit_D[None], top, findable_N)
            near.append(near_M)
        return rows.decide(queries_QD, near, top, order_N)

    def grow(self, vectors_ND: Matrix) -> None:
        """Take in rows that were added; see `Kernel.grow`."""
        with self._change:
            state = self._state
            rows = state.rows.grown(vectors_ND)
            scan = state.scan.grown(vectors_ND)
            if longest_vector(vectors_ND[len(state.rows) :]) > state.longest:
                self._state = _State.of(rows)
            else:
                self._state = replace(state, rows=rows, scan=scan)
                self._state.add(len(state.rows))

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Never find these rows again; see `Kernel.remove`."""
        with self._change:
            self._state = replace(self._state, rows=self._state.rows.without(rows))

    def deepen(self) -> None:
        """Look at twice as many rows from now on; see `Kernel.deepen`."""
        self.depth *= 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _State:
    """What a search sees all of.

    Walking by dot product gets lost when lengths differ. With one more coordinate that makes all
    rows as long as the longest, and 0 in queries, the nearest row is the one of the best product.
    """

    rows: Rows
    scan: ExactScan
    graph: Graph
    longest: float
    using: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, rows: Rows) -> _State:
        """Build the graph of all rows."""
        dim = rows.vectors_ND.shape[1]
        graph = Graph(
            ndim=dim + 1,
            metric="l2sq",
            dtype="f16",
            connectivity=NEIGHBOURS,
            expansion_add=LOOKED_AT_ADDING,
            expansion_search=LOOKED_AT,
        )
        cosine = rows.metric == "cosine"
        state = cls(
            rows=rows,
            scan=ExactScan(rows.vectors_ND, cosine=cosine),
            graph=graph,
            longest=math.inf if cosine else _checked_longest(rows.vectors_ND),
        )
        state.add(0)
        return state

    def add(self, start: int) -> None:
        """Put the rows from `start` on into the graph."""
        for first in range(start, len(self.rows), ADDED_ROWS):
            narrow_MD = self.rows.vectors_ND[first : first + ADDED_ROWS]
            wide_MD = narrow_MD.astype(np.float32)
            squares_M = np.einsum("nd,nd->n", wide_MD, wide_MD)
            if self.rows.metric == "cosine":
                wide_MD /= np.sqrt(squares_M)[:, None]
                rest_M = np.zeros(len(wide_MD), dtype=np.float32)
            else:
                rest_M = np.sqrt(np.maximum(np.float32(self.longest**2) - squares_M, 0))
            keys_M = np.arange(first, first + len(wide_MD), dtype=np.uint64)
            threads = 1 if first < FIRST_ROWS else 0
            with self.using:
                self.graph.add(keys_M, np.column_stack([wide_MD, rest_M]), threads=threads)

    def walk(
        self,
        unit_D: NDArray[np.float32],
        num: int,
        depth: float,
        findable_N: NDArray[np.bool_] | None,
    ) -> NDArray[np.int64]:
        """Rows near a query, in no order: at most `num`, less those that cannot be found."""
        query_D = np.append(unit_D, np.float32(0))
        with self.using:
            looked_at = max(math.ceil(LOOKED_AT * depth), num)
            self.graph.expansion_search = looked_at  # type: ignore[misc]
            keys_M = self.graph.search(query_D, num).keys
        rows_M = keys_M.astype(np.int64)
        # More rows may have been added since this state was taken.
        rows_M = rows_M[rows_M < len(self.rows)]
        return rows_M if findable_N is None else rows_M[findable_N[rows_M]]


def _checked_longest(vectors_ND: Matrix) -> float:
    """Length of the longest row.

    Raises:
        ConfigError: It is so long that the differences between the others would be lost.
    """
    longest = longest_vector(vectors_ND)
    sample_MD = vectors_ND[:: len(vectors_ND) // 1000 + 1].astype(np.float32)
    usual = float(np.median(np.linalg.norm(sample_MD, axis=1))) if len(sample_MD) else longest
    if longest > LARGEST_RATIO * usual:
        raise ConfigError(
            f"got a vector of length {longest:.3g} where {usual:.3g} is usual, "
            f"expected at most {LARGEST_RATIO:g} times as long for a graph",
            hint="score by cosine, or choose another kernel",
        )
    return longest
