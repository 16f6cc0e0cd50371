"""FILIP: fine-grained late interaction of patches and words.

Idea: one vector for a whole picture cannot say which word belongs to which part of it. Here every
patch and every token has a vector of its own, and a pair's score is how well each token of one side
is answered by its best counterpart on the other: words find their patches, without boxes.

Equations, with unit vectors I_ip of the n1 patches of picture i and T_jq of the valid tokens of
text j:

    s_i2t(i, j) = 1/n1    sum_p max_q <I_ip, T_jq>
    s_t2i(j, i) = 1/n2_j  sum_q max_p <I_ip, T_jq>
    loss        = 1/2 [ CE over texts of s_i2t / tau + CE over pictures of s_t2i / tau ]

The two scores of a pair differ: pictures are ranked for a text by s_t2i, texts for a picture by
s_i2t. Padding counts nothing, in either role.

Shapes: N queries, C items, P patches, Q tokens, D dimensions; tokens (N, P, D), mask (N, P).

Source: Yao et al., "FILIP: Fine-grained Interactive Language-Image Pre-Training" (ICLR 2022). No
training code was published. The scores follow three public codes that were read (the Wukong
evaluation of mindspore-ai/models, Sense-GVT/DeCLIP, lucidrains/x-clip); temperature 0.07, the loss
and the pruning of tokens in training are from memory of the paper.

Differs: the vectors are the model's own projections of its tokens, so any model can be trained on;
the class token of a picture takes no part (as in Wukong). `keep` below 1 prunes tokens as the paper
does to save communication, per sample by their best product with any token of the other modality in
the batch; all are kept by default. Data augmentation of the paper is not part of this. Its
all-padding rows would be undefined: they score -1 here.

Costs: N C P Q D products a batch instead of N C D; inference as before, but P vectors a picture in
the index, and a search with Q vectors. Index impact: multi_vector.

Claim: at equal steps and dimensions, late interaction retrieves pictures better than one vector a
picture; a first stage by the best vectors of each token loses nothing. The gain depends on the
encoders (others measured losses with a ResNet, and without fewer visual tokens), so the table says
which they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from costream.config import Range
from costream.encoders.dual import DualEncoder
from costream.objectives import Losses, Objective
from costream.objectives.contrast import Siblings, contrast_rows
from costream.objectives.gather import (
    gather_rows,
    gather_rows_with_gradient,
    mean_across,
    rank,
    world_size,
)
from costream.objectives.temperature import Temperature
from costream.parts import Base, Parts
from costream.records import Batch, Features, Space

if TYPE_CHECKING:
    from costream.data.picture import PictureSource
    from costream.evaluate import ClaimOptions, ClaimTable
    from costream.index.forms import Vectors

CARD = {
    "name": "filip",
    "title": "FILIP: Fine-grained Interactive Language-Image Pre-Training",
    "paper": "Yao et al., ICLR 2022",
    "year": 2022,
    "kind": "training objective, late interaction, index of several vectors an item",
    "slots": ("objective", "scorer", "index"),
    "index_impact": "multi_vector",
    "losses": ("image_to_text", "text_to_image"),
    "summary": "Every word looks for its best patch and every patch for its best word; the means "
    "of these are the two scores of a pair, in training and in search.",
    "scale": "Published with 340 million pairs, ViT-B/32 and L/14 trained from scratch for 30 "
    "epochs. Tokens that are worth comparing one by one take far longer to learn than one vector: "
    "on scenes here no arm tells which object has which colour after 400 steps, so nothing can be "
    "seen of binding before training is some ten times as long.",
}

# Products (queries x items x tokens x tokens) that are held at once.
_AT_ONCE = 2**24
_LEAST, _GREATEST = 0.01, 0.5

Tokens = tuple[Tensor, Tensor]
"""Unit vectors (N, P, D) and their mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of FILIP.

    Attributes:
        temperature: Divides the scores at first; it trains, within [0.01, 0.5].
        keep: Share of tokens of each sample that take part in training: those with the best product
            with any token of the other modality in the batch.
        siblings: What other captions of the same picture are.
    """

    temperature: Annotated[float, Range(_LEAST, _GREATEST)] = 0.07
    keep: Annotated[float, Range(0.01, 1.0)] = 1.0
    siblings: Siblings = "remove"


def late_scores(
    queries: Tensor,
    items: Tensor,
    *,
    query_mask: Tensor | None = None,
    item_mask: Tensor | None = None,
    at_once: int = _AT_ONCE,
) -> Tensor:
    """Mean over a query's tokens of the best product with any token of the item.

    Args:
        queries: Unit vectors (N, P, D).
        items: Unit vectors (C, Q, D).
        query_mask: bool (N, P), True where a token is real; None when all are.
        item_mask: bool (C, Q), the same.
        at_once: Products that are held at once; the result does not depend on it beyond rounding.

    Returns:
        float32 (N, C), at most 1; -1 where one side has no real token.

    Example:
        >>> image = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> text = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> late_scores(image, text), late_scores(text, image)
        (tensor([[0.5000]]), tensor([[1.]]))
    """
    each = max(1, at_once // max(1, queries.shape[0] * queries.shape[1] * items.shape[1]))
    if each >= len(items):
        return _block(queries, items, query_mask, item_mask)
    is_trained = torch.is_grad_enabled() and (queries.requires_grad or items.requires_grad)
    blocks = []
    for first in range(0, len(items), each):
        some = slice(first, first + each)
        mask = None if item_mask is None else item_mask[some]
        arguments = (queries, items[some], query_mask, mask)
        if is_trained:
            # In a backward pass the products are computed again: held they would fill the memory.
            blocks.append(checkpoint(_block, *arguments, use_reentrant=False))
        else:
            blocks.append(_block(*arguments))
    return torch.cat(blocks, dim=1)


def _block(
    queries: Tensor, items: Tensor, query_mask: Tensor | None, item_mask: Tensor | None
) -> Tensor:
    count, length, dim = queries.shape
    products = queries.reshape(-1, dim).float() @ items.reshape(-1, dim).float().T
    products = products.view(count, length, *items.shape[:2])
    if item_mask is not None:
        products = products.masked_fill(~item_mask, -math.inf)
    best = products.amax(dim=3)
    if item_mask is not None:
        best = best.masked_fill(~item_mask.any(dim=1), -1.0)
    if query_mask is None:
        return best.mean(dim=1)
    real = query_mask[:, :, None].to(best.dtype)
    mean = (best * real).sum(dim=1) / real.sum(dim=1).clamp_min(1.0)
    return mean.masked_fill(~query_mask.any(dim=1)[:, None], -1.0)


def keep_best(
    tokens: Tensor, mask: Tensor, others: Tensor, others_mask: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """The tokens of each sample that are answered best by any token of the other modality.

    Args:
        tokens: Unit vectors (N, P, D).
        mask: bool (N, P), True where a token is real.
        others: Unit vectors (M, Q, D), of the same batch.
        others_mask: bool (M, Q).
        share: Of each sample's real tokens, rounded up; 1 keeps all as they are.

    Returns:
        Tokens (N, P', D) and their mask.
    """
    if share >= 1 or not others_mask.any():
        return tokens, mask
    with torch.no_grad():
        real = others[others_mask]
        best = torch.stack([(each @ real.T).amax(dim=1) for each in tokens])
        order = best.masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
        counts = torch.ceil(mask.sum(dim=1) * share).clamp_min(1).long()
        order = order[:, : int(counts.max())]
    kept = torch.arange(order.shape[1], device=mask.device) < counts[:, None]
    chosen = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
    return chosen, kept & mask.gather(1, order)


class LateScorer:
    """Scores of tokens against tokens; which direction it is, the roles of the two say."""

    cost: Literal["late"] = "late"
    needs: Literal["tokens"] = "tokens"

    def score(self, query: Features, gallery: Features) -> Tensor:
        """Scores float32 (N, C)."""
        return late_scores(
            _units(query), _units(gallery), query_mask=query.mask, item_mask=gallery.mask
        )


def _units(features: Features) -> Tensor:
    if features.tokens is None:
        raise ValueError(f"features of {features.modality} have no tokens, expected some")
    # Frames of videos come unscaled; of tokens that have unit length nothing changes.
    return functional.normalize(features.tokens.float(), dim=-1)


class TokenForm:
    """All patches of a picture in the index; all tokens of a text ask.

    Args:
        model: Makes the vectors.
    """

    def __init__(self, model: DualEncoder) -> None:
        self._model = model

    @cached_property
    def space(self) -> Space:
        """The model's, of several vectors an item."""
        return replace(self._model.own_space, kind="multi")

    def of_images(self, images: Sequence[PictureSource]) -> list[Vectors]:
        """Unit vectors float32 (P, D) of the patches of each picture."""
        tokens = self._model.image_features(images).tokens
        return [] if tokens is None else list(tokens.numpy())

    def of_texts(self, texts: Sequence[str]) -> list[Vectors]:
        """Unit vectors float32 (Q, D) of the tokens of each text."""
        found = self._model.text_features(texts)
        if found.tokens is None or found.mask is None:
            return []
        pairs = zip(found.tokens, found.mask, strict=True)
        return [tokens[mask].numpy() for tokens, mask in pairs]

    def score(self, query: Vectors, item: Vectors) -> float:
        """Mean over the query's vectors of the best product with a vector of the item."""
        return float((query @ item.T).max(axis=1).mean())

    def bound(self, best_V: Vectors) -> float:
        """The score of an item that has these products, and no greater ones, with the query."""
        return float(np.mean(best_V))


class FilipObjective(nn.Module, Objective):
    """The contrast of both directions' late scores.

    Args:
        config: Settings.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.temperature = Temperature(config.temperature, least=_LEAST, greatest=_GREATEST)

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Keep the temperature in its range."""
        self.temperature.clamp()

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """The loss of one batch; row b * K + k is picture b with its caption k."""
        image, text = features["image"], features["text"]
        if text.mask is None:
            raise ValueError("features of text have no mask, expected one")
        images, texts = model.project_tokens(image), model.project_tokens(text)
        return self.contrast(batch, images, texts, text.mask)

    def contrast(self, batch: Batch, images: Tensor, texts: Tensor, text_mask: Tensor) -> Losses:
        """The loss of unit vectors.

        Args:
            batch: Groups and weights of its B pictures.
            images: (B, P, D).
            texts: (B * K, Q, D), the captions of picture b in rows b * K on.
            text_mask: bool (B * K, Q).

        Returns:
            The mean of both directions, each of them, and the temperature.
        """
        captions = len(texts) // len(images)
        groups = batch.groups.repeat_interleave(captions)
        weight = batch.weight.repeat_interleave(captions)
        kept_images, kept_texts = self._pruned(batch, images, texts, text_mask)
        own = torch.arange(len(groups), device=groups.device) + rank() * len(groups)
        related = groups[:, None] == gather_rows(groups)[None, :]
        absent = (gather_rows(weight) <= 0) & ~functional.one_hot(own, related.shape[1]).bool()

        def rows(scores: Tensor) -> Tensor:
            scaled = (scores * self.temperature.inverse()).masked_fill(absent, -math.inf)
            return contrast_rows(scaled, own, related, self.config.siblings)

        i2t = _scores(kept_images, kept_texts).repeat_interleave(captions, dim=0)
        t2i = _scores(kept_texts, kept_images).repeat_interleave(captions, dim=1)
        parts = {
            "image_to_text": mean_across(rows(i2t), weight),
            "text_to_image": mean_across(rows(t2i), weight),
        }
        total = (parts["image_to_text"] + parts["text_to_image"]) / 2
        log = {name: value.detach() for name, value in parts.items()}
        log["temperature"] = self.temperature.value()
        return Losses(total=total, parts=log)

    def _pruned(
        self, batch: Batch, images: Tensor, texts: Tensor, text_mask: Tensor
    ) -> tuple[Tokens, Tokens]:
        """The tokens of each sample that take part; a pair of weight 0 has no say in others'."""
        every = images.new_ones(images.shape[:2]).bool()
        trusted = batch.weight > 0
        trusted_texts = trusted.repeat_interleave(len(texts) // len(images))
        share = self.config.keep
        return (
            keep_best(images, every, texts, text_mask & trusted_texts[:, None], share),
            keep_best(texts, text_mask, images, every & trusted[:, None], share),
        )


def _scores(queries: Tokens, items: Tokens) -> Tensor:
    """Scores of this process's queries and all processes' items."""
    tokens, mask = _from_all(items)
    return late_scores(queries[0], tokens, query_mask=queries[1], item_mask=mask)


def _from_all(own: Tokens) -> Tokens:
    if world_size() == 1:
        return own
    tokens, mask = own
    # Processes may have sequences of different lengths.
    lengths = gather_rows(torch.tensor([tokens.shape[1]], device=tokens.device))
    missing = int(lengths.max()) - tokens.shape[1]
    padded = functional.pad(tokens, (0, 0, 0, missing))
    return gather_rows_with_gradient(padded), gather_rows(functional.pad(mask, (0, missing)))


def parts(config: Config, base: Base) -> Parts:
    """FILIP on a model.

    Args:
        config: Settings.
        base: The model.

    Returns:
        A scorer and a form for indexes; an objective when something is trained.
    """
    objective = ((1.0, FilipObjective(config)),) if base.training is not None else ()
    return Parts(
        objective=objective,
        reads=("image", "text"),
        scorer=LateScorer(),
        index=TokenForm(base.model),
    )


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """Late interaction against one vector a picture, on equal terms, and its two-stage search.

    Args:
        options: With `flickr8k` below its data root, photographs; else procedural scenes.

    Returns:
        Tables with a verdict for every comparison.
    """
    from costream.methods._filip.claim import reproduce

    return reproduce(options)
