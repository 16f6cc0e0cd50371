"""Training a `DiscreteVae` on pictures.

The linear paths start as principal components of 8 x 8 patches and the codebook as k-means of what
they see. From random weights the codes spread over brightness alone and find colour only after many
thousand steps.

Shape letters: N pictures, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.visual_tokenizer.dvae import DiscreteVae, DiscreteVaeConfig, VaeLoss
from costream.encoders.visual_tokenizer.face import CodeUsage, check_pixels, code_usage
from costream.encoders.visual_tokenizer.kmeans import find_centroids
from costream.errors import ConfigError, DataError, NumericalError


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeTraining:
    """What training a `DiscreteVae` gave.

    Attributes:
        tokenizer: The trained model, in evaluation mode.
        errors: Mean squared error of each step.
        usage: Of the codes of (at most 512 of) the training pictures.
        reconstruction_error: Mean squared error of the same pictures through single codes.
    """

    tokenizer: DiscreteVae
    errors: tuple[float, ...]
    usage: CodeUsage
    reconstruction_error: float


def _cut(pictures: Tensor, count: int, side_px: int, generator: torch.Generator) -> Tensor:
    """A batch of `count` random square cuts, each flipped at random."""
    which = torch.randint(0, len(pictures), (count,), generator=generator)
    top, left = (
        int(torch.randint(0, size - side_px + 1, (1,), generator=generator))
        for size in pictures.shape[2:]
    )
    batch = pictures[which.to(pictures.device), :, top : top + side_px, left : left + side_px]
    flip = torch.rand(count, 1, 1, 1, generator=generator).to(pictures.device) < 0.5
    return torch.where(flip, batch.flip(3), batch)


@torch.no_grad()
def _start(vae: DiscreteVae, pictures: Tensor, side_px: int, generator: torch.Generator) -> None:
    """Set the linear paths to principal components, the codebook to k-means of what they see."""
    wanted = max(20 * vae.vocab_size, 10_000)
    a_cut = 64 * (side_px // vae.pixels_per_token) ** 2
    cuts = [_cut(pictures, 64, side_px, generator) for _ in range(-(-wanted // a_cut))]
    side = vae.pixels_per_token
    unfolded = [functional.unfold(cut.float() / 127.5 - 1.0, side, stride=side) for cut in cuts]
    patches = torch.cat([part.transpose(1, 2).flatten(0, 1).cpu() for part in unfolded])
    mean = patches.mean(dim=0)
    # Eigenvectors of the covariance in rising order; the last ones hold the most.
    _, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean))
    count = min(vae.config.code_dim, axes.shape[1])
    main = axes.flip(1)[:, :count].T.reshape(count, 3, side, side)
    weight = torch.zeros(vae.config.code_dim, 3, side, side)
    weight[:count] = main
    vae.look.load_state_dict({"weight": weight, "bias": -weight.flatten(1) @ mean})
    # Painting is around 0.5 with half the span of what is seen.
    vae.lay.load_state_dict({"weight": weight / 2, "bias": mean.view(3, -1).mean(dim=1) / 2})
    points = torch.cat([vae.vectors(cut).permute(0, 2, 3, 1).flatten(0, 2).cpu() for cut in cuts])
    centroids = find_centroids(points, vae.vocab_size, 10, generator)
    vae.codebook.copy_(centroids)
    apart = torch.cdist(points[:2000], centroids).square().amin(dim=1).mean()
    # The noise of the draw is about 1; the nearest code should win most draws.
    vae.log_sharpness.copy_((4.0 / apart.clamp_min(1e-6)).log())


def fit_discrete_vae(
    pictures: Tensor,
    config: DiscreteVaeConfig | None = None,
    *,
    steps: int = 500,
    batch_size: int = 32,
    side_px: int = 48,
    learning_rate: float = 2e-3,
    temperature: tuple[float, float] = (0.9, 0.1),
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, VaeLoss], None] | None = None,
) -> VaeTraining:
    """Train a tokenizer on pictures.

    Args:
        pictures: uint8 (N, 3, h, w), sides at least `side_px`.
        config: Size of the tokenizer; the default one when None.
        steps: Optimiser steps.
        batch_size: Cuts a step.
        side_px: Side of the random cuts, a multiple of 8.
        learning_rate: Highest of a one-cycle schedule of Adam.
        temperature: At the first and the last step; falls geometrically in between.
        seed: Of the first weights, the cuts and the noise.
        device: Where to train.
        on_step: Called with the number of the step and its loss.

    Returns:
        The tokenizer and how well it does.

    Raises:
        ConfigError: When a number is out of range.
        DataError: When there are no pictures, they are too small, or too alike for so many codes.
        NumericalError: When the loss is not finite; names the step.
    """
    if min(steps, batch_size) < 1 or side_px < 8 or side_px % 8:
        raise ConfigError(
            f"got {steps=}, {batch_size=}, {side_px=}, "
            "expected at least 1 step and picture, and a side that is a multiple of 8"
        )
    check_pixels(pictures[:, :, :8, :8], 8)
    if len(pictures) == 0 or min(pictures.shape[2:]) < side_px:
        raise DataError(
            f"got pictures of shape {tuple(pictures.shape)}, "
            f"expected at least one, of at least {side_px} x {side_px} pixels"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = DiscreteVae(config or DiscreteVaeConfig()).to(device)
    pictures = pictures.to(device)
    optimiser = torch.optim.Adam(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    first, last = temperature
    _start(vae, pictures, side_px, generator)
    errors: list[float] = []
    for step in range(steps):
        warmth = first * (last / first) ** (step / max(steps - 1, 1))
        batch = _cut(pictures, batch_size, side_px, generator)
        loss = vae.loss(batch, temperature=warmth, generator=generator)
        if not torch.isfinite(loss.total):
            raise NumericalError(
                f"the loss is {float(loss.total.detach())} at step {step}",
                hint="lower the learning rate",
            )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        errors.append(float(loss.error))
        if on_step is not None:
            on_step(step, loss)
    vae.eval()
    return _measure(vae, pictures[:512], errors)


def _measure(vae: DiscreteVae, pictures: Tensor, errors: list[float]) -> VaeTraining:
    height, width = (side // 8 * 8 for side in pictures.shape[2:])
    shown = pictures[:, :, :height, :width]
    codes, squared = [], 0.0
    for batch in torch.split(shown, 64):
        codes.append(vae.encode(batch).cpu())
        gap = (vae.decode(codes[-1].to(batch.device)).float() - batch.float()) / 255
        squared += float(gap.square().mean()) * len(batch)
    return VaeTraining(
        tokenizer=vae,
        errors=tuple(errors),
        usage=code_usage(torch.cat(codes), vae.vocab_size),
        reconstruction_error=squared / len(shown),
    )
