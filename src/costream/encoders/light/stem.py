"""EfficientNet-Lite in numpy, on one picture at a time.

Shape letters: H rows, W columns, C channels, O output channels, K side of a filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from costream.encoders.efficientnet_plan import NORM_EPS, BlockPlan, plan_stages, same_padding
from costream.encoders.light.layers import Array, Weights
from costream.encoders.light.model_files import Choices

STEM: Final[Choices] = {"width_factor": None, "depth_factor": None, "num_frozen_stages": None}
"""Every option of a stem, with the values that are implemented here."""


class LightStem:
    """The convolutional part of EfficientNet-Lite, with its 1x1 head.

    Args:
        weights: Of the model.
        name: Of the stem among them.
        settings: Its options, of the kind that `STEM` lists.
    """

    def __init__(self, weights: Weights, name: str, settings: Mapping[str, Any]) -> None:
        self._weights, self._name = weights, name
        self._stages = plan_stages(settings["width_factor"], settings["depth_factor"])

    def __call__(self, picture: Array) -> Array:
        """Normalised pixels (H, W, 3) to a feature map (ceil(H / 32), ceil(W / 32), 1280)."""
        windows = _windows(picture, kernel=3, stride=2)
        x = _relu6(_pointwise(windows.reshape(*windows.shape[:2], -1), *self._folded("stem")))
        for number, stage in enumerate(self._stages):
            for index, plan in enumerate(stage):
                x = self._block(x, plan, f"stages.{number}.{index}")
        return _relu6(_pointwise(x, *self._folded("head")))

    def _block(self, x: Array, plan: BlockPlan, name: str) -> Array:
        inner = x
        if plan.expansion != 1:
            inner = _relu6(_pointwise(x, *self._folded(f"{name}.expand")))
        kernel, bias = self._folded(f"{name}.depthwise")
        filtered = _relu6(_depthwise(inner, kernel, bias, plan))
        outer = _pointwise(filtered, *self._folded(f"{name}.project"))
        return x + outer if plan.is_residual else outer

    def _folded(self, name: str) -> tuple[Array, Array]:
        """Filters (K * K * C, O) and bias (O,) of a convolution, the normalisation in them."""
        name = f"{self._name}.{name}"
        spread = np.sqrt(self._weights[f"{name}.variance"] + np.float32(NORM_EPS))
        gain = self._weights[f"{name}.scale"] / spread
        # Output channels innermost in memory too: filtering runs over them, ten times as fast.
        filters = np.ascontiguousarray(self._weights[f"{name}.weight"].transpose(2, 3, 1, 0)) * gain
        bias = self._weights[f"{name}.shift"] - self._weights[f"{name}.mean"] * gain
        return filters.reshape(-1, len(gain)), bias


def _windows(x: Array, *, kernel: int, stride: int) -> Array:
    """What each place of a filter sees: (H, W, C) to a view (H', W', K, K, C) of the padded map."""
    rows, columns, channels = x.shape
    top, bottom = same_padding(rows, kernel, stride)
    left, right = same_padding(columns, kernel, stride)
    padded = np.zeros((top + rows + bottom, left + columns + right, channels), dtype=np.float32)
    padded[top : top + rows, left : left + columns] = x
    seen = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))
    return seen[::stride, ::stride].transpose(0, 1, 3, 4, 2)


def _depthwise(x: Array, filters: Array, bias: Array, plan: BlockPlan) -> Array:
    """A filter of its own for each channel: (H, W, C) to (H', W', C)."""
    windows = _windows(x, kernel=plan.kernel, stride=plan.stride)
    kernels = filters.reshape(plan.kernel, plan.kernel, -1)
    result: Array = np.einsum("hwijc,ijc->hwc", windows, kernels)
    result += bias
    return result


def _pointwise(x: Array, filters: Array, bias: Array) -> Array:
    """A matrix product at each place: (H, W, C) to (H, W, O)."""
    flat = x.reshape(-1, x.shape[-1]) @ filters
    flat += bias
    return flat.reshape(*x.shape[:2], -1)


def _relu6(x: Array) -> Array:
    """In place: what it is given was made for it."""
    return np.clip(x, 0, 6, out=x)
