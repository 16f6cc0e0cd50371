"""A linear layer whose float32 product takes the faster of PyTorch's two libraries on a CPU.

PyTorch gives matrix products to MKL and convolutions to oneDNN. A linear layer is a convolution of
one pixel; on AMD's processors that was 2.2 times faster (180 and 400 GFLOP/s on two cores of Zen 5)
and differed by the rounding of float32 only.

Shape letters: T rows, K inputs, N outputs.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

# Below so many rows the time goes elsewhere.
_FEWEST_ROWS = 128
_WORTHWHILE = 1.2


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster on some CPUs when nothing is trained."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if _is_for_onednn(input, self.weight) and onednn_speedup() > _WORTHWHILE:
            return _as_convolution(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


@functools.cache
def onednn_speedup(rows: int = 800, width: int = 768, rounds: int = 3) -> float:
    """How many times faster a linear layer is as a convolution on this CPU.

    Measured once a process, in some 50 ms. Changes no random state.

    Args:
        rows: T.
        width: K and N.
        rounds: Runs timed of each kind after a first one; the fastest counts.

    Returns:
        Seconds of the plain product divided by those of the convolution.
    """
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x = torch.full((rows, width), 0.5)
        weight, bias = torch.full((width, width), 0.5), torch.zeros(width)
        seconds = []
        for product in (functional.linear, _as_convolution):
            times = []
            for _ in range(rounds + 1):
                start = time.perf_counter()
                product(x, weight, bias)
                times.append(time.perf_counter() - start)
            seconds.append(min(times))
    return seconds[0] / seconds[1]


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    # Not where gradients are recorded or momentum towers run: a resumed training run must take the
    # same products as the first one, whatever was measured.
    return (
        torch.is_inference_mode_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= _FEWEST_ROWS * weight.shape[1]
        and torch.backends.mkldnn.is_available()
    )


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A column of T pixels with K channels, channels last, which is how (T, K) lies in memory."""
    outputs, inputs = weight.shape
    column = x.reshape(1, -1, 1, inputs).permute(0, 3, 1, 2)
    made = functional.conv2d(column, weight.view(outputs, inputs, 1, 1), bias)
    return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], outputs)
