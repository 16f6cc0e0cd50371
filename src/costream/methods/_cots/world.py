"""What all runs of the experiment share: sizes, data on frozen layers, starting weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from costream.data.dataset import DataSet
from costream.encoders.device import keep_freed_memory
from costream.encoders.dual import DualEncoder
from costream.encoders.visual_tokenizer import KMeansTokenizer
from costream.methods import cots
from costream.train.config import TrainConfig
from costream.train.short import CachedPairs, cache_pairs

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Sizes of the experiment.

    Attributes:
        loop: Steps, batch size, rates; the seed is set by each run.
        method: Settings of COTS that all runs share; each run switches losses and filter itself.
        seeds: Of the runs.
        shares: Shares of the training pictures that get another picture's captions.
        most_train: Training pictures used.
        most_dev: Pictures measured on.
        cross_steps: Training steps of the single-stream model.
        cross_pictures: Pictures on which the two kinds of model are compared.
        counts: Gallery sizes that are timed.
        longest_s: Longest timed run; longer ones are taken from the fitted cost model.
    """

    loop: TrainConfig
    method: cots.Config
    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (0.0, 0.2, 0.4)
    most_train: int = 6000
    most_dev: int = 1000
    cross_steps: int = 300
    cross_pictures: int = 100
    counts: tuple[int, ...] = (100, 300, 1000, 3000, 10_000)
    longest_s: float = 60.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """What all runs share.

    Attributes:
        make: A model before training, by seed.
        train: Training pictures and captions.
        dev: What is measured on.
        pool: uint8 (P, 3, H, W), some dev pictures at the model's full size, for timing.
        codes: Visual tokenizer.
        facts: Names, hashes and counts of the data, and what the models start from.
    """

    make: Callable[[int], DualEncoder]
    train: CachedPairs
    dev: CachedPairs
    pool: Tensor
    codes: KMeansTokenizer
    facts: Mapping[str, str]


def make_world(
    make: Callable[[int], DualEncoder],
    train: DataSet,
    dev: DataSet,
    scale: Scale,
    *,
    kept_px: int,
    facts: Mapping[str, str],
    say: Say,
) -> World:
    """Decode both data sets once and fit the visual tokenizer.

    Args:
        make: A model before training, by seed.
        train: Training pictures; the first `most_train` are used.
        dev: What is measured on; the first `most_dev`.
        scale: Sizes.
        kept_px: Side of the pixels that visual codes are made of, where the model has a stem.
        facts: What to say about where data and weights come from.
        say: Told about progress.
    """
    keep_freed_memory()
    model = make(0)
    parts = {
        name: DataSet(name=data.name, samples=data.samples[:most])
        for name, data, most in (("train", train, scale.most_train), ("dev", dev, scale.most_dev))
    }
    total = sum(map(len, parts.values()))
    say(f"reading {total:,} pictures and running the frozen layers once")
    begin, done = time.monotonic(), [0]

    def progress(count: int) -> None:
        before, done[0] = done[0], done[0] + count
        if done[0] * 4 // total > before * 4 // total:
            say(f"  {done[0]:,} of {total:,}, {time.monotonic() - begin:.0f} s")

    pairs = {
        name: cache_pairs(model, data, kept_px=kept_px, progress=progress)
        for name, data in parts.items()
    }
    few = DataSet(name=dev.name, samples=parts["dev"].samples[:64])
    pool = cache_pairs(model, few).pixels
    side = pairs["train"].pixels.shape[-1] // model.vision.grid
    codes = KMeansTokenizer.fit(
        pairs["train"].pixels, vocab_size=scale.method.visual_codes, side_px=side
    )
    counts = {
        f"{name} data": f"{data.name}, {data.num_images:,} pictures, "
        f"{data.num_captions:,} captions, hash {data.hash[:16]}"
        for name, data in parts.items()
    }
    return World(
        make=make,
        train=pairs["train"],
        dev=pairs["dev"],
        pool=pool,
        codes=codes,
        facts={**facts, **counts},
    )
