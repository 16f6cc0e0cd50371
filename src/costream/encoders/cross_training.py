"""Training the single-stream peer: find the true partner among look-alikes of the batch.

Shape letters: N pictures, M texts, B pairs of a batch, K negatives, S and P tokens of a text and
of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.cross import CrossEncoder
from costream.encoders.device import autocast
from costream.errors import ConfigError, DataError, NumericalError


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTokens:
    """Pictures and texts as the peer reads them, and which belong together.

    Attributes:
        images: float (N, P, image_width).
        texts: float (M, S, text_width).
        mask: bool or int (M, S), true where a text token is real.
        image_of_text: int64 (M,), the picture that each text describes.
        image_vectors: float (N, D) unit vectors of a two-stream model, which tell look-alikes.
        text_vectors: float (M, D), the same of the texts.
    """

    images: Tensor
    texts: Tensor
    mask: Tensor
    image_of_text: Tensor
    image_vectors: Tensor | None = None
    text_vectors: Tensor | None = None


def matching_loss(
    own_B: Tensor,
    images_BK: Tensor,
    texts_BK: Tensor,
    form: Literal["softmax", "binary"] = "softmax",
) -> Tensor:
    """Loss of the logits of true pairs against those of false ones.

    `softmax`: mean over pairs of the negative log probability of the true picture among the text's
    1 + K pictures, and the same of the text, averaged. `binary`: mean over all logits of the cross
    entropy of match or no match.

    Args:
        own_B: Logits of the true pairs (B,).
        images_BK: Logits of each pair's text with K other pictures (B, K).
        texts_BK: Logits of each pair's picture with K other texts (B, K).
        form: Which loss.

    Returns:
        Scalar.
    """
    if form == "binary":
        logits = torch.cat([own_B, images_BK.flatten(), texts_BK.flatten()])
        truth = torch.zeros_like(logits)
        truth[: len(own_B)] = 1.0
        return functional.binary_cross_entropy_with_logits(logits, truth)
    first = torch.zeros(len(own_B), dtype=torch.int64, device=own_B.device)
    to_image = functional.cross_entropy(torch.cat([own_B[:, None], images_BK], dim=1), first)
    to_text = functional.cross_entropy(torch.cat([own_B[:, None], texts_BK], dim=1), first)
    return (to_image + to_text) / 2


def draw_negatives(scores_BB: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each row, other columns, drawn without replacement with probability softmax(scores).

    Args:
        scores_BB: Similarity over temperature (B, B); the diagonal is never drawn.
        count: Columns a row, at most B - 1.
        generator: CPU generator.

    Returns:
        int64 (B, count) on the CPU.
    """
    # The order of scores + Gumbel noise is such a draw, and cannot fail on tiny probabilities.
    noise = torch.empty(scores_BB.shape).exponential_(generator=generator)
    keys = scores_BB.detach().float().cpu() - noise.clamp_min(1e-30).log()
    return keys.fill_diagonal_(float("-inf")).topk(count, dim=1).indices


def _draw_batch(
    data: PairTokens, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Different pictures, with one text each: int64 (B,) and (B,)."""
    order = torch.randperm(len(data.image_of_text), generator=generator)
    owners = data.image_of_text.cpu()[order]
    # First text of each picture in the random order.
    found, inverse = torch.unique(owners, return_inverse=True)
    firsts = torch.full((len(found),), len(owners)).scatter_reduce(
        0, inverse, torch.arange(len(owners)), reduce="amin"
    )
    chosen = firsts[torch.randperm(len(found), generator=generator)[:batch_size]]
    return owners[chosen], order[chosen]


def _check(data: PairTokens, batch_size: int, negatives: int, steps: int) -> None:
    if steps < 1 or negatives < 1 or batch_size <= negatives:
        raise ConfigError(
            f"got {steps=}, {batch_size=}, {negatives=}, "
            "expected at least 1 step and negative, and a batch larger than the negatives"
        )
    pictures = len(torch.unique(data.image_of_text))
    if pictures <= negatives:
        raise DataError(
            f"got {pictures} pictures with texts, expected more than {negatives}",
            hint="pass more pictures or fewer negatives",
        )
    if not len(data.texts) == len(data.mask) == len(data.image_of_text):
        raise DataError(
            f"got {len(data.texts)} texts, {len(data.mask)} masks and "
            f"{len(data.image_of_text)} owners, expected equal numbers"
        )


def _loss_of_batch(
    cross: CrossEncoder,
    data: PairTokens,
    rows: tuple[Tensor, Tensor],
    negatives: int,
    form: Literal["softmax", "binary"],
    generator: torch.Generator,
) -> Tensor:
    images, texts = rows
    count = len(images)
    scores = torch.zeros(count, count)
    if data.image_vectors is not None and data.text_vectors is not None:
        vectors = data.image_vectors[images.to(data.image_vectors.device)].float().cpu()
        scores = vectors @ data.text_vectors[texts.to(data.text_vectors.device)].float().cpu().T
    negatives = min(negatives, count - 1)
    other_images = draw_negatives(scores.T / 0.07, negatives, generator)
    other_texts = draw_negatives(scores / 0.07, negatives, generator)
    own = torch.arange(count)
    repeated = own.repeat_interleave(negatives)
    image_rows = torch.cat([own, other_images.flatten(), repeated])
    text_rows = torch.cat([own, repeated, other_texts.flatten()])
    on = cross.class_token.device
    entered_images = cross.enter_images(data.images[images.to(data.images.device)].to(on))
    longest = int(data.mask[texts.to(data.mask.device)].sum(dim=1).max())
    cut = data.texts[texts.to(data.texts.device), :longest].to(on)
    mask = data.mask[texts.to(data.mask.device), :longest].to(on)
    entered_texts = cross.enter_texts(cut)
    logits = cross.score_entered(
        entered_images[image_rows.to(on)], entered_texts[text_rows.to(on)], mask[text_rows.to(on)]
    )
    parts = logits.split_with_sizes([count, count * negatives, count * negatives])
    return matching_loss(
        parts[0], parts[1].view(count, negatives), parts[2].view(count, negatives), form
    )


def train_cross_encoder(
    cross: CrossEncoder,
    data: PairTokens,
    *,
    steps: int = 500,
    batch_size: int = 32,
    negatives: int = 2,
    form: Literal["softmax", "binary"] = "softmax",
    learning_rate: float = 1e-4,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """Train the peer on frozen tokens; each batch holds a picture at most once.

    Each true pair meets K false pictures and K false texts of the batch, drawn with probability
    softmax(two-stream similarity / 0.07) where `data` has vectors, evenly where it has none.

    Args:
        cross: Trained in place, on its own device, left in evaluation mode.
        data: Tokens and who belongs to whom. Texts are padded on the right.
        steps: Optimiser steps.
        batch_size: True pairs a step; fewer where there are fewer pictures.
        negatives: K.
        form: Loss over the logits; see `matching_loss`.
        learning_rate: Highest of a one-cycle schedule of AdamW.
        seed: Of the batches and negatives (not of dropout, which uses the global state).
        on_step: Called with the number of the step and its loss.

    Returns:
        The loss of each step.

    Raises:
        ConfigError: When a number is out of range.
        DataError: When there are too few pictures, or numbers of texts disagree.
        NumericalError: When the loss is not finite; names the step. The weights are those before.
    """
    _check(data, batch_size, negatives, steps)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(cross.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    cross.train()
    losses: list[float] = []
    for step in range(steps):
        rows = _draw_batch(data, batch_size, generator)
        with autocast(cross.class_token.device):
            loss = _loss_of_batch(cross, data, rows, negatives, form, generator)
        losses.append(float(loss.detach()))
        if not torch.isfinite(loss):
            cross.eval()
            raise NumericalError(
                f"the loss is {losses[-1]} at step {step}", hint="lower the learning rate"
            )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(cross.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(step, losses[-1])
    cross.eval()
    return tuple(losses)
