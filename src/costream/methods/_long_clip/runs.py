"""One run: a model of short captions is fine-tuned on long texts in one way, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from costream.data import DataSet
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import tokenize
from costream.methods.long_clip import SHORT, Config, LongClipObjective, TwoLengths, lengthen
from costream.records import Batch
from costream.train.config import TrainConfig
from costream.train.loader import Draw
from costream.train.short import CachedPairs, cache_pairs, encode_cached, train_short
from costream.train.worlds import retrieval_hits

KEEP = 8
"""Rows kept; the plain captions of the old model train rows 0 to 12."""

OLD = Config(short_weight=0.0, smoothing=0.0, scale=1 / 0.07)
"""Plain contrast, which the old model is trained with."""

NEW = Config(keep=KEEP)
WAYS: Mapping[str, Config] = {
    "long_clip": NEW,
    "cut": replace(NEW, keep=0, stretch=1),
    "direct": replace(NEW, keep=0, short_weight=0.0),
    "interpolated": replace(NEW, keep=0),
    "mixed": replace(NEW, component_share=1.0),
    "long only": replace(NEW, short_weight=0.0),
}
"""The method; texts cut at the old context; all positions interpolated and long texts only; the
same with both losses; short texts without principal components; and the method without them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TwoLengthPairs(CachedPairs):
    """Pictures with one long text each, and one short one.

    Attributes:
        short_ids: int64 (N, T), tokens of the short texts.
        short_mask: int64 (N, T).
    """

    short_ids: Tensor
    short_mask: Tensor

    def batch(
        self, draws: Sequence[Draw], captions_of: Sequence[int], trust: Sequence[float]
    ) -> tuple[Batch, Tensor | None]:
        """As of `CachedPairs`, with the short texts beside the long ones."""
        batch, frozen = CachedPairs.batch(self, draws, captions_of, trust)
        rows = [captions_of[draw.sample] for draw in draws]
        longest = int(self.short_mask[rows].sum(dim=1).max())
        short = {
            f"{SHORT}.ids": self.short_ids[rows, None, :longest],
            f"{SHORT}.mask": self.short_mask[rows, None, :longest],
        }
        return replace(batch, slots={**batch.slots, **short}), frozen


def two_lengths(model: DualEncoder, data: DataSet) -> TwoLengthPairs:
    """Pictures with one long text each as a model reads them."""
    samples = TwoLengths().of_all(data.samples)
    pairs = cache_pairs(model, DataSet(name=data.name, samples=tuple(samples)))
    short = [sample.slots[SHORT][0] for sample in samples]
    ids, mask = tokenize(model.tokenizer, short, model.config.text_preprocess)
    return TwoLengthPairs(
        **{field.name: getattr(pairs, field.name) for field in fields(CachedPairs)},
        short_ids=torch.from_numpy(ids),
        short_mask=torch.from_numpy(mask),
    )


def tune(
    model: DualEncoder, config: Config, crowded: DataSet, loop: TrainConfig, dev: Sequence[DataSet]
) -> dict[str, float]:
    """Fine-tune a model in place in one way and measure it.

    Args:
        model: Trained on plain scenes.
        config: The way.
        crowded: Training pictures with long texts.
        loop: Steps, rates and seed.
        dev: Plain scenes, then crowded ones.

    Returns:
        `short` and `long`, hit@1 in percent, the mean of both directions; `untuned short` before
        fine-tuning; `kept`, mean cosine in percent of the plain captions' vectors and the old ones.
    """
    plain = cache_pairs(model, dev[0])
    _, old = encode_cached(model, plain)
    lengthen(model, config)
    untuned = retrieval_hits(model, plain)["hit@1"]
    train_short(model, LongClipObjective(config), two_lengths(model, crowded), loop)
    _, new = encode_cached(model, plain)
    return {
        "untuned short": untuned,
        "short": retrieval_hits(model, plain)["hit@1"],
        "long": retrieval_hits(model, cache_pairs(model, dev[1]))["hit@1"],
        "kept": 100 * float(functional.cosine_similarity(old, new).mean()),
    }
