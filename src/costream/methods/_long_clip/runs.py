"""One run: a model of short captions is fine-tuned on long texts in one way, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from costream.data import DataSet
from costream.encoders.dual import DualEncoder
from costream.methods.long_clip import SHORT, Config, LongClipObjective, TwoLengths, lengthen
from costream.records import Batch
from costream.train.config import TrainConfig
from costream.train.loader import Draw
from costream.train.short import CachedPairs, cache_pairs, cache_texts, encode_cached, train_short
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
class TwoLengthPairs:
    """Pictures with one long text each, and one short one.

    Attributes:
        long: Pictures with the long texts.
        short: The same pictures with the short ones.
    """

    long: CachedPairs
    short: CachedPairs

    @property
    def names(self) -> tuple[str, ...]:
        """One a picture."""
        return self.long.names

    def batch(
        self, draws: Sequence[Draw], captions_of: Sequence[int], trust: Sequence[float]
    ) -> tuple[Batch, Tensor | None]:
        """As of `CachedPairs`, with the short texts beside the long ones."""
        batch, frozen = self.long.batch(draws, captions_of, trust)
        short, _ = self.short.batch(draws, captions_of, trust)
        more = {f"{SHORT}.{part}": short.slots[f"text.{part}"] for part in ("ids", "mask")}
        return replace(batch, slots={**batch.slots, **more}), frozen


def two_lengths(model: DualEncoder, data: DataSet) -> TwoLengthPairs:
    """Pictures with one long text each as a model reads them."""
    samples = TwoLengths().of_all(data.samples)
    long = cache_pairs(model, data)
    short = cache_texts(model, long, [sample.slots[SHORT] for sample in samples])
    return TwoLengthPairs(long=long, short=short)


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
