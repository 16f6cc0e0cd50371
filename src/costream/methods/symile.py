"""Symile: contrast over the product of three or more modalities at once.

Idea: pairwise contrast sees only what two modalities share. What no pair carries, three together
may (one bit is the exclusive or of two others): the product of their vectors, summed over the
dimensions, is contrasted instead.

Equations, for tuples r_1 .. r_M of modalities, N tuples a batch:

    multilinear inner product   MIP(r_1, .., r_M) = sum_k prod_m r_m[k]
    loss of anchor m            cross-entropy of scale * [MIP(r_m^i, p^j)]_j at j = i, where p^i is
                                the true product of the others, and p^j products of other rows
    total                       mean over the M anchors
    negatives "n"               every other modality is permuted by itself: N - 1 negatives
    negatives "n_squared"       all combinations of rows: N^(M - 1) columns
    retrieval                   <r_1 * .. * r_(M-1), c>: an inner product, so any index serves it

Shapes: N tuples, M modalities, D dimensions, C candidates.

Source: Saporta et al., "Contrasting with Symile: Simple Model-Agnostic Representation Learning for
Unlimited Modalities" (NeurIPS 2024) and its package (rajesh-lab/symile, MIT), by specification.

Differs: the vectors have unit length (as in the paper's XOR experiments; its two real experiments
use LayerNorm), the positive is part of every row whatever was drawn, and the scale is held below
100. With two modalities both kinds of negatives are plain contrast.

Costs: as pairwise contrast for "n"; N^(M - 1) columns for "n_squared". Index impact: reencode;
questions of several terms are multiplied (`costream search --product`).

Claim: where no pair of modalities tells anything, pairwise contrast stays at chance and Symile does
not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range
from costream.encoders.dual import DualEncoder
from costream.errors import ConfigError
from costream.objectives import Losses, Objective
from costream.objectives.gather import gather_rows, gather_rows_with_gradient, mean_across, rank
from costream.objectives.temperature import Temperature
from costream.parts import Base, Parts
from costream.records import Batch, Features

if TYPE_CHECKING:
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {
    "name": "symile",
    "title": "Symile: contrast of any number of modalities",
    "paper": "Saporta et al., Contrasting with Symile, NeurIPS",
    "year": 2024,
    "kind": "objective",
    "slots": ("surgery", "objective"),
    "index_impact": "reencode",
    "losses": ("symile",),
    "summary": "Contrast over the multilinear product of three or more modalities, which sees what "
    "no pair carries; questions are products of terms.",
    "scale": "Published on synthetic bits, as here, and on pictures of a thousand classes named by "
    "sound and words; the effect needs information that no pair of modalities carries, not size.",
}

_GREATEST_SCALE = 100.0
_WIDTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings.

    Attributes:
        modalities: Slots of a sample, at least two: `image`, `video`, `text` and its kin; any other
            is an array of numbers, and gets a tower of its own.
        array_size: Numbers in such an array.
        negatives: `n` draws N - 1 combinations of other rows, `n_squared` takes all.
        scale: What the products are multiplied with at first; it trains.
    """

    modalities: tuple[str, ...] = ("image", "text", "text.de")
    array_size: Annotated[int, Range(1)] = 64
    negatives: Literal["n", "n_squared"] = "n"
    scale: Annotated[float, Range(0, _GREATEST_SCALE, low_included=False)] = 10.0


def multilinear(vectors: Sequence[Tensor]) -> Tensor:
    """Sum over the last dimension of the product of tensors of the same shape.

    Example:
        >>> a = torch.tensor([1.0, 2.0])
        >>> multilinear([a, a, torch.ones(2)])
        tensor(5.)
    """
    return reduce(torch.mul, vectors).sum(dim=-1)


def anchor_scores(
    anchor_ND: Tensor,
    others: Sequence[Tensor],
    orders: Sequence[Tensor] | None,
    own_N: Tensor,
) -> Tensor:
    """Products of each anchor with combinations of the others; column `own_N[i]` is the true one.

    Args:
        anchor_ND: float (N, D), some rows of a batch.
        others: Of each other modality float (B, D), all rows of the batch.
        orders: For each of `others` a permutation int64 (B,) of its rows, for B combinations; None
            for all combinations, the aligned ones first.
        own_N: int64 (N,), which rows of the batch the anchors are.

    Returns:
        float (N, B), or (N, B^(M - 1)).
    """
    aligned_BD = reduce(torch.mul, others)
    if orders is None:
        columns = all_products(others)
        return anchor_ND @ columns.T
    drawn_BD = reduce(torch.mul, [o[order] for o, order in zip(others, orders, strict=True)])
    scores = anchor_ND @ drawn_BD.T
    true_N1 = (anchor_ND * aligned_BD[own_N]).sum(dim=1, keepdim=True)
    return scores.scatter(1, own_N[:, None], true_N1)


def all_products(others: Sequence[Tensor]) -> Tensor:
    """Products of all combinations of rows (B^(M - 1), D), those of equal rows first."""
    products = others[0]
    for other in others[1:]:
        rolled = [
            products * other.roll(-shift, dims=0).repeat(len(products) // len(other), 1)
            for shift in range(len(other))
        ]
        products = torch.cat(rolled)
    return products


class Symile(nn.Module, Objective):
    """The loss of a batch of tuples."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.temperature = Temperature(1 / config.scale, least=1 / _GREATEST_SCALE)

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Hold the scale below 100."""
        del model, state
        self.temperature.clamp()

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """As of `costream.objectives.Objective`; with several captions, the first one counts."""
        del model, state
        count = len(batch.weight)
        vectors = [
            features[slot].pooled.float().unflatten(0, (count, -1))[:, 0]
            for slot in self.config.modalities
        ]
        with torch.autocast(batch.weight.device.type, enabled=False):
            rows = self._rows(vectors, batch)
        total = mean_across(rows, batch.weight)
        return Losses(total=total, parts={"symile": total.detach()})

    def _rows(self, vectors: Sequence[Tensor], batch: Batch) -> Tensor:
        """The mean loss over the anchors, of each row (N,)."""
        count = len(batch.weight)
        own = torch.arange(count, device=batch.weight.device) + rank() * count
        weight, seeds = gather_rows(batch.weight), gather_rows(batch.seeds)
        every = [gather_rows_with_gradient(each) for each in vectors]
        # Rows without weight are nobody's negatives: only the others are combined.
        usable = torch.nonzero(weight > 0)[:, 0]
        place = torch.cumsum(weight > 0, dim=0)[own] - 1
        mine = weight[own] > 0
        losses = torch.zeros(count, device=own.device)
        if not bool(mine.any()):
            return losses + sum(each.sum() for each in vectors) * 0.0
        terms = []
        for number, anchor in enumerate(vectors):
            others = [each[usable] for k, each in enumerate(every) if k != number]
            orders = None
            if self.config.negatives == "n":
                orders = [permutation(seeds[usable], (number, k)) for k in range(len(others))]
            scores = anchor_scores(anchor[mine], others, orders, place[mine])
            terms.append(
                functional.cross_entropy(
                    scores * self.temperature.inverse(), place[mine], reduction="none"
                )
            )
        return losses.masked_scatter(mine, torch.stack(terms).mean(dim=0))


def permutation(seeds_N: Tensor, stream: tuple[int, ...]) -> Tensor:
    """An order of rows that goes with their seeds, so that it depends on no other draw.

    Rows are sorted by a number drawn from each row's seed, and matched with the rows sorted by
    another: the same pairs of rows come together in whatever order the batch is.
    """
    draws = [
        np.array([np.random.default_rng((int(s), side, *stream)).random() for s in seeds_N])
        for side in (0, 1)
    ]
    order = np.empty(len(seeds_N), dtype=np.int64)
    order[np.argsort(draws[0])] = np.argsort(draws[1])
    return torch.from_numpy(order).to(seeds_N.device)


class ArrayTower(nn.Module):
    """Arrays of numbers (B, A) to unit vectors (B, D)."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.Linear(size, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, dim))

    def forward(self, values: Tensor) -> Features:
        """As a tower of `DualEncoder.towers`.

        Raises:
            ConfigError: When the arrays have another size.
        """
        flat = values.flatten(1).float()
        if flat.shape[1] != self.size:
            raise ConfigError(
                f"got arrays of {flat.shape[1]} numbers, expected {self.size}",
                hint=f"--set array_size={flat.shape[1]}",
            )
        return Features(pooled=functional.normalize(self.layers(flat).float(), dim=-1))


def parts(config: Config, base: Base) -> Parts:
    """What it puts into a system.

    Args:
        config: Settings.
        base: The model and its training.

    Returns:
        Towers for modalities that are arrays, and while training the loss.

    Raises:
        ConfigError: When there are fewer than two modalities, or one is named twice.
    """
    if len(config.modalities) < 2 or len(set(config.modalities)) < len(config.modalities):
        raise ConfigError(
            f"modalities are {', '.join(config.modalities) or 'none'}, expected two or more "
            "different ones",
            hint="modalities=image,text,audio",
        )
    objective = () if base.training is None else ((1.0, Symile(config)),)
    reads = () if base.training is None else config.modalities
    return Parts(surgery=(_add_towers(config),), objective=objective, reads=reads)


def _add_towers(config: Config) -> Callable[[DualEncoder], DualEncoder]:
    def add(model: DualEncoder) -> DualEncoder:
        for slot in config.modalities:
            known = slot in ("image", "video", "text") or slot.startswith("text.")
            if not known and slot not in model.towers:
                model.towers[slot] = ArrayTower(config.array_size, model.config.dim)
        return model

    return add


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """The paper's claim as an experiment: bits where no pair tells anything, and a small M3.

    Args:
        options: No real data is used: in it nobody knows what pairs and triples carry.

    Returns:
        One table.
    """
    from costream.methods._symile.claim import reproduce

    return reproduce(options)
