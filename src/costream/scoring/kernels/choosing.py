"""Which kernel for how many vectors.

Shape letters: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError
from costream.scoring.kernels.protocol import Kernel, Metric

NAMES = ("exact",)


def installed() -> frozenset[str]:
    """Names of the kernels whose packages are there; looks, and imports nothing."""
    return frozenset({"exact"})


def choose(num_items: int, dim: int, available: Collection[str] | None = None) -> str:
    """Name of the kernel for a collection of some size.

    Args:
        num_items: Number of vectors.
        dim: Number of dimensions.
        available: Names of kernels that can be used; None for those installed.

    Returns:
        A name that `build` takes.
    """
    return "exact"


def build(
    vectors_ND: NDArray[np.float16], *, kernel: str | None = None, metric: Metric = "dot"
) -> Kernel:
    """Make a kernel over a matrix of vectors.

    Args:
        vectors_ND: float16 (N, D), finite, no row zero; in memory or mapped from a file. The kernel
            keeps a reference and never writes to it.
        kernel: Its name; None to go by size.
        metric: How a pair is scored.

    Returns:
        The kernel, ready to search.

    Raises:
        ConfigError: There is no kernel of that name, or its package is not installed.
        DataError: The matrix has another form.
    """
    from costream.scoring.kernels.exact import ExactKernel

    name = choose(*vectors_ND.shape) if kernel is None else kernel
    if name == "exact":
        return ExactKernel(vectors_ND, metric)
    raise ConfigError(f"got kernel={name!r}, expected one of {', '.join(NAMES)}")
