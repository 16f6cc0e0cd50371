"""A linear layer whose float32 product takes the faster of PyTorch's two libraries on a CPU.

PyTorch gives matrix products to MKL and convolutions to oneDNN. A linear layer is a convolution of
one pixel; on two cores of an AMD Zen 5 that was 2.2 times faster (180 and 400 GFLOP/s), for MKL
does not use AVX-512 there. The results differ by the rounding of float32 only.

Shape letters: T rows, K inputs, N outputs.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

# Below so many rows the time goes elsewhere.
_FEWEST_ROWS = 128


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster on some CPUs when nothing is trained."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if _is_for_onednn(input, self.weight) and mkl_is_slow():
            return _as_convolution(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


@functools.cache
def mkl_is_slow() -> bool:
    """Whether this is a processor whose widest instructions MKL leaves unused: AMD's with AVX-512.

    Asked for by name, not measured: a busy machine must not change the rounding of vectors.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    told = Path("/proc/cpuinfo")
    about = told.read_text() if told.exists() else platform.processor()
    return "AuthenticAMD" in about and torch.backends.mkldnn.is_available()


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    # Not where gradients are recorded: both directions of a training step use the same library.
    return (
        torch.is_inference_mode_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= _FEWEST_ROWS * weight.shape[1]
    )


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A column of T pixels with K channels, channels last, which is how (T, K) lies in memory."""
    outputs, inputs = weight.shape
    column = x.reshape(1, -1, 1, inputs).permute(0, 3, 1, 2)
    made = functional.conv2d(column, weight.view(outputs, inputs, 1, 1), bias)
    return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], outputs)
