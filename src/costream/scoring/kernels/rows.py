"""The matrix behind a kernel: which rows it has, which may be found, and how a pair is scored.

Shape letters: Q queries, N rows, M some of them, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError
from costream.scoring.dot import pair_scores
from costream.scoring.kernels.protocol import Found, Metric
from costream.scoring.matrix import Matrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """One state of the truth; a change makes another, so that searches under way see one state.

    Attributes:
        vectors_ND: float16 (N, D), finite, no row zero; in memory or in files.
        metric: How a pair is scored.
        alive_N: bool (N,), False for removed rows; None while there are none.
        num_removed: How many are False.
    """

    vectors_ND: Matrix
    metric: Metric = "dot"
    alive_N: NDArray[np.bool_] | None = None
    num_removed: int = 0

    def __post_init__(self) -> None:
        vectors_ND = self.vectors_ND
        if vectors_ND.dtype != np.float16 or vectors_ND.ndim != 2:
            raise DataError(
                f"got vectors of type {vectors_ND.dtype} and shape {vectors_ND.shape}, "
                "expected float16 (N, D)"
            )
        if self.metric not in ("dot", "cosine"):
            raise ConfigError(f"got metric={self.metric!r}, expected 'dot' or 'cosine'")

    def __len__(self) -> int:
        return len(self.vectors_ND)

    def grown(self, vectors_ND: Matrix) -> Rows:
        """The state with more rows.

        Raises:
            DataError: There are fewer, or they have another form.
        """
        num_new = len(vectors_ND) - len(self)
        if num_new < 0 or vectors_ND.shape[1:] != self.vectors_ND.shape[1:]:
            raise DataError(
                f"got vectors of shape {vectors_ND.shape}, "
                f"expected at least the {self.vectors_ND.shape} that are known",
                hint="pass the whole matrix, old rows first",
            )
        alive_N = self.alive_N
        if alive_N is not None:
            alive_N = np.concatenate([alive_N, np.ones(num_new, dtype=bool)])
        return replace(self, vectors_ND=vectors_ND, alive_N=alive_N)

    def without(self, rows: NDArray[np.int64]) -> Rows:
        """The state without some rows.

        Raises:
            DataError: There is no such row.
        """
        if len(rows) and not (0 <= int(rows.min()) and int(rows.max()) < len(self)):
            raise DataError(
                f"got a row that is not among the {len(self)} known, expected one of them"
            )
        alive_N = np.ones(len(self), dtype=bool) if self.alive_N is None else self.alive_N.copy()
        alive_N[rows] = False
        return replace(
            self, alive_N=alive_N, num_removed=len(self) - int(np.count_nonzero(alive_N))
        )

    def findable(
        self,
        allowed_N: NDArray[np.bool_] | None,
        order_N: NDArray[np.int64] | None = None,
    ) -> NDArray[np.bool_] | None:
        """Which rows may be found: allowed and not removed; None for all.

        Args:
            allowed_N: bool, which rows are allowed; rows after its end are not, so that what was
                prepared before rows were added stays valid. None for all.
            order_N: Rows after its end have no place among equal scores and are left out, too.

        Raises:
            DataError: `allowed_N` is not boolean or longer than there are rows.
        """
        limits = [array for array in (allowed_N, order_N) if array is not None]
        if allowed_N is not None and allowed_N.dtype != np.bool_:
            raise DataError(f"got allowed rows of type {allowed_N.dtype}, expected bool")
        for array in limits:
            if array.ndim != 1 or len(array) > len(self):
                raise DataError(
                    f"got an array of shape {array.shape} for {len(self)} rows",
                    hint="one value a row, in their order",
                )
        if not limits:
            return self.alive_N
        num_known = min(map(len, limits))
        if num_known == len(self) and allowed_N is None:
            return self.alive_N
        findable_N = np.zeros(len(self), dtype=bool)
        findable_N[:num_known] = True if allowed_N is None else allowed_N[:num_known]
        return findable_N if self.alive_N is None else findable_N & self.alive_N

    def scores(self, query_D: NDArray[Any], rows_M: NDArray[np.int64]) -> NDArray[np.float32]:
        """True scores of some rows, float32 (M,)."""
        cosine = self.metric == "cosine"
        return pair_scores(query_D.astype(np.float32), self.vectors_ND[rows_M], cosine=cosine)

    def decide(
        self,
        queries_QD: NDArray[Any],
        near: Sequence[NDArray[np.int64]],
        top: int,
        order_N: NDArray[np.int64] | None = None,
    ) -> Found:
        """The best of the rows that were proposed, by their true scores.

        Args:
            queries_QD: Floating point (Q, D).
            near: Per query the proposed rows, each once.
            top: How many at most.
            order_N: Rank among equal scores; None for the row number.

        Returns:
            Per query rows int64 and scores float32, best first.
        """
        rows: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        for query_D, near_M in zip(queries_QD, near, strict=True):
            scores_M = self.scores(query_D, near_M)
            ranks_M = near_M if order_N is None else order_N[near_M]
            best = np.lexsort((ranks_M, -scores_M))[:top]
            rows.append(near_M[best])
            scores.append(scores_M[best])
        return rows, scores


@dataclass(slots=True)
class RowBuffer:
    """A float16 matrix in memory that grows at its end, at a cost of O(1) a row.

    Attributes:
        dim: Number of columns.

    Example:
        >>> buffer = RowBuffer(2)
        >>> buffer.append(np.float16([[1, 2]])).shape
        (1, 2)
        >>> buffer.append(np.float16([[3, 4], [5, 6]])).tolist()
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    """

    dim: int
    _num_rows: int = field(default=0, init=False)
    _space: NDArray[np.float16] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._space = np.empty((0, self.dim), dtype=np.float16)

    @property
    def vectors(self) -> NDArray[np.float16]:
        """What was appended so far; stays as it is when more comes."""
        return self._space[: self._num_rows]

    def append(self, vectors_MD: NDArray[Any]) -> NDArray[np.float16]:
        """Add rows.

        Args:
            vectors_MD: Floating point (M, D).

        Returns:
            The whole matrix, as `Kernel.grow` wants it.
        """
        total = self._num_rows + len(vectors_MD)
        if total > len(self._space):
            space = np.empty((max(total, 2 * self._num_rows), self.dim), dtype=np.float16)
            space[: self._num_rows] = self.vectors
            self._space = space
        self._space[self._num_rows : total] = vectors_MD
        self._num_rows = total
        return self.vectors
