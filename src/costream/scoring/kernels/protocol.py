"""What every kernel can do: find the best rows of a matrix of vectors.

A kernel does not own the vectors. The float16 matrix that it is given, in memory or mapped from a
file, is the truth; what a kernel makes of it (codes of 8 or 4 bits, a graph) is derived
and can be thrown away and made again at any time.

Shape letters: Q queries, N rows, M some of them, D dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from costream.scoring.kernels.rows import Rows
    from costream.scoring.matrix import Matrix

# How a pair is scored: dot product, or dot product divided by both lengths.
Metric = Literal["dot", "cosine"]
# Per query the rows int64 and their scores float32, best first.
Found = tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]


class Kernel(Protocol):
    """Finds the best rows of each query.

    Scores are always those of `costream.scoring.dot.pair_scores` on the truth: summed in float64,
    rounded once to float32. Kernels differ only in whether they may miss a row.

    `top` may be called from several threads at once, also while another thread calls `grow` or
    `remove`: it then answers as before or as after the change. `grow` and `remove` are called by
    one thread at a time.
    """

    @property
    def name(self) -> str:
        """Name that `choose` and users know it by."""

    @property
    def exact(self) -> bool:
        """Whether the answers are those of a brute-force scan."""

    @property
    def memory_bytes(self) -> int:
        """Bytes held at present besides the truth."""

    @property
    def rows(self) -> Rows:
        """The truth at present; when many of its rows are removed, build the kernel anew."""

    def __len__(self) -> int:
        """Count the rows, removed ones included."""

    def top(
        self,
        queries_QD: NDArray[Any],
        top: int,
        allowed_N: NDArray[np.bool_] | None = None,
        *,
        order_N: NDArray[np.int64] | None = None,
    ) -> Found:
        """Rows and scores of the best rows of each query, best first.

        Args:
            queries_QD: Floating point (Q, D), of any length but zero.
            top: How many are wanted, at least 1; fewer come only when fewer are allowed.
            allowed_N: Which rows may be found; None for all. Removed rows are never found.
            order_N: Of equal scores the row with the smaller value comes first; None for the
                smaller row number.

        Returns:
            Per query the row numbers int64 and the scores float32.

        Raises:
            ConfigError: `top` is below 1.
            DataError: The queries or `allowed_N` have another form than expected.
            NumericalError: A query is not finite, or too short or long to be scored.
        """

    def grow(self, vectors_ND: Matrix) -> None:
        """Take in rows that were added.

        Args:
            vectors_ND: The whole truth: the old rows as they were, then the new ones.

        Raises:
            DataError: It has fewer rows than before, or another form.
        """

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Never find these rows again; the other rows keep their numbers.

        Args:
            rows: Row numbers; removed ones are ignored.

        Raises:
            DataError: There is no such row.
        """

    def deepen(self) -> None:
        """Look at twice as many rows a query from now on; an exact kernel looks at all anyway."""
