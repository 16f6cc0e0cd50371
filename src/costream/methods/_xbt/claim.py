"""An old model's gallery, asked by the old model, by a new one through phi, and by closed forms.

Shape letters: N pictures, M texts, D dimensions.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from costream.data import DataSet, make_scenes, read_data
from costream.encoders.dual import DualEncoder
from costream.encoders.locate import DEFAULT_MODEL
from costream.encoders.presets import TINY
from costream.encoders.starting_weights import pretrained_mini
from costream.encoders.storage import load
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds
from costream.evaluate.claims import ClaimRow
from costream.evaluate.run_log import RunLog
from costream.methods._xbt.adapter import put_adapter
from costream.methods._xbt.maps import fit_perceptron, procrustes, slerp
from costream.methods._xbt.upgrade import count_flips, successes
from costream.methods.xbt import Config, XbtObjective, contrast
from costream.objectives import Losses, Objective
from costream.records import Batch, Features
from costream.train.config import TrainConfig
from costream.train.short import CachedPairs, cache_pairs, encode_cached, train_short
from costream.train.worlds import first_samples, short_config, word_tokenizer

_DIRECTIONS = {"I2T": "image_to_text", "T2I": "text_to_image"}
_SHARES = tuple(step / 10 for step in range(11))
_OLD_DIM = 128
_TEMPERATURE = 0.05

Vectors = tuple[Tensor, Tensor]
"""Unit vectors of pictures (N, D) and of their texts (M, D)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """Two models and what they see of the same data.

    Attributes:
        make_old: The old model by seed, trained.
        make_new: The new model by seed, trained; not changed by its user.
        old: Training and dev data as the old model reads it.
        new: The same as the new model reads it.
        texts: All training captions, in the order of the data.
        facts: What to say about it.
    """

    make_old: Callable[[int], DualEncoder]
    make_new: Callable[[int], DualEncoder]
    old: tuple[CachedPairs, CachedPairs]
    new: tuple[CachedPairs, CachedPairs]
    texts: Sequence[str]
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of the experiment.

    Attributes:
        most: Training and dev pictures.
        old_steps: Steps of the old model's training, 64 pairs each.
        config: Of the method.
        adapt: Loop of stage 2.
    """

    most: tuple[int, int]
    old_steps: int
    config: Config
    adapt: TrainConfig


class PlainContrast(nn.Module, Objective):
    """Contrast of a batch's pairs: what the old model, and on scenes the new one, is trained by."""

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """As of `costream.objectives.Objective`."""
        del model, state
        total = contrast(features["image"].pooled, features["text"].pooled, batch, _TEMPERATURE)
        return Losses(total=total, parts={"contrast": total.detach()})


def _loop(steps: int, rate: float, seed: int = 0) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=64,
        learning_rate=rate,
        warmup_steps=min(50, steps // 5),
        seed=seed,
    )


def photographs(folder: Path, sizes: Sizes, say: Callable[[str], None]) -> World:
    """The shipped model as the new one; the old one reads words and sees 128 pixels.

    The old model has ImageNet's stem, frozen, a new layer behind it, and a text tower of its own
    words from random weights: of the new model it shares neither sizes, tokens nor text tower.
    """
    data = [
        first_samples(read_data(folder / f"{name}.jsonl"), most)
        for name, most in zip(("train", "dev"), sizes.most, strict=True)
    ]
    make_old = _old_photograph_models(data[0])
    new = _with_whole_stem_frozen(load(DEFAULT_MODEL))
    say(f"reading {len(data[0]):,} + {len(data[1]):,} pictures with the frozen stems of both")
    old = make_old(0)
    old_pairs = cache_pairs(old, data[0], kept_px=8), cache_pairs(old, data[1], kept_px=8)
    new_pairs = cache_pairs(new, data[0], kept_px=8), cache_pairs(new, data[1], kept_px=8)

    def trained_old(seed: int) -> DualEncoder:
        model = make_old(seed)
        train_short(model, PlainContrast(), old_pairs[0], _loop(sizes.old_steps, 5e-4, seed))
        return model

    return World(
        make_old=trained_old,
        make_new=lambda _: new,
        old=old_pairs,
        new=new_pairs,
        texts=_texts(data[0]),
        facts={
            "old": f"ImageNet's EfficientNet-Lite2 at 128 pixels, a 3 layer text tower of the "
            f"captions' words, {_OLD_DIM} dimensions, {sizes.old_steps} steps of 64",
            "new": f"{DEFAULT_MODEL}, 256 dimensions; its checkpoint was chosen on these dev "
            "pictures, which favours it over the old one, but no way to use it over another",
            "data": ", ".join(f"{each.name}: {len(each):,}" for each in data) + " pictures of "
            "flickr8k, five captions each",
        },
    )


def _old_photograph_models(train: DataSet) -> Callable[[int], DualEncoder]:
    base = pretrained_mini()
    tokenizer = word_tokenizer(train)
    config = replace(
        short_config(base.config),
        name="old",
        dim=_OLD_DIM,
        text=replace(TINY.text, vocab_size=tokenizer.get_vocab_size()),
        text_preprocess=TINY.text_preprocess,
    )
    if base.vision.stem is None:
        raise TypeError("the starting weights have no stem, expected one")
    stem = base.vision.stem.state_dict()

    def make(seed: int) -> DualEncoder:
        torch.manual_seed(seed)
        model = DualEncoder(config, tokenizer)
        own = model.vision.stem
        if own is not None:
            own.load_state_dict({name: stem[name] for name in own.state_dict()})
        return model

    return make


def _with_whole_stem_frozen(model: DualEncoder) -> DualEncoder:
    """The same weights and vectors; its stem is passed once, for it is not trained."""
    vision = model.config.vision
    if vision.conv is None:
        return model
    conv = replace(vision.conv, num_frozen_stages=7)
    config = replace(model.config, vision=replace(vision, conv=conv))
    again = DualEncoder(config, model.tokenizer)
    again.load_state_dict(model.state_dict())
    return again.eval()


def scenes(sizes: Sizes) -> World:
    """Two small models of scenes from random weights: the old one narrow and briefly trained."""
    train = make_scenes(sizes.most[0], seed=0, detail="full")
    dev = make_scenes(sizes.most[1], seed=0, skip=sizes.most[0], detail="full")
    tokenizer = word_tokenizer(train)
    text = replace(TINY.text, vocab_size=tokenizer.get_vocab_size())
    wide = replace(TINY, name="new", text=text)
    layers = replace(text.transformer, width=48, depth=2, mlp_width=96)
    narrow = replace(
        wide,
        name="old",
        dim=32,
        text=replace(text, transformer=layers),
        vision=replace(wide.vision, transformer=layers),
    )
    torch.manual_seed(0)
    reader = DualEncoder(wide, tokenizer)
    pairs = cache_pairs(reader, train), cache_pairs(reader, dev)

    def make(new: bool, seed: int) -> DualEncoder:
        torch.manual_seed(2 * seed + new)
        model = DualEncoder(wide if new else narrow, tokenizer)
        steps = sizes.old_steps * 4 if new else sizes.old_steps
        train_short(model, PlainContrast(), pairs[0], _loop(steps, 1e-3, seed))
        return model

    return World(
        make_old=lambda seed: make(False, seed),
        make_new=lambda seed: make(True, seed),
        old=pairs,
        new=pairs,
        texts=_texts(train),
        facts={
            "old": f"32 dimensions, 2 layers of width 48, {sizes.old_steps} steps of 64",
            "new": f"64 dimensions, 3 layers of width 96, {sizes.old_steps * 4} steps of 64",
            "data": f"{len(train):,} training and {len(dev):,} dev scenes",
        },
    )


def _texts(data: DataSet) -> list[str]:
    return [text for sample in data.samples for text in sample.slots["text"]]


def run_seed(world: World, sizes: Sizes, seed: int) -> dict[str, float]:
    """hit@1 and flips, in percent, of every way to ask the old gallery.

    Args:
        world: Models and data.
        sizes: Steps and settings.
        seed: Of the old model, of phi, and of stage 2.

    Returns:
        `XBT I2T` and the like; `XBT I2T NFR` and `XBT I2T PFR` beside them.
    """
    old, new = world.make_old(seed), world.make_new(seed)
    gallery = encode_cached(old, world.old[1])
    old_train, new_train = encode_cached(old, world.old[0]), encode_cached(new, world.new[0])
    asked = encode_cached(new, world.new[1])
    # Each text once, as the method takes them.
    rows = torch.tensor(list({text: row for row, text in enumerate(world.texts)}.values()))
    sources, targets = new_train[1][rows].float(), old_train[1][rows].float()
    rotation = procrustes(sources, targets).float()

    def rotated(vectors: Vectors) -> Vectors:
        image, text = (functional.normalize(each.float() @ rotation, dim=-1) for each in vectors)
        return image, text

    config = sizes.config
    noisy = fit_perceptron(sources, targets, config.fit, seed=seed)
    clean = fit_perceptron(sources, targets, replace(config.fit, noise=0.0), seed=seed)
    adapted = copy.deepcopy(new).requires_grad_(False)
    torch.manual_seed(seed)
    put_adapter(adapted, noisy, old.space, rank=config.rank, scale=config.adapter_scale)
    train_short(
        adapted,
        XbtObjective(config.temperature),
        world.new[0],
        replace(sizes.adapt, seed=seed),
    )
    owner = world.old[1].image_of_text
    share = _best_shares(old_train, rotated(new_train), world.old[0].image_of_text)
    with torch.no_grad():
        ways: dict[str, Vectors] = {
            "old": gallery,
            "XBT": encode_cached(adapted, world.new[1]),
            "stage 1": (noisy(asked[0].float()), noisy(asked[1].float())),
            "stage 1 without noise": (clean(asked[0].float()), clean(asked[1].float())),
            "Procrustes": rotated(asked),
            "Procrustes and slerp": _between(gallery, rotated(asked), share),
        }
    values = _measure(ways, gallery, owner)
    own = successes(*_arrays(asked), *_arrays(asked), owner, 1)
    for short, direction in _DIRECTIONS.items():
        values[f"new on its own gallery {short}"] = 100.0 * float(own[direction].mean())
        values[f"share of slerp {short}"] = share[short]
    return values


def _arrays(vectors: Vectors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return vectors[0].float().numpy(), vectors[1].float().numpy()


def _measure(
    ways: Mapping[str, Vectors], gallery: Vectors, owner: NDArray[np.int64]
) -> dict[str, float]:
    found = {
        name: successes(*_arrays(asking), *_arrays(gallery), owner, 1)
        for name, asking in ways.items()
    }
    values: dict[str, float] = {}
    for name, each in found.items():
        for short, direction in _DIRECTIONS.items():
            flips = count_flips(found["old"][direction], each[direction])
            values[f"{name} {short}"] = 100.0 * float(each[direction].mean())
            values[f"{name} {short} PFR"] = flips.positive_rate
            values[f"{name} {short} NFR"] = flips.negative_rate
    return values


def _between(old: Vectors, new: Vectors, share: Mapping[str, float]) -> Vectors:
    """Between old and mapped queries, a share a direction."""
    image, text = old[0].float(), old[1].float()
    return slerp(image, new[0], share["I2T"]), slerp(text, new[1], share["T2I"])


def _best_shares(old: Vectors, new: Vectors, owner: NDArray[np.int64]) -> dict[str, float]:
    """The share of the new query that finds most on training pairs, a direction each."""
    hits: dict[float, dict[str, float]] = {}
    for share in _SHARES:
        asking = _between(old, new, {"I2T": share, "T2I": share})
        found = successes(*_arrays(asking), *_arrays(old), owner, 1)
        hits[share] = {short: float(found[name].mean()) for short, name in _DIRECTIONS.items()}
    return {short: max(_SHARES, key=lambda each: hits[each][short]) for short in _DIRECTIONS}


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Train an old model with every seed and ask its gallery in every way.

    Args:
        options: With `flickr8k` below its data root photographs, else scenes.
    """
    folder = options.folder("flickr8k")
    sizes = _sizes(fast=options.fast, real=folder is not None)
    log = RunLog(None if options.out is None else options.out / "xbt_runs.jsonl")
    key = {"real": folder is not None, "sizes": repr(sizes)}
    runs: list[Mapping[str, float]] = []
    world: World | None = None
    for seed in range(options.seeds):
        values = log.get(key | {"seed": seed})
        if values is None:
            if world is None:
                world = scenes(sizes) if folder is None else photographs(folder, sizes, options.say)
            begin = time.monotonic()
            values = run_seed(world, sizes, seed)
            options.say(f"seed {seed}: {time.monotonic() - begin:.0f} s")
            log.add(key | {"seed": seed}, {**values, "facts": dict(world.facts)})
            values = log.get(key | {"seed": seed})
        if values is not None:
            runs.append(values)
    return _tables(runs, sizes)


def _sizes(*, fast: bool, real: bool) -> Sizes:
    if fast:
        config = Config(map_steps=4, hidden=16, rank=2)
        return Sizes(most=(24, 12), old_steps=2, config=config, adapt=_loop(2, 5e-4))
    config = Config(map_steps=1000)
    most = (1500, 1000) if real else (1500, 500)
    return Sizes(most=most, old_steps=200, config=config, adapt=_loop(40, 5e-4))


def _tables(runs: Sequence[Mapping[str, object]], sizes: Sizes) -> list[ClaimTable]:
    def row(
        name: str, method: str, baseline: str, suffix: str = "", less: bool = False
    ) -> ClaimRow:
        return compare_seeds(
            name,
            [_number(run, f"{method}{suffix}") for run in runs],
            [_number(run, f"{baseline}{suffix}") for run in runs],
            more_is_better=not less,
            unit="%",
        )

    def both(name: str, method: str, baseline: str) -> tuple[ClaimRow, ...]:
        return tuple(
            row(f"{name}, {short}", method, baseline, f" {short}") for short in _DIRECTIONS
        )

    flips = tuple(
        row(
            f"negative flips, XBT against Procrustes, {short}",
            "XBT",
            "Procrustes",
            f" {short} NFR",
            less=True,
        )
        for short in _DIRECTIONS
    )
    settings = _settings(runs, sizes)
    return [
        ClaimTable(
            title="A new model's queries beat the old model's on the old gallery",
            rows=(
                *both("XBT over the old queries", "XBT", "old"),
                *both("XBT over Procrustes", "XBT", "Procrustes"),
            ),
            settings=settings,
        ),
        ClaimTable(
            title="What the parts of XBT give on the old gallery",
            rows=(
                *both("noise over none, stage 1", "stage 1", "stage 1 without noise"),
                *both("stage 2 over stage 1 alone", "XBT", "stage 1"),
            ),
            settings={"data": settings["data"]},
        ),
        ClaimTable(
            title="What the closed forms do with the same texts",
            rows=(
                *both("Procrustes over the old queries", "Procrustes", "old"),
                *both("XBT over Procrustes and slerp", "XBT", "Procrustes and slerp"),
                *flips,
            ),
            settings={
                "slerp": "between the old query and the rotated new one, which runs both models; "
                "the share is chosen on training pairs, for each seed and direction",
            },
        ),
    ]


def _number(run: Mapping[str, object], name: str) -> float:
    value = run[name]
    if not isinstance(value, float):
        raise TypeError(f"{name} is {value!r}, expected a number")
    return value


def _settings(runs: Sequence[Mapping[str, object]], sizes: Sizes) -> dict[str, str]:
    def mean(name: str) -> str:
        return f"{np.mean([_number(run, name) for run in runs]):.1f}"

    def pair(name: str, suffix: str = "") -> str:
        return " / ".join(mean(f"{name} {short}{suffix}") for short in _DIRECTIONS)

    facts = runs[0]["facts"]
    told = {str(k): str(v) for k, v in facts.items()} if isinstance(facts, dict) else {}
    config = sizes.config
    return {
        **told,
        "measure": "hit@1 on the dev pictures' whole old gallery, equal scores count against; "
        "I2T pictures ask, T2I texts ask",
        "stage 1": f"{config.map_steps} steps of {config.map_batch} different captions of the "
        f"training pictures, noise {config.noise:g}, {config.layers} layers of {config.hidden}",
        "stage 2": f"{sizes.adapt.steps} steps of {sizes.adapt.batch_size} training pairs, rank "
        f"{config.rank}, no augmentation",
        "selection": "none: defaults but for steps, which were set by time; the last is measured",
        "own gallery": f"new {pair('new on its own gallery')}, old {pair('old')}, I2T / T2I",
        "flips of XBT": f"positive {pair('XBT', ' PFR')}, negative {pair('XBT', ' NFR')}",
        "share of slerp": pair("share of slerp") + ", I2T / T2I",
    }
