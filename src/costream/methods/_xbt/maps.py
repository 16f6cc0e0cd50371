"""Maps from the vectors of a new model to those of an old one.

Shape letters: N texts or queries, B of a batch, I dimensions of the new model, O of the old one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.errors import DataError, NumericalError

_SMALLEST_SINE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How a perceptron is fitted to pairs of vectors.

    Attributes:
        hidden: Width of its inner layers.
        layers: Of weights, at least 2.
        noise: Expected length of the noise added to a unit vector.
        cosine: Weight of `1 - cos` beside the contrast.
        temperature: Divides the similarities.
        steps: Of the fit.
        batch: Texts a step.
        rate: Peak learning rate.
    """

    hidden: int
    layers: int
    noise: float
    cosine: float
    temperature: float
    steps: int
    batch: int
    rate: float


class Perceptron(nn.Module):
    """phi: linear layers with LayerNorm and GELU between, unit length at the end.

    Args:
        inputs: I.
        outputs: O.
        hidden: Width of the inner layers.
        layers: Of weights.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int, layers: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        width = inputs
        for _ in range(layers - 1):
            steps += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU()]
            width = hidden
        self.layers = nn.Sequential(*steps, nn.Linear(width, outputs))

    def forward(self, vectors_NI: Tensor) -> Tensor:
        """(N, I) to unit vectors (N, O)."""
        return functional.normalize(self.layers(vectors_NI), dim=-1)


class Rotation(nn.Module):
    """A linear map, unit length at the end.

    Args:
        matrix: (I, O).
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, vectors_NI: Tensor) -> Tensor:
        """(N, I) to unit vectors (N, O)."""
        return functional.normalize(vectors_NI @ self.matrix, dim=-1)


def procrustes(new_NI: Tensor, old_NO: Tensor) -> Tensor:
    """The matrix with orthonormal columns (rows, where I < O) that brings new closest to old.

    `R = P Q^T` with the singular value decomposition `V^T U = P Sigma Q^T`.

    Args:
        new_NI: V, float (N, I).
        old_NO: U, float (N, O), of the same texts.

    Returns:
        R, float64 (I, O).

    Example:
        >>> old = torch.eye(2)
        >>> procrustes(old.flip(1), old)
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    left, _, right = torch.linalg.svd(new_NI.double().T @ old_NO.double(), full_matrices=False)
    rotation: Tensor = left @ right
    return rotation


def slerp(from_ND: Tensor, to_ND: Tensor, share: float) -> Tensor:
    """Between unit vectors along the great circle: `share` 0 is the first, 1 the second.

    `sin((1 - a) t) / sin t * u + sin(a t) / sin t * v` for vectors u, v an angle t apart.

    Args:
        from_ND: float (N, D).
        to_ND: float (N, D).
        share: a.

    Returns:
        float (N, D), unit vectors; where the two are the same or opposite, on the straight line
        between them, to which the circle shrinks.
    """
    cosine = (from_ND * to_ND).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    flat = sine < _SMALLEST_SINE
    safe = torch.where(flat, torch.ones_like(sine), sine)
    first = torch.where(flat, torch.full_like(sine, 1 - share), torch.sin((1 - share) * angle))
    second = torch.where(flat, torch.full_like(sine, share), torch.sin(share * angle))
    return first / safe * from_ND + second / safe * to_ND


def disturb(vectors_ND: Tensor, noise: float, generator: torch.Generator | None = None) -> Tensor:
    """Unit vectors with Gaussian noise of an expected length of about `noise`, unit length again.

    `a~ = n(a + noise * eps)` with `eps ~ N(0, I / d)`.
    """
    drawn = torch.randn(vectors_ND.shape, generator=generator).to(vectors_ND.device)
    moved = vectors_ND + noise / math.sqrt(vectors_ND.shape[-1]) * drawn
    return functional.normalize(moved, dim=-1)


def fit_loss(mapped_BO: Tensor, old_BO: Tensor, temperature: float, cosine: float) -> Tensor:
    """Contrast in both directions between mapped and old vectors, and how far they are apart."""
    scores = mapped_BO @ old_BO.T / temperature
    own = torch.arange(len(scores), device=scores.device)
    contrast = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
    return contrast / 2 + cosine * (1 - (mapped_BO * old_BO).sum(dim=1)).mean()


def fit_perceptron(
    new_NI: Tensor,
    old_NO: Tensor,
    config: FitConfig,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Perceptron:
    """phi, fitted to pairs of vectors of the same texts, no two texts alike.

    Args:
        new_NI: Unit vectors of the new model, float32 (N, I).
        old_NO: Of the old one, float32 (N, O).
        config: Form and fit.
        seed: Of weights, batches and noise; torch's own random state is left alone.
        progress: Told steps done, and steps in all.

    Returns:
        The map, in evaluation mode, its weights frozen.

    Raises:
        DataError: There are fewer than 2 texts.
        NumericalError: A loss is not finite.
    """
    if len(new_NI) < 2:
        raise DataError(
            f"got {len(new_NI)} different texts, expected at least 2 to fit a map to",
            hint="name data with captions",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        phi = Perceptron(
            new_NI.shape[1], old_NO.shape[1], hidden=config.hidden, layers=config.layers
        )
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(phi.parameters(), lr=config.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for step in range(config.steps):
        rows = torch.randperm(len(new_NI), generator=generator)[: config.batch]
        mapped = phi(disturb(new_NI[rows], config.noise, generator))
        loss = fit_loss(mapped, old_NO[rows], config.temperature, config.cosine)
        if not torch.isfinite(loss):
            raise NumericalError(
                f"the loss of the map is {float(loss)} at step {step}", hint="lower map_rate"
            )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, config.steps)
    return phi.eval().requires_grad_(False)


Projection = Literal["mlp", "procrustes"]


def empty_map(kind: Projection, inputs: int, outputs: int, config: FitConfig) -> nn.Module:
    """A map whose weights are about to be filled in."""
    if kind == "procrustes":
        return Rotation(torch.zeros(inputs, outputs)).requires_grad_(False)
    phi = Perceptron(inputs, outputs, hidden=config.hidden, layers=config.layers)
    return phi.requires_grad_(False)


def fit_map(
    kind: Projection,
    new_NI: Tensor,
    old_NO: Tensor,
    config: FitConfig,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """A map of either kind, fitted to the vectors of the same texts; see `fit_perceptron`."""
    if kind == "procrustes":
        return Rotation(procrustes(new_NI, old_NO).float()).requires_grad_(False)
    return fit_perceptron(new_NI, old_NO, config, seed=seed, progress=progress)
