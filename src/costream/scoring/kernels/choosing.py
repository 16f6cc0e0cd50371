"""Which kernel for how many vectors.

Measured on two cores with 512 dimensions, one query: see `docs/benchmarks.md`. The exact kernel is
used as long as nobody would notice that it is slower, since its answers need no audit.

Shape letters: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

from costream.errors import ConfigError
from costream.scoring.kernels.protocol import Kernel, Metric
from costream.scoring.matrix import Matrix

# Kernel to the package that it needs and the extra that brings it.
_NEEDS = {"exact": ("numpy", ""), "four_bit": ("turbovec", "fast"), "graph": ("usearch", "graph")}
NAMES = tuple(_NEEDS)
# Numbers above which an exact search of one query takes more than about 10 ms.
EXACT_UP_TO = 2**27


def installed() -> frozenset[str]:
    """Names of the kernels whose packages are there; looks, and imports nothing."""
    return frozenset(name for name, (package, _) in _NEEDS.items() if find_spec(package))


def choose(num_items: int, dim: int, available: Collection[str] | None = None) -> str:
    """Name of the kernel for a collection of some size.

    A graph is never chosen: it answers sooner than a scan, but it takes minutes a million vectors
    to build and finds fewer of the best for queries of another modality. Ask for it by name.

    Args:
        num_items: Number of vectors.
        dim: Number of dimensions.
        available: Names of kernels that can be used; None for those installed.

    Returns:
        A name that `build` takes.

    Example:
        >>> choose(10_000, 512, ["exact", "four_bit"]), choose(10**6, 512, ["exact", "four_bit"])
        ('exact', 'four_bit')
    """
    if num_items * dim > EXACT_UP_TO and "four_bit" in (
        installed() if available is None else available
    ):
        return "four_bit"
    return "exact"


def check_kernel(name: str) -> None:
    """Refuse a kernel that cannot be had.

    Raises:
        ConfigError: There is no kernel of that name, or its package is not installed.
    """
    if name not in _NEEDS:
        raise ConfigError(f"got kernel={name!r}, expected one of {', '.join(NAMES)}")
    package, extra = _NEEDS[name]
    if not find_spec(package):
        raise ConfigError(
            f"the kernel {name!r} needs {package}, which is not installed",
            hint=f"pip install 'costream[{extra}]'",
        )


def build(vectors_ND: Matrix, *, kernel: str | None = None, metric: Metric = "dot") -> Kernel:
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
    name = choose(len(vectors_ND), vectors_ND.shape[1]) if kernel is None else kernel
    check_kernel(name)
    # Imported here because each brings its own package.
    if name == "four_bit":
        from costream.scoring.kernels.four_bit import FourBitKernel

        return FourBitKernel(vectors_ND, metric)
    if name == "graph":
        from costream.scoring.kernels.graph import GraphKernel

        return GraphKernel(vectors_ND, metric)
    from costream.scoring.kernels.exact import ExactKernel

    return ExactKernel(vectors_ND, metric)
