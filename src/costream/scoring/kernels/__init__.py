"""Kernels: what finds the best rows of a large matrix of vectors, behind one protocol.

Names are imported when first used: what a kernel needs is loaded with it.

Example:
    >>> import numpy as np
    >>> from costream.scoring.kernels import build
    >>> kernel = build(np.float16([[1, 0], [0, 1]]))
    >>> kernel.name, [rows.tolist() for rows in kernel.top(np.float32([[0.6, 0.8]]), 1)[0]]
    ('exact', [[1]])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.scoring.kernels.choosing import build, check_kernel, choose, installed
    from costream.scoring.kernels.exact import ExactKernel, exactly
    from costream.scoring.kernels.protocol import Found, Kernel, Metric
    from costream.scoring.kernels.rows import RowBuffer, Rows

__all__ = [
    "ExactKernel",
    "Found",
    "Kernel",
    "Metric",
    "RowBuffer",
    "Rows",
    "build",
    "check_kernel",
    "choose",
    "exactly",
    "installed",
]

_HOMES = {
    "ExactKernel": "exact",
    "Found": "protocol",
    "Kernel": "protocol",
    "Metric": "protocol",
    "RowBuffer": "rows",
    "Rows": "rows",
    "build": "choosing",
    "check_kernel": "choosing",
    "choose": "choosing",
    "exactly": "exact",
    "installed": "choosing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
