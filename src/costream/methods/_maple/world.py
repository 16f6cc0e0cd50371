"""What is adapted to what: a shipped model to aerial photographs, or a tiny one to another style.

Procedural pictures show one shape of one colour. The tiny model is trained on half of the 24 names,
as flat shapes on a dark ground; it is adapted to all of them as dull shapes on a light, noisy one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw

from costream.data import DataSet, read_data
from costream.data.scenes import COLOURS, SHAPES, SceneObject, draw_object
from costream.encoders.dual import DualEncoder
from costream.encoders.storage import load
from costream.methods._maple.classes import TEMPLATE, base_and_novel
from costream.methods.long_clip import Config as ContrastConfig
from costream.methods.long_clip import LongClipObjective
from costream.records import Sample
from costream.train.config import TrainConfig
from costream.train.short import cache_pairs, train_short
from costream.train.worlds import tiny_clips

_SIDE_PX = 48
_POOL = 24


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AdaptWorld:
    """A trained model and what it is adapted to.

    Attributes:
        make: The trained model by seed, without prompts.
        train: Pictures of base classes that shots are drawn from.
        dev: Pictures of all classes.
        facts: What model and data are.
    """

    make: Callable[[int], DualEncoder]
    train: DataSet
    dev: DataSet
    facts: Mapping[str, str]


def aerial(folder: Path, *, pool: int = _POOL, most_dev: int = 500) -> AdaptWorld:
    """`cots-mini`, all of its stem frozen, and scenes seen from above as classes.

    Args:
        folder: Has `train.jsonl` and `dev.jsonl` whose records have a field `scene`.
        pool: Training pictures a class that shots are drawn from.
        most_dev: Pictures measured on.
    """
    train, dev = (_with_scene(read_data(folder / f"{part}.jsonl")) for part in ("train", "dev"))
    dev = DataSet(name=dev.name, samples=dev.samples[:most_dev])
    shipped = load("cots-mini", device="cpu")
    conv = shipped.config.vision.conv
    if conv is None:
        raise ValueError("the shipped model has a convolutional stem, got none")
    # The same weights; what never trains here is run once.
    vision = replace(shipped.config.vision, conv=replace(conv, num_frozen_stages=7))
    config = replace(shipped.config, vision=vision)

    def make(seed: int) -> DualEncoder:
        model = DualEncoder(config, shipped.tokenizer)
        model.load_state_dict(shipped.state_dict())
        return model.eval()

    return AdaptWorld(
        make=make,
        train=_pool_of_base(train, pool),
        dev=dev,
        facts={
            "model": "cots-mini",
            "classes": "30 scenes seen from above; captions of such pictures, not these names, "
            "were among what the model was trained on",
        },
    )


def _with_scene(data: DataSet) -> DataSet:
    samples = tuple(
        replace(sample, slots={**sample.slots, "text": (str(sample.meta["scene"]),)})
        for sample in data.samples
    )
    return DataSet(name=data.name, samples=samples)


def _pool_of_base(train: DataSet, pool: int) -> DataSet:
    """The first pictures of each base class."""
    base, _ = base_and_novel([sample.slots["text"][0] for sample in train.samples])
    left = dict.fromkeys(base, pool)
    chosen = []
    for sample in train.samples:
        name = sample.slots["text"][0]
        if left.get(name, 0):
            left[name] -= 1
            chosen.append(sample)
    return DataSet(name=train.name, samples=tuple(chosen))


def shapes(*, steps: int = 400, pool: int = _POOL, per_class: int = 20) -> AdaptWorld:
    """A tiny model of CLIP's kind, and the same shapes in a style that it never saw.

    Args:
        steps: Of the tiny model's training.
        pool: Pictures a class that shots are drawn from.
        per_class: Pictures a class that are measured on.
    """
    names = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    known = [
        name
        for number, name in enumerate(names)
        if (number // len(COLOURS) + number % len(COLOURS)) % 2 == 0
    ]
    start = shape_pictures(known, 100, style="flat", seed=0)
    dev = shape_pictures(names, per_class, style="dull", seed=1)
    train = _pool_of_base(shape_pictures(names, pool, style="dull", seed=2), pool)
    make_random = tiny_clips(start, context=12, depth=4)
    trained: dict[int, Mapping[str, torch.Tensor]] = {}

    def make(seed: int) -> DualEncoder:
        model = make_random(seed)
        if seed not in trained:
            plain = LongClipObjective(
                ContrastConfig(short_weight=0.0, smoothing=0.0, scale=1 / 0.07)
            )
            loop = TrainConfig(steps=steps, batch_size=32, warmup_steps=30, seed=seed)
            train_short(model, plain, cache_pairs(model, start), loop)
            trained[seed] = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(trained[seed])
        return model.eval()

    return AdaptWorld(
        make=make,
        train=train,
        dev=dev,
        facts={
            "model": f"CLIP's kind, 4 layers a tower, {steps} steps on half of the names",
            "classes": "24 shapes of a colour, in a style that the model never saw",
        },
    )


def shape_pictures(
    names: Sequence[str], per_class: int, *, style: Literal["flat", "dull"], seed: int
) -> DataSet:
    """Pictures of one shape each.

    Args:
        names: Colour and shape.
        per_class: Pictures of each name.
        style: `flat` ones have captions, `dull` ones the name only.
        seed: Of places, sizes and noise.
    """
    rng = np.random.default_rng((seed, 3))
    samples = []
    for name in names:
        for number in range(per_class):
            text = f"{' '.join(TEMPLATE)} {name}." if style == "flat" else name
            slots = {"image": _draw(name, style, rng), "text": (text,)}
            # One group a class: pictures of the same name are no negatives of each other.
            samples.append(Sample(id=f"{style} {name} {number}", group=name, slots=slots))
    return DataSet(name=f"{style} shapes, seed {seed}", samples=tuple(samples))


def _draw(name: str, style: Literal["flat", "dull"], rng: np.random.Generator) -> Image.Image:
    colour, shape = name.split()
    ground = int(rng.integers(10, 70)) if style == "flat" else int(rng.integers(150, 200))
    image = Image.new("RGB", (_SIDE_PX, _SIDE_PX), (ground,) * 3)
    side = int(rng.integers(20, 34))
    left, top = (int(rng.integers(0, _SIDE_PX - side)) for _ in range(2))
    box = (left, top, left + side, top + side)
    item = SceneObject(shape=shape, colour=colour, position=4, box_px=box)
    draw_object(ImageDraw.Draw(image), item)
    if style == "flat":
        return image
    dull = 0.55 * np.asarray(image, dtype=np.float64) + 50 + rng.normal(0, 12, (*image.size, 3))
    return Image.fromarray(dull.clip(0, 255).astype(np.uint8))
