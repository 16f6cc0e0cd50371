"""What kernels need of a matrix of vectors, which may lie in memory or in files.

Shape letters: N rows, M some of them, D dimensions.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Matrix(Protocol):
    """float16 (N, D), finite, no row zero; every numpy array of that form is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16."""

    @property
    def ndim(self) -> int:
        """Two."""

    @property
    def size(self) -> int:
        """N times D."""

    def __len__(self) -> int:
        """Give N."""

    def __getitem__(self, rows: Any, /) -> NDArray[np.float16]:
        """Rows by a slice or by their numbers, int64 (M,), in any order: float16 (M, D)."""
