"""1-to-K contrast: one picture against its captions in K languages at once, and Mean Rank Variance.

Idea: trained with one language a step, or by way of English, a model retrieves the same picture at
different ranks in different languages. Here every step shows a picture with one caption in each of
K languages, and all K are its positives; consistency over languages is measured by itself.

Equations, with V the pictures (B, D) and T their captions (B * K, D), row i * K + k the language k
of picture i, all of unit length, S = V T^T / tau:

    image to text   A = mean_i sum_k -log softmax(S[i])[i * K + k], over all B * K captions
    text to image   C = mean over the B * K captions of -log softmax(S[:, j])[its picture]
    loss            (A / K + w C) / 2, with w = 1 (balanced) or 1 / K (as released)
    MRV             mean over instances of the variance of the K ranks of the right item

Shapes: B pictures, K languages, C captions a picture and language, D dimensions.

Source: Nie et al., "Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K
Contrastive Learning" (KDD 2024) and its released code (BUAADreamer/CCRK, MIT), by specification.
That the paper's MRV is the variance is from memory; the released code averages the standard
deviation, and both are reported. The balanced weight is the default here.

Differs: only the contrast; image-text matching and masked modelling of the fusion encoder are not
there. Ranks are over the whole gallery, and tied items share their expected rank (the released
evaluation gives all but 128 items the same score, so that their order is noise).

Costs: K captions a picture instead of one. Index impact: reencode.

Claim: the ranks in different languages differ less (lower MRV) than with one language a step, or
with English as the pivot, at the same number of captions read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from costream.config import Range
from costream.encoders.dual import DualEncoder
from costream.errors import ConfigError, DataError
from costream.objectives import Losses, Objective
from costream.objectives.gather import gather_rows, gather_rows_with_gradient, mean_across, rank
from costream.objectives.temperature import Temperature
from costream.parts import Base, Parts, System
from costream.records import Batch, Features, Report, Sample

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {
    "name": "one_to_k",
    "title": "1-to-K contrastive learning",
    "paper": "Nie et al., Improving the Consistency in Cross-Lingual Cross-Modal Retrieval, KDD",
    "year": 2024,
    "kind": "objective, evaluation",
    "slots": ("objective", "data", "evaluation"),
    "index_impact": "reencode",
    "losses": ("image_to_text", "text_to_image"),
    "summary": "A picture against its captions in K languages at once; Mean Rank Variance measures "
    "how much the rank depends on the language.",
    "scale": "Published with Swin-B and XLM-R-large, captions in 6 or 10 languages by machine "
    "translation, 30 epochs. Ranks agree between languages only as far as a model ranks at all, so "
    "the effect grows with training.",
}

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.001, 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings.

    Attributes:
        languages: Slots of the captions; samples that lack one of them are left out.
        temperature: Divides the similarities at first; it trains, within [0.001, 0.5].
        text_weight: Of the text-to-image half: `balanced` 1, or `released` 1 / K.
    """

    languages: tuple[str, ...] = ("text", "text.de", "text.fr", "text.cs")
    temperature: Annotated[float, Range(LEAST_TEMPERATURE, GREATEST_TEMPERATURE)] = 0.07
    text_weight: Literal["balanced", "released"] = "balanced"


def one_to_k_rows(
    scores_BM: Tensor, owner_M: Tensor, row_B: Tensor, related_BM: Tensor
) -> tuple[Tensor, Tensor]:
    """Both halves of the loss, one value a caption of these pictures.

    Args:
        scores_BM: float (B, M) of B pictures and M captions, already divided by the temperature;
            minus infinity for captions that count nothing.
        owner_M: int64 (M,), the picture of each caption, as a number of all pictures.
        row_B: int64 (B,), the numbers of these pictures.
        related_BM: bool (B, M), True where a caption is of another picture of the same group.

    Returns:
        -log softmax over captions, at each caption of each picture, (B, K); and the mask (B, M) of
        these captions.
    """
    own_BM = owner_M[None, :] == row_B[:, None]
    log_p = torch.log_softmax(scores_BM.masked_fill(related_BM & ~own_BM, -torch.inf), dim=1)
    return -log_p[own_BM].view(len(row_B), -1), own_BM


class OneToK(nn.Module, Objective):
    """The loss of a batch with a caption, or several, in each language."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.temperature = Temperature(
            config.temperature, least=LEAST_TEMPERATURE, greatest=GREATEST_TEMPERATURE
        )

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Keep the temperature in its range."""
        del model, state
        self.temperature.clamp()

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """As of `costream.objectives.Objective`; reads `image` and the slots of `languages`."""
        del model, state
        image = features["image"].pooled.float()
        text = texts_by_picture(features, self.config.languages, len(image))
        each = text.shape[1]
        scale = self.temperature.inverse()
        with torch.autocast(image.device.type, enabled=False):
            all_image = gather_rows_with_gradient(image)
            all_text = gather_rows_with_gradient(text.float()).flatten(0, 1)
            of_image = image @ all_text.T * scale
            of_text = text.float().flatten(0, 1) @ all_image.T * scale
        groups, weight = gather_rows(batch.groups), gather_rows(batch.weight)
        own = torch.arange(len(image), device=image.device) + rank() * len(image)
        owner = torch.arange(len(all_image), device=image.device).repeat_interleave(each)
        absent = (weight == 0)[None, :] & (own[:, None] != torch.arange(len(weight)).to(own))
        related = batch.groups[:, None] == groups[None, :]
        captions = absent.repeat_interleave(each, dim=1)
        rows, _ = one_to_k_rows(
            of_image.masked_fill(captions, -torch.inf),
            owner,
            own,
            related.repeat_interleave(each, dim=1),
        )
        mine = own.repeat_interleave(each)
        columns, _ = one_to_k_rows(
            of_text.masked_fill(absent.repeat_interleave(each, dim=0), -torch.inf),
            torch.arange(len(all_image), device=image.device),
            mine,
            related.repeat_interleave(each, dim=0),
        )
        forward = mean_across(rows.mean(dim=1), batch.weight)
        backward = mean_across(columns.view(len(image), each).mean(dim=1), batch.weight)
        share = 1.0 if self.config.text_weight == "balanced" else 1.0 / each
        return Losses(
            total=(forward + share * backward) / 2,
            parts={"image_to_text": forward.detach(), "text_to_image": backward.detach()},
        )


def texts_by_picture(
    features: Mapping[str, Features], languages: Sequence[str], count: int
) -> Tensor:
    """Captions (B, K * C, D) of B pictures, language by language."""
    return torch.cat([features[slot].pooled.unflatten(0, (count, -1)) for slot in languages], dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class InEveryLanguage:
    """Leaves out samples that lack a caption in one of the languages."""

    languages: tuple[str, ...]

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sequence[Sample]:
        """As of `costream.data.pipe.Pipe`.

        Raises:
            DataError: When nothing is left.
        """
        del rng
        kept = [s for s in samples if all(s.slots.get(slot) for slot in self.languages)]
        if not kept:
            raise DataError(
                f"none of {len(samples)} samples has captions in all of "
                f"{', '.join(self.languages)}",
                hint="train with --set languages=text,text.de or what the data has",
            )
        return kept


def mean_rank_variance(ranks_NK: ArrayLike) -> float:
    """Mean over instances of the variance of their ranks in K languages; 0 is consistent.

    It is 0 as well where every language is equally bad: print it next to the hits.

    Example:
        >>> mean_rank_variance([[1, 5], [2, 2]])
        2.0
    """
    return float(np.var(np.asarray(ranks_NK, dtype=np.float64), axis=1).mean())


def mean_rank_deviation(ranks_NK: ArrayLike) -> float:
    """The same with the standard deviation, as the released code computes it.

    Example:
        >>> mean_rank_deviation([[1, 5], [2, 2]])
        1.0
    """
    return float(np.std(np.asarray(ranks_NK, dtype=np.float64), axis=1).mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class Consistency:
    """Measures hits in each language and how much the rank depends on the language."""

    languages: tuple[str, ...]

    def run(self, system: System, data: DataSet) -> Report:
        """As of `costream.parts.Evaluation`.

        Raises:
            DataError: When no sample has captions in all languages.
        """
        from costream.methods._one_to_k.consistency import measure_consistency

        return measure_consistency(system, data, self.languages)


def parts(config: Config, base: Base) -> Parts:
    """What it puts into a system.

    Args:
        config: Settings.
        base: The model and its training.

    Returns:
        While training the loss and the choice of samples; the evaluation always.

    Raises:
        ConfigError: When there are fewer than two languages, or one is no slot of texts.
    """
    wrong = [slot for slot in config.languages if slot != "text" and not slot.startswith("text.")]
    if wrong or not config.languages:
        raise ConfigError(
            f"languages are {', '.join(config.languages) or 'none'}, expected slots of texts",
            hint="languages=text,text.de,text.fr",
        )
    evaluation = (Consistency(languages=config.languages),)
    if base.training is None:
        return Parts(evaluation=evaluation)
    return Parts(
        objective=((1.0, OneToK(config)),),
        reads=("image", *config.languages),
        data=(InEveryLanguage(languages=config.languages),),
        evaluation=evaluation,
    )


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """The paper's claim as an experiment: 1-to-K, one language a step, and English as the pivot.

    Args:
        options: With `flickr8k` below its data root, its photographs with captions in English,
            German, French and Czech; else scenes with captions in made-up languages.

    Returns:
        One table.
    """
    from costream.methods._one_to_k.claim import reproduce

    return reproduce(options)
