"""What all runs of the experiment share: sizes, data on frozen layers, starting weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from costream.encoders.dual import DualEncoder
from costream.encoders.visual_tokenizer import KMeansTokenizer
from costream.methods import cots
from costream.train import worlds
from costream.train.config import TrainConfig
from costream.train.short import CachedPairs, cache_pairs

Say = Callable[[str], None]

_TIMED = 64


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


def make_world(shared: worlds.World, scale: Scale) -> World:
    """Fit the visual tokenizer, and keep some pictures for timing."""
    model = shared.make(0)
    few = worlds.first_samples(shared.dev_data, _TIMED)
    side = shared.train.pixels.shape[-1] // model.vision.grid
    codes = KMeansTokenizer.fit(
        shared.train.pixels, vocab_size=scale.method.visual_codes, side_px=side
    )
    return World(
        make=shared.make,
        train=shared.train,
        dev=shared.dev,
        pool=cache_pairs(model, few).pixels,
        codes=codes,
        facts=shared.facts,
    )
