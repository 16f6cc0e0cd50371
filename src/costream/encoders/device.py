"""Where and in which precision a model runs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_WORTHWHILE = 1.2


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def bf16_speedup(size: int = 768, rounds: int = 3) -> float:
    """How many times faster a bfloat16 matrix product is than a float32 one on this CPU.

    Measured once a process. Changes no random state, so it may be asked at any time.

    Args:
        size: Rows and columns of the matrices.
        rounds: Products timed of each kind after a first one; the fastest counts.

    Returns:
        Seconds in float32 divided by seconds in bfloat16; above 1 where bfloat16 is faster.
    """
    seconds: dict[torch.dtype, float] = {}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for dtype in (torch.float32, torch.bfloat16):
            # Not random numbers: a measurement must not move the generator of the run around it.
            a = torch.full((size, size), 0.5, dtype=dtype)
            times = []
            for _ in range(rounds + 1):
                start = time.perf_counter()
                torch.mm(a, a)
                times.append(time.perf_counter() - start)
            seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What to train in: bfloat16 where it is faster than float32 (measured on CPUs), else None.

    A CPU without instructions for bfloat16 emulates it, many times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if bf16_speedup() > _WORTHWHILE else None


def precision(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Mixed precision of a given type, or float32 throughout.

    Args:
        device: Where the work is done.
        dtype: Of matrix products and convolutions; None is float32.
    """
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for training: bfloat16 where it is faster, nothing elsewhere."""
    return precision(device, autocast_dtype(device))


def inference_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Precision of embedding: float32 on a CPU, so that a vector does not depend on the machine."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return autocast(device)


def training_attention(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The attention kernel to train with: the plain one on a CPU.

    The blocked CPU kernel is made for long sequences; at the 10 to 60 tokens of captions and
    feature maps the plain product took 0.6 of a training step's time in attention away.
    """
    if device.type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of handing it back to the system; a no-op elsewhere.

    Every step frees and asks for the same gigabytes of activations; getting each page zeroed anew
    by the kernel took half of the forward pass.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
