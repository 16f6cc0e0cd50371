"""X-Pool: the frames of a video are pooled anew for each text, by attention of the text.

Idea: a caption tells of a part of a video; the mean of all frames drowns it. The text attends to
the frames, and is compared with what it attended to.

Equations, with text t (D,), frames v_f (D,):

    t' = LN1(t), v'_f = LN1(v_f)                            the same LN1
    w = softmax_f(<W_k v'_f, W_q t'> / sqrt(D / heads))     a head at a time
    o = W_o sum_f w_f W_v v'_f
    a = LN2(o), p(t, v) = LN3(a + dropout(W a + b))         no residual from text or frames
    score = cos(t, p(t, v))

Every matrix starts as the identity, every bias as 0: attention without parameters. Trained by
contrast in both directions over the scores of all pairs of a batch, with a learned scale.

Shapes: Q texts, G videos, F frames, D dimensions, B videos of a batch, K captions a video.

Source: Gorti et al., "X-Pool: Cross-Modal Language-Video Attention for Text-Video Retrieval" (CVPR
2022) and its code (layer6ai-labs/xpool), by specification.

Differs: captions of the same video in a batch are no negatives of each other. Frames may be given
at unit length: LN1 takes the length away (to its epsilon of 1e-5).

Costs: a pass over F * D numbers and two D x D products for every pair; G * Q * D numbers are held
in blocks. Index impact: pairwise; the mean of the frames, or the best frame, is the first stage.
`costream evaluate` and `costream search` score by it; the latter the best 200 items for words.
Training reads manifests that name videos; `frames` says how many pictures are taken of each.

Claim: it finds videos of which only some frames show what the text says, where the mean of the
frames (COTS' text-to-video retrieval) does not, and loses nothing where all frames do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range
from costream.encoders.dual import DualEncoder
from costream.errors import ConfigError
from costream.objectives import Losses, Objective
from costream.objectives.contrast import contrast_rows
from costream.objectives.gather import gather_rows, gather_rows_with_gradient, mean_across, rank
from costream.objectives.temperature import Temperature
from costream.parts import Base, Parts
from costream.records import Batch, Features

if TYPE_CHECKING:
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {
    "name": "x_pool",
    "title": "X-Pool: cross-modal language-video attention",
    "paper": "Gorti et al., X-Pool, CVPR",
    "year": 2022,
    "kind": "scorer, objective",
    "slots": ("surgery", "objective", "scorer"),
    "index_impact": "pairwise",
    "losses": ("text_to_video", "video_to_text"),
    "summary": "Pools the frames of a video by the attention of each text; pairs are scored behind "
    "a first stage.",
    "scale": "Published with CLIP ViT-B/32 fine-tuned on 7,000 to 9,000 clips of twelve frames. "
    "What training adds to attention that is not trained shows where frames share much that says "
    "nothing of the text, as those of one real scene do.",
}

_GREATEST_SCALE = 100.0
_MODULE = "frame_pooling"
MOST_DIMENSIONS = 4096
"""Of vectors that are pooled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings.

    Attributes:
        heads: Attention heads; divides the dimensions.
        dropout: Rate in the last linear layer, while training.
        scale: What cosines are multiplied with at first; it trains.
    """

    heads: Annotated[int, Range(1)] = 1
    dropout: Annotated[float, Range(0, 1, high_included=False)] = 0.3
    scale: Annotated[float, Range(0, _GREATEST_SCALE, low_included=False)] = 20.0


class FramePooling(nn.Module):
    """Pools frames for each text.

    Args:
        dim: D.
        heads: Divides D.
        dropout: Rate, while training.

    Raises:
        ConfigError: When the heads do not divide the dimensions, or there are too many of these.
    """

    def __init__(self, dim: int, *, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if dim > MOST_DIMENSIONS:
            raise ConfigError(
                f"vectors have {dim:,} dimensions, expected at most {MOST_DIMENSIONS:,}: the "
                "attention has five times their square of weights",
                hint="train it without the method that makes them so long",
            )
        if dim % heads:
            raise ConfigError(f"heads is {heads}, expected a divisor of {dim}", hint="heads=1")
        self.heads, self.dropout = heads, dropout
        self.norm_in, self.norm_attended, self.norm_out = (nn.LayerNorm(dim) for _ in range(3))
        self.query, self.key, self.value, self.out, self.linear = (
            nn.Linear(dim, dim) for _ in range(5)
        )
        for layer in (self.query, self.key, self.value, self.out, self.linear):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def weights(self, text_QD: Tensor, frames_GFD: Tensor) -> Tensor:
        """Attention (G, heads, Q, F) of texts to frames; sums to 1 over the frames."""
        query = self.query(self.norm_in(text_QD)).unflatten(-1, (self.heads, -1))
        key = self.key(self.norm_in(frames_GFD)).unflatten(-1, (self.heads, -1))
        logits = torch.einsum("qhd,gfhd->ghqf", query, key) / math.sqrt(query.shape[-1])
        return torch.softmax(logits, dim=-1)

    def forward(self, text_QD: Tensor, frames_GFD: Tensor) -> Tensor:
        """Frames pooled for every text, (G, Q, D)."""
        value = self.value(self.norm_in(frames_GFD)).unflatten(-1, (self.heads, -1))
        mixed = torch.einsum("ghqf,gfhd->gqhd", self.weights(text_QD, frames_GFD), value)
        attended = self.norm_attended(self.out(mixed.flatten(2)))
        moved = functional.dropout(self.linear(attended), self.dropout, self.training)
        pooled: Tensor = self.norm_out(attended + moved)
        return pooled

    def scores(self, text_QD: Tensor, frames_GFD: Tensor) -> Tensor:
        """Cosines of texts and what they attended to, float32 (Q, G)."""
        with torch.autocast(text_QD.device.type, enabled=False):
            pooled_GQD = self(text_QD.float(), frames_GFD.float())
            return functional.cosine_similarity(text_QD.float()[None], pooled_GQD, dim=-1).T


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PooledScorer:
    """Scores texts and videos by `FramePooling`; a picture is a video of one frame."""

    pooling: FramePooling
    cost: Literal["pair"] = "pair"
    needs: Literal["tokens"] = "tokens"

    @torch.no_grad()
    def score(self, query: Features, gallery: Features) -> Tensor:
        """As of `costream.scoring.protocol.Scorer`."""
        was_training = self.pooling.training
        self.pooling.eval()
        try:
            if query.modality == "text":
                return self.pooling.scores(query.pooled, frames_of(gallery))
            return self.pooling.scores(gallery.pooled, frames_of(query)).T
        finally:
            self.pooling.train(was_training)


def frames_of(features: Features) -> Tensor:
    """Frames (N, F, D) of videos; of pictures, the picture itself."""
    if features.modality == "video" and features.tokens is not None:
        return features.tokens
    return features.pooled[:, None]


class PooledContrast(nn.Module, Objective):
    """Contrast over the scores of all pairs of a batch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
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
        """As of `costream.objectives.Objective`; reads `video` and `text`."""
        del state
        frames = frames_of(features["video"])
        text = features["text"].pooled
        captions = len(text) // len(frames)
        pooling = pooling_of(model)
        scale = self.temperature.inverse()
        all_frames = gather_rows_with_gradient(frames.flatten(1)).unflatten(1, frames.shape[1:])
        all_text = gather_rows_with_gradient(text)
        to_video = pooling.scores(text, all_frames) * scale
        to_text = pooling.scores(all_text, frames).T * scale
        weight, groups = gather_rows(batch.weight), gather_rows(batch.groups)
        own = torch.arange(len(frames), device=text.device) + rank() * len(frames)
        forward = self._rows(
            to_video,
            own.repeat_interleave(captions),
            batch.groups.repeat_interleave(captions)[:, None] == groups[None, :],
            weight,
        )
        first = own * captions
        backward = torch.stack(
            [
                self._rows(
                    to_text,
                    first + number,
                    batch.groups[:, None] == groups.repeat_interleave(captions)[None, :],
                    weight.repeat_interleave(captions),
                )
                for number in range(captions)
            ]
        ).mean(dim=0)
        parts = {
            "text_to_video": mean_across(forward, batch.weight.repeat_interleave(captions)),
            "video_to_text": mean_across(backward, batch.weight),
        }
        total = (parts["text_to_video"] + parts["video_to_text"]) / 2
        return Losses(total=total, parts={name: value.detach() for name, value in parts.items()})

    @staticmethod
    def _rows(scores: Tensor, own: Tensor, related: Tensor, weight: Tensor) -> Tensor:
        columns = torch.arange(scores.shape[1], device=scores.device)
        absent = (weight == 0)[None, :] & (columns[None, :] != own[:, None])
        return contrast_rows(scores.masked_fill(absent, -torch.inf), own, related, "remove")


def pooling_of(model: DualEncoder) -> FramePooling:
    """The pooling that surgery put on a model."""
    found = model.get_submodule(_MODULE)
    if not isinstance(found, FramePooling):
        raise TypeError(f"got a {type(found).__name__}, expected the pooling of frames")
    return found


def parts(config: Config, base: Base) -> Parts:
    """What it puts into a system.

    Args:
        config: Settings.
        base: The model and its training.

    Returns:
        The pooling, on the model and as scorer; while training the loss.

    Raises:
        ConfigError: When the heads do not divide the dimensions.
    """
    known = dict(base.model.named_children())
    pooling = known.get(_MODULE)
    if not isinstance(pooling, FramePooling):
        pooling = FramePooling(base.model.config.dim, heads=config.heads, dropout=config.dropout)
    objective = () if base.training is None else ((1.0, PooledContrast(config)),)
    return Parts(
        surgery=(_put(pooling),),
        objective=objective,
        reads=() if base.training is None else ("video", "text"),
        scorer=PooledScorer(pooling=pooling),
    )


def _put(pooling: FramePooling) -> Callable[[DualEncoder], DualEncoder]:
    def put(model: DualEncoder) -> DualEncoder:
        model.add_module(_MODULE, pooling.to(model.device))
        return model

    return put


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """The paper's claim as an experiment: clips of which r of 12 frames show what the text says.

    Args:
        options: With `flickr8k` below its data root, clips cut together from photographs (the
            motion is made up: pans over them); else vectors with noise.

    Returns:
        One table.
    """
    from costream.methods._x_pool.claim import reproduce

    return reproduce(options)
