"""The blocks of an EfficientNet-Lite as numbers, shared by every implementation. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280
NORM_EPS: Final = 1e-3

# (repeats, kernel, stride, expansion, output channels) of EfficientNet-B0, which the Lite variants
# scale by a width and a depth factor.
_STAGES: Final = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """Numbers of one block: expand by 1x1, filter each channel, project back.

    Attributes:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Side of the filters.
        stride: Of the filters.
        expansion: Factor of the channels in between; 1 leaves the first step out.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int

    @property
    def is_residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


def plan_stages(width_factor: float, depth_factor: float) -> list[list[BlockPlan]]:
    """All blocks between the stem and the head, stage by stage.

    Args:
        width_factor: Multiplies the channels of every stage (rounded to a multiple of 8).
        depth_factor: Multiplies the repeats of every stage but the first and the last.

    Example:
        >>> plan_stages(1.1, 1.2)[1][0]
        BlockPlan(inputs=16, outputs=24, kernel=3, stride=2, expansion=6)
    """
    stages: list[list[BlockPlan]] = []
    channels = STEM_CHANNELS
    for number, (repeats, kernel, stride, expansion, base) in enumerate(_STAGES):
        is_outer = number in (0, len(_STAGES) - 1)
        count = repeats if is_outer else math.ceil(repeats * depth_factor)
        outputs = _scaled_channels(base, width_factor)
        stages.append([])
        for index in range(count):
            stages[-1].append(
                BlockPlan(
                    inputs=channels,
                    outputs=outputs,
                    kernel=kernel,
                    stride=stride if index == 0 else 1,
                    expansion=expansion,
                )
            )
            channels = outputs
    return stages


def _scaled_channels(channels: int, factor: float) -> int:
    scaled = channels * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis, as TensorFlow's SAME, which the weights were trained with.

    Args:
        size: Rows or columns of the input.
        kernel: Side of the filter.
        stride: Of the filter.

    Example:
        >>> same_padding(224, 3, 2)
        (0, 1)
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
