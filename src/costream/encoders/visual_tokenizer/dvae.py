"""A small discrete variational auto-encoder: eight by eight pixels to one code, and back.

    logits   l_k(x) = sharpness * (2 z(x) . c_k - c_k . c_k), z the encoder, c the codebook: highest
             for the code nearest to z, so that codes mean what the encoder saw from the start
    codes    argmax_k l_k(x)                                      (encode)
    training y = softmax((l + gumbel noise) / temperature), x' = decoder(y @ codebook)
             encoder and decoder are each a linear map of the 8 x 8 pixels plus convolutions
    loss     mean (x' - x)^2 + kl_weight * mean_positions KL(softmax(l) || uniform)
                             + usage_weight * KL(mean_positions softmax(l) || uniform)

The first KL is the prior of the published model; it also makes single positions undecided. The
second only asks that all codes together be used, which is what keeps a small codebook alive.

Shape letters: B pictures, V codes, C channels, h x w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.visual_tokenizer.face import check_pixels
from costream.errors import ConfigError, DataError

_PIXELS_PER_TOKEN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscreteVaeConfig:
    """Size and losses of a `DiscreteVae`.

    Attributes:
        vocab_size: Number of codes V.
        width: Channels C of the inner layers.
        code_dim: Dimensions of a code's vector.
        blocks: Residual blocks at each of the two smaller resolutions, in encoder and decoder.
        kl_weight: Of the per-position KL to uniform.
        usage_weight: Of the KL to uniform of the batch's mean distribution.
    """

    vocab_size: int = 512
    width: int = 64
    code_dim: int = 64
    blocks: int = 1
    kl_weight: float = 0.0
    usage_weight: float = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeLoss:
    """The loss of a batch.

    Attributes:
        total: Scalar with gradient.
        error: Mean squared error of the pixels in [0, 1], without gradient.
        kl: Mean per-position KL to uniform in nats, without gradient.
        usage: KL to uniform of the mean distribution in nats, without gradient.
    """

    total: Tensor
    error: Tensor
    kl: Tensor
    usage: Tensor


class _Residual(nn.Module):
    """Two convolutions beside a shortcut; an identity before the first step of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.second(functional.relu(self.first(functional.relu(x))))
        return x + inner


class DiscreteVae(nn.Module):
    """A visual tokenizer that trains here.

    Args:
        config: Size and losses.

    Raises:
        ConfigError: When a size is below 1, or V below 2.

    Example:
        >>> import torch
        >>> vae = DiscreteVae(DiscreteVaeConfig(vocab_size=16, width=8, code_dim=4))
        >>> vae.encode(torch.zeros(2, 3, 48, 48, dtype=torch.uint8)).shape
        torch.Size([2, 6, 6])
    """

    def __init__(self, config: DiscreteVaeConfig) -> None:
        super().__init__()
        if config.vocab_size < 2 or min(config.width, config.code_dim) < 1 or config.blocks < 0:
            raise ConfigError(
                f"got {config}, expected vocab_size >= 2, width and code_dim >= 1, blocks >= 0"
            )
        self.config = config
        self.vocab_size = config.vocab_size
        self.pixels_per_token = _PIXELS_PER_TOKEN
        width, half = config.width, max(config.width // 2, 1)
        side = _PIXELS_PER_TOKEN
        # Linear paths beside the convolutions: fitting starts them as principal components, so that
        # codes know colour and edges at once and the convolutions only have to add what is missing.
        self.look = nn.Conv2d(3, config.code_dim, side, stride=side)
        self.lay = nn.ConvTranspose2d(config.code_dim, 3, side, stride=side)
        residuals = [[_Residual(width) for _ in range(config.blocks)] for _ in range(4)]
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, width, 4, stride=2, padding=1),
            *residuals[0],
            nn.ReLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            *residuals[1],
            nn.ReLU(),
            nn.Conv2d(width, config.code_dim, 1),
        )
        self.codebook = nn.Parameter(torch.randn(config.vocab_size, config.code_dim) * 0.1)
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_dim, width, 3, padding=1),
            *residuals[2],
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            *residuals[3],
            nn.ReLU(),
            nn.ConvTranspose2d(width, half, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(half, 3, 4, stride=2, padding=1),
        )
        for last in (self.encoder[-1], self.decoder[-1]):
            for weight in last.parameters():
                nn.init.zeros_(weight)

    def vectors(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, 3, h, w) to what codes stand for, float32 (B, code_dim, h / 8, w / 8).

        Raises:
            DataError: When `images` have another form.
        """
        check_pixels(images, self.pixels_per_token)
        pixels = images.float() / 127.5 - 1.0
        seen: Tensor = self.look(pixels) + self.encoder(pixels)
        return seen.float()

    def logits(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, 3, h, w) to float32 (B, V, h / 8, w / 8).

        Raises:
            DataError: When `images` have another form.
        """
        near = torch.einsum("bdhw,vd->bvhw", self.vectors(images), self.codebook)
        own = self.codebook.square().sum(dim=1)[:, None, None]
        return self.log_sharpness.exp() * (2.0 * near - own)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures to codes.

        Args:
            images: uint8 (B, 3, h, w), sides multiples of 8.

        Returns:
            int64 (B, h / 8, w / 8). Computed in float32 whatever the surrounding autocast, so that
            targets do not depend on the precision of training.

        Raises:
            DataError: When `images` have another form.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.logits(images).argmax(dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, H, W) to pictures uint8 (B, 3, 8 H, 8 W).

        Raises:
            DataError: When a code is not in 0..vocab_size - 1.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise DataError(
                f"got codes from {int(codes.min())} to {int(codes.max())}, "
                f"expected 0 to {self.vocab_size - 1}",
                hint="decode with the tokenizer that made the codes",
            )
        pixels = self.paint(self.codebook[codes].permute(0, 3, 1, 2))
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8)

    def paint(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, code_dim, H, W) to pixels around [0, 1], float32 (B, 3, 8 H, 8 W)."""
        painted: Tensor = self.lay(vectors) + self.decoder(vectors)
        return painted.float() + 0.5

    def loss(
        self, images: Tensor, *, temperature: float = 0.9, generator: torch.Generator | None = None
    ) -> VaeLoss:
        """Loss of one batch through a relaxed sample of the codes.

        Args:
            images: uint8 (B, 3, h, w), sides multiples of 8, at least one picture.
            temperature: Of the Gumbel softmax, above 0; small is close to single codes.
            generator: Source of the noise, on the CPU; the global one when None.

        Returns:
            The total and its parts.

        Raises:
            ConfigError: When `temperature` is not above 0.
            DataError: When `images` have another form.
        """
        if not temperature > 0.0:
            raise ConfigError(f"temperature: got {temperature}, expected above 0")
        logits = self.logits(images)
        noise = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
        # An exponential draw can be 0; its logarithm must stay finite.
        gumbel = -noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
        soft = ((logits + gumbel) / temperature).softmax(dim=1)
        vectors = torch.einsum("bvhw,vd->bdhw", soft, self.codebook)
        error = functional.mse_loss(self.paint(vectors), images.float() / 255)
        log_p = logits.log_softmax(dim=1)
        log_v = math.log(self.vocab_size)
        kl = (log_p.exp() * log_p).sum(dim=1).mean() + log_v
        mean_p = log_p.exp().mean(dim=(0, 2, 3))
        # The slope of p log p at 0 is infinite, and codes that are far from everything reach 0.
        usage = (mean_p * mean_p.clamp_min(1e-9).log()).sum() + log_v
        total = error + self.config.kl_weight * kl + self.config.usage_weight * usage
        return VaeLoss(total=total, error=error.detach(), kl=kl.detach(), usage=usage.detach())
