"""Long-CLIP: a trained two-stream model learns to read long texts and keeps what it knew.

Idea: a text tower's positions are trained only as far as its captions went. The first rows, which
are, stay as they are, frozen; the others are stretched by interpolation. Then the model is
fine-tuned on long texts, and on short ones against what is most variable in the pictures only, so
that a short text need not tell what it does not mention.

Equations, with E the positions (n rows), m of them kept, stretched r times, v the picture's vector,
t_l and t_s those of the long and the short text, s the scale:

    stretch   E'[p] = E[p] for p < m;  E'[m + r i + j] = E[m+i] + (j / r) (E[m+i+1] - E[m+i]),
              and E[n] = 2 E[n-1] - E[n-2]: n' = m + r (n - m) rows
    long      CE(s v t_l^T), both directions, label smoothing 0.1
    short     CE(s w t_s^T), both directions, label smoothing 0.1,
              w = mu + (v - mu) V_k V_k^T, the batch's mean and its k first principal directions

Shapes: B pictures, K texts a picture, N = B * K pairs, M pairs of all processes, D dimensions.

Source: Zhang, Zhang, Dong, Zang, Wang, "Long-CLIP: Unlocking the Long-Text Capability of CLIP"
(ECCV 2024), and its code (beichenzbc/Long-CLIP, Apache-2.0), both as the specification of this
library reports them; the code was not read again here. The paper's ablation is from memory.

Differs: k is a share of the batch (a quarter, as 32 of the 128 pictures a GPU), for with k >= B - 1
the projection is the identity. Statistics are of all processes together (`local` is as released).
The gradient takes the directions V_k as given; through the SVD (`through_svd`, as released) it
explodes where two singular values are equal. w is not scaled to unit length again, as released, so
the logits of the short loss are flatter; `renormalise` does. Frozen rows are kept in place of the
released two tables joined by masks. Where texts have one sentence each, as in most captioned
pictures, `texts=joined` makes a long text of all captions of a picture.

What holds where: before fine-tuning, a text of at most `keep` tokens has the same vector as before
the surgery in every tower that masks padding: of CLIP's kind (causal, end-of-text) as of BERT's
(both directions, mean). Of a longer text, the first `keep` tokens have the same states as before in
a causal tower only; in one that looks both ways they see the new positions, too. A tower that pools
the last position of the context (SigLIP) is refused. After fine-tuning, vectors differ: everything
but the kept rows trains. The released rate is 1e-6 at a batch of 2,048.

Costs: one more pass of the text tower while training; long texts cost their length at inference.
Index impact: reencode.

Claim: long texts are found better than by the model that cuts them, and short ones are not lost, as
they are by fine-tuning on long texts with all positions interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from costream.config import Range
from costream.errors import ConfigError, NumericalError
from costream.objectives import Losses, Objective
from costream.objectives.gather import gather_rows, gather_rows_with_gradient, mean_across, rank
from costream.objectives.temperature import Temperature
from costream.parts import Base, Parts
from costream.records import Batch, Features, Sample

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {
    "name": "long_clip",
    "title": "Long-CLIP: Unlocking the Long-Text Capability of CLIP",
    "paper": "Zhang et al., ECCV 2024",
    "year": 2024,
    "kind": "longer texts for a trained model",
    "slots": ("surgery", "objective", "data"),
    "index_impact": "reencode",
    "losses": ("long", "short"),
    "summary": "Stretches the text positions behind a kept prefix, then fine-tunes on long texts "
    "and on short ones against the principal components of the pictures.",
    "scale": "Published with 1.2 million pictures with long captions (ShareGPT4V), CLIP B/16 and "
    "L/14, batches of 2,048. What the principal part adds over the whole vector needs texts that "
    "say much which no short caption does.",
}

SHORT = "text.short"
"""The slot of the short texts."""

Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]
Texts = Literal["caption", "joined"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of Long-CLIP; the defaults are those of the released code.

    Attributes:
        keep: Rows of the position table that stay as they are and take no gradient. Above the
            longest text the model was well trained on they waste context, below they lose it; users
            of the paper's model report better results with 30.
        stretch: How many times longer the rest becomes; 1 trains a stretched model on.
        long_weight: Weight of the loss between pictures and long texts; 0 is not computed.
        short_weight: The same for short texts.
        component_share: Principal directions of the pictures that the short loss sees, as a share
            of min(batch, dimensions); 1 keeps all, which is plain contrast.
        smoothing: Label smoothing of both losses.
        scale: What similarities are multiplied by at the start; it trains, unclamped.
        renormalise: Whether what is left of a picture gets unit length again.
        through_svd: Whether the gradient flows through the principal directions.
        local: Whether each process takes the principal directions of its own pictures.
        texts: What a long text is: a `caption`, whose first sentence is the short one; or all
            captions of a picture `joined`, each in turn the first and the short one.
    """

    keep: Annotated[int, Range(0)] = 20
    stretch: Annotated[int, Range(1)] = 4
    long_weight: Weight = 1.0
    short_weight: Weight = 1.0
    component_share: Share = 0.25
    smoothing: Annotated[float, Range(0, 1, high_included=False)] = 0.1
    scale: Annotated[float, Range(0, low_included=False)] = 100.0
    renormalise: bool = False
    through_svd: bool = False
    local: bool = False
    texts: Texts = "caption"


def stretched_length(length: int, keep: int, stretch: int) -> int:
    """Rows of a stretched table.

    Example:
        >>> stretched_length(77, keep=20, stretch=4)
        248
    """
    return keep + stretch * (length - keep)


def stretch_positions(table_ND: Tensor, keep: int, stretch: int) -> Tensor:
    """A longer position table: the first rows as they are, the others interpolated.

    The last of the new rows extrapolate the difference of the last two.

    Args:
        table_ND: float (N, D), at least 2 rows.
        keep: Rows that stay, 0 to N.
        stretch: New rows for each other one, at least 1.

    Returns:
        float (keep + stretch * (N - keep), D).

    Example:
        >>> stretch_positions(torch.tensor([[0.0], [1.0], [3.0]]), keep=1, stretch=2).flatten()
        tensor([0., 1., 2., 3., 4.])
    """
    beyond = 2 * table_ND[-1:] - table_ND[-2:-1]
    rest = table_ND[keep:]
    following = torch.cat([table_ND, beyond])[keep + 1 :]
    steps = torch.arange(stretch, device=table_ND.device)[:, None] / stretch
    # Of the form a + w (b - a): at w = 0 the old row to the last bit.
    between = torch.lerp(rest[:, None], following[:, None], steps.to(table_ND.dtype))
    return torch.cat([table_ND[:keep], between.flatten(0, 1)])


class KeptRows(nn.Module):
    """A position table in two weights: rows that take no gradient, and all others."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, kept: Tensor, free: Tensor) -> Tensor:
        """Both weights to the table (N, D)."""
        return torch.cat([kept, free])

    def right_inverse(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The table (N, D) to both weights."""
        return table[: self.keep].clone(), table[self.keep :].clone()


def lengthen(model: DualEncoder, config: Config) -> DualEncoder:
    """Stretch the text positions of a model in place, and let it read texts that long.

    Args:
        model: Any with a text tower that does not pool the last position of its context.
        config: For `keep` and `stretch`.

    Returns:
        The model.

    Raises:
        ConfigError: When it pools the last position, has fewer positions than are to be kept, or
            was stretched before.
    """
    text = model.config.text
    if text.pooling == "last":
        raise ConfigError(
            f"{model.name} pools the last position of its context, which stretching would move",
            hint="start from a model with another pooling",
        )
    if config.keep > text.context:
        raise ConfigError(
            f"keep={config.keep}, but {model.name} has {text.context} positions",
            hint="keep fewer",
        )
    if parametrize.is_parametrized(model.text, "position_embedding"):
        if config.stretch > 1:
            raise ConfigError(
                f"{model.name} was stretched before, to {text.context} positions",
                hint="set stretch=1 to train it on",
            )
        parametrize.remove_parametrizations(model.text, "position_embedding")
    table = stretch_positions(model.text.position_embedding.detach(), config.keep, config.stretch)
    model.text.position_embedding = nn.Parameter(table)
    parametrize.register_parametrization(model.text, "position_embedding", KeptRows(config.keep))
    parametrization = cast(Any, model.text.parametrizations).position_embedding
    parametrization.original0.requires_grad_(False)
    settings = model.config.text_preprocess
    longest = max(
        settings.max_tokens, stretched_length(settings.max_tokens, config.keep, config.stretch)
    )
    model.config = replace(
        model.config,
        text=replace(text, context=len(table)),
        text_preprocess=replace(settings, max_tokens=longest),
    )
    model.text.config = model.config.text
    return model


def principal_part(
    rows_BD: Tensor, present_B: Tensor, count: int, *, through_svd: bool = False
) -> tuple[Tensor, Tensor]:
    """What is left of vectors along their mean and the first principal directions.

    Args:
        rows_BD: float (B, D).
        present_B: bool (B,), rows that count; others become 0.
        count: Directions kept.
        through_svd: Whether the gradient flows through the directions.

    Returns:
        float32 (B, D), and the share of the variance that is kept (1 when there is none).

    Raises:
        NumericalError: When a row that counts is not finite.
    """
    with torch.autocast(rows_BD.device.type, enabled=False):
        rows = rows_BD[present_B].float()
        if not torch.isfinite(rows).all():
            raise NumericalError("a picture's vector is not finite", hint="lower the learning rate")
        result = torch.zeros_like(rows_BD, dtype=torch.float32)
        if len(rows) < 2:
            return result.masked_scatter(present_B[:, None], rows), rows.new_ones(())
        mean = rows.mean(dim=0)
        centred = rows - mean
        source = centred if through_svd else centred.detach()
        _, values, directions = torch.linalg.svd(source, full_matrices=False)
        main = directions[:count]
        projected = mean + centred @ main.T @ main
        variance = values.detach().square()
        kept = (variance[:count].sum() + 1e-30) / (variance.sum() + 1e-30)
        return result.masked_scatter(present_B[:, None], projected), kept


def smoothed_rows(scores_NM: Tensor, own_N: Tensor, absent_NM: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy (N,) with label smoothing over the columns that are there.

    `(1 - e) * -log p[own] + e * mean over columns of -log p`.

    Args:
        scores_NM: float32 (N, M), scaled.
        own_N: int64 (N,), the right column.
        absent_NM: bool (N, M), columns that are left out; never the right one.
        smoothing: e, at least 0 and below 1.
    """
    log_p = functional.log_softmax(scores_NM.masked_fill(absent_NM, float("-inf")), dim=1)
    right = log_p.gather(1, own_N[:, None])[:, 0]
    mean = log_p.masked_fill(absent_NM, 0.0).sum(dim=1) / (~absent_NM).sum(dim=1)
    return -((1 - smoothing) * right + smoothing * mean)


class LongClipObjective(nn.Module, Objective):
    """Contrast of pictures with long texts, and of their principal part with short ones.

    Args:
        config: Weights and settings.

    Raises:
        ConfigError: When both losses are off.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.long_weight == 0 and config.short_weight == 0:
            raise ConfigError("both losses have weight 0", hint="give one of them a weight")
        self.config = config
        self.temperature = Temperature(1 / config.scale)

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """Both losses of a batch.

        Args:
            model: Not used; the features are all that is needed.
            batch: Slots `image`, `text` and `text.short`, as many short texts as long ones.
            features: The clean pass over them.
            state: Of `init_state`.

        Returns:
            The weighted sum; for the log both losses and `variance`, the share of the pictures'
            variance that the short loss sees.

        Raises:
            NumericalError: When a picture's vector is not finite.
        """
        config = self.config
        image = features["image"].pooled
        parts: dict[str, Tensor] = {}
        log: dict[str, Tensor] = {}
        if config.long_weight > 0:
            every = gather_rows_with_gradient(image)
            parts["long"] = self._contrast(image, every, features["text"].pooled, batch)
        if config.short_weight > 0:
            main, every, log["variance"] = self._principal(image, batch.weight)
            parts["short"] = self._contrast(main, every, features[SHORT].pooled, batch)
        weights = {"long": config.long_weight, "short": config.short_weight}
        zero = batch.weight.new_zeros(())
        total = sum((weights[name] * value for name, value in parts.items()), zero)
        log |= {name: value.detach() for name, value in parts.items()}
        return Losses(total=total, parts=log)

    def _principal(self, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The principal part of this process's pictures and of all, and the variance kept."""
        config = self.config
        rows = image if config.local else gather_rows_with_gradient(image)
        present = (weight if config.local else gather_rows(weight)) > 0
        count = max(1, int(config.component_share * min(rows.shape)))
        main, kept = principal_part(rows, present, count, through_svd=config.through_svd)
        if config.renormalise:
            main = functional.normalize(main, dim=-1)
        if config.local:
            return main, gather_rows_with_gradient(main), kept
        return main[rank() * len(image) :][: len(image)], main, kept

    def _contrast(self, image: Tensor, every_image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """Both directions between pairs; other texts of the same group are left out."""
        captions = len(text) // len(image)
        weight, groups = (each.repeat_interleave(captions) for each in (batch.weight, batch.groups))
        own = torch.arange(len(text), device=text.device) + rank() * len(text)
        related = groups[:, None] == gather_rows(groups)[None, :]
        absent = related | (gather_rows(weight) <= 0)[None, :]
        absent = absent.scatter(1, own[:, None], value=False)
        rows = torch.zeros_like(weight)
        pairs = (
            (image.repeat_interleave(captions, dim=0), gather_rows_with_gradient(text)),
            (text, every_image.repeat_interleave(captions, dim=0)),
        )
        with torch.autocast(text.device.type, enabled=False):
            for queries, keys in pairs:
                scores = self.temperature.inverse() * (queries.float() @ keys.float().T)
                rows = rows + smoothed_rows(scores, own, absent, self.config.smoothing) / 2
        return mean_across(rows, weight)


@dataclass(frozen=True, slots=True)
class TwoLengths:
    """Gives each sample a short text beside each long one.

    Attributes:
        texts: As of `Config`.
    """

    texts: Texts = "caption"

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """Samples to samples with `text` and `text.short`, equally many."""
        return self.of_all(samples)

    def of_all(self, samples: Sequence[Sample]) -> list[Sample]:
        """The same; nothing here is random."""
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Sample:
        captions: tuple[str, ...] = tuple(sample.slots.get("text") or ())
        if self.texts == "joined":
            sentences = [caption.strip().rstrip(". ") for caption in captions]
            turns = [sentences[n:] + sentences[:n] for n in range(len(sentences))]
            both = {"text": tuple(". ".join(turn) for turn in turns), SHORT: captions}
        else:
            both = {"text": captions, SHORT: tuple(map(first_sentence, captions))}
        return replace(sample, slots={**sample.slots, **both})


def first_sentence(text: str) -> str:
    """A text up to its first ". "; all of it when there is none.

    Example:
        >>> first_sentence("A dog runs. It is brown.")
        'A dog runs'
    """
    return text.partition(". ")[0]


def parts(config: Config, base: Base) -> Parts:
    """Long-CLIP for a model.

    Args:
        config: Settings.
        base: Where nothing is trained, only the surgery is given.

    Returns:
        Surgery; and for training both losses and the short texts.

    Raises:
        ConfigError: When both losses are off.
    """

    def surgery(model: DualEncoder) -> DualEncoder:
        return lengthen(model, config)

    if base.training is None:
        return Parts(surgery=(surgery,))
    reads = ("image", "text", SHORT) if config.short_weight > 0 else ("image", "text")
    return Parts(
        surgery=(surgery,),
        objective=((1.0, LongClipObjective(config)),),
        reads=reads,
        data=(TwoLengths(config.texts),),
    )


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """Long texts gained, short ones kept: against truncation, interpolation and plain contrast.

    Args:
        options: Real data is not used: no set at hand has long texts whose beginnings are alike.

    Returns:
        Tables with a verdict for every comparison.
    """
    from costream.methods._long_clip.claim import reproduce

    return reproduce(options)
