"""The published 8,192-code picture encoder of DALL-E, which BEiT and COTS tokenize with.

    input convolution 7 x 7, four groups of two residual blocks with 1, 2, 4 and 8 times `hidden`
    channels, a 2 x 2 maximum after each of the first three groups, ReLU and a 1 x 1 convolution
    block:  id(x) + 1 / n^2 * conv1x1(relu(conv3x3(relu(conv3x3(relu(conv3x3(relu(x))))))))
            with n = 8 blocks in all and a quarter of the channels inside
    pixels: x in [0, 1] enters as 0.8 x + 0.1, without mean and standard deviation
    codes:  argmax over the 8,192 outputs

The names of the weights are those of the published state (`blocks.input.w`,
`blocks.group_1.block_1.res_path.conv_1.w`, ...), so that it loads as it is. Written from the
architecture as published; only the encoder is here, since nothing is ever painted back.

Shape letters: B pictures, V codes, h x w pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.visual_tokenizer.face import check_pixels
from costream.encoders.visual_tokenizer.weights import read_weights

_GROUPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedDvaeConfig:
    """Size of the encoder; the defaults are the published ones.

    Attributes:
        vocab_size: Number of codes V.
        hidden: Channels of the first group.
        blocks_per_group: Residual blocks in each of the four groups.
    """

    vocab_size: int = 8192
    hidden: int = 256
    blocks_per_group: int = 2


class _Conv(nn.Module):
    """A convolution that keeps the size, its weights called `w` and `b`."""

    def __init__(self, channels_in: int, channels_out: int, side: int) -> None:
        super().__init__()
        scale = (channels_in * side**2) ** -0.5
        self.w = nn.Parameter(torch.randn(channels_out, channels_in, side, side) * scale)
        self.b = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class _Block(nn.Module):
    """A bottleneck beside a shortcut, scaled down by the square of the number of blocks."""

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int) -> None:
        super().__init__()
        inner = channels_out // 4
        self.gain = 1.0 / num_blocks**2
        self.id_path: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.id_path = _Conv(channels_in, channels_out, 1)
        shape = [(channels_in, inner, 3), (inner, inner, 3), (inner, inner, 3)]
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (wide, narrow, side) in enumerate([*shape, (inner, channels_out, 1)], 1):
            parts[f"relu_{number}"] = nn.ReLU()
            parts[f"conv_{number}"] = _Conv(wide, narrow, side)
        self.res_path = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return mixed


def _group(number: int, config: PublishedDvaeConfig) -> nn.Sequential:
    """Group 1 to 4: its blocks, and a pooling after all but the last."""
    channels = config.hidden * 2 ** (number - 1)
    before = config.hidden * 2 ** max(number - 2, 0)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for block in range(1, config.blocks_per_group + 1):
        entering = before if block == 1 else channels
        parts[f"block_{block}"] = _Block(entering, channels, _GROUPS * config.blocks_per_group)
    if number < _GROUPS:
        parts["pool"] = nn.MaxPool2d(kernel_size=2)
    return nn.Sequential(parts)


class PublishedDvae(nn.Module):
    """The published encoder as a visual tokenizer. Untrained until `load_published_dvae`.

    Args:
        config: Size; the published one when None.

    Example:
        >>> import torch
        >>> tiny = PublishedDvae(PublishedDvaeConfig(vocab_size=16, hidden=4))
        >>> tiny.encode(torch.zeros(1, 3, 16, 24, dtype=torch.uint8)).shape
        torch.Size([1, 2, 3])
    """

    def __init__(self, config: PublishedDvaeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PublishedDvaeConfig()
        self.vocab_size = config.vocab_size
        self.pixels_per_token = 2 ** (_GROUPS - 1)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["input"] = _Conv(3, config.hidden, 7)
        for number in range(1, _GROUPS + 1):
            parts[f"group_{number}"] = _group(number, config)
        widest = config.hidden * 2 ** (_GROUPS - 1)
        output: OrderedDict[str, nn.Module] = OrderedDict()
        output["relu"] = nn.ReLU()
        output["conv"] = _Conv(widest, config.vocab_size, 1)
        parts["output"] = nn.Sequential(output)
        self.blocks = nn.Sequential(parts)

    def logits(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, 3, h, w) to (B, V, h / 8, w / 8), in the precision of the weights.

        Raises:
            DataError: When `images` have another form.
        """
        check_pixels(images, self.pixels_per_token)
        pixels = images.to(next(self.parameters()).dtype) / 255
        scores: Tensor = self.blocks(0.8 * pixels + 0.1)
        return scores

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, 3, h, w) to codes int64 (B, h / 8, w / 8).

        Raises:
            DataError: When `images` have another form.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.logits(images).argmax(dim=1)


def load_published_dvae(
    path: str | Path, config: PublishedDvaeConfig | None = None
) -> PublishedDvae:
    """Read the published encoder from a safetensors file that holds its state.

    The weights are published as a pickle of the whole module, which is never opened here. Convert
    it once, where it is trusted: `safetensors.torch.save_file(torch.load("encoder.pkl",
    weights_only=False).state_dict(), "encoder.safetensors")`.

    Args:
        path: The safetensors file.
        config: Size; the published one when None.

    Returns:
        The tokenizer on the CPU, in evaluation mode, float32.

    Raises:
        WeightsError: When the file is absent or damaged, or any weight is missing, unexpected, of
            another shape or not finite. Nothing is loaded then.
    """
    dvae = PublishedDvae(config)
    dvae.load_state_dict(read_weights(Path(path), dvae.state_dict()))
    dvae.requires_grad_(requires_grad=False)
    return dvae.eval()
