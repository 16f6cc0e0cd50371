"""Captions of pictures by what was trained on texts alone, one part of the method after the other.

All variants have the same language model, steps and batches. Shape letters: M texts, N copies,
D dimensions, B pictures of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from costream.data import DataSet, read_data
from costream.encoders.device import autocast
from costream.encoders.dual import DualEncoder
from costream.encoders.locate import DEFAULT_MODEL
from costream.encoders.storage import load
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds
from costream.evaluate.claims import ClaimRow
from costream.evaluate.run_log import RunLog
from costream.generate.language_model import (
    LanguageModel,
    published_language_model,
    published_path,
    small_language_model,
)
from costream.methods._maccap.captions import score_scene, word_overlap
from costream.methods._maccap.regions import PictureTokens, picture_tokens, sub_regions
from costream.methods.maccap import Adaptor, Config, drawn_noise, noisy
from costream.objectives.in_batch import Contrast
from costream.train.config import TrainConfig
from costream.train.short import train_short
from costream.train.worlds import scenes

_SMALL = Config(queries=8, feed_forward=512, dropout=0.0, beams=1, new_tokens=24)
_SMALLEST_GAIN = 1.0
_SAMPLES = 4
_TOWERS = TrainConfig(
    steps=400, batch_size=64, learning_rate=1e-3, warmup_steps=40, weight_decay=0.05
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How long a captioner is trained, and how large it is.

    Attributes:
        steps: Of the adaptor.
        batch_size: Captions a step.
        rate: Peak learning rate.
        config: Of the adaptor.
    """

    steps: int = 400
    batch_size: int = 32
    rate: float = 1e-3
    config: Config = field(default=_SMALL)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Captioning:
    """What captioners are trained and measured on.

    Attributes:
        texts: Captions, for training.
        vectors: float32 (M, D), theirs.
        pictures: float32 (M, D), of the picture of each; for the upper bound. None without.
        seen: Pictures that are measured.
        score: Percent of a caption of picture i, by name of the measure.
        encode: Texts to unit vectors, for re-ranking.
    """

    texts: Sequence[str]
    vectors: Tensor
    pictures: Tensor | None
    seen: PictureTokens
    score: Callable[[str, int], dict[str, float]]
    encode: Callable[[Sequence[str]], np.ndarray]


def train_adaptor(
    vectors: Tensor, tokens: Tensor, start: LanguageModel, scale: Scale, seed: int
) -> tuple[Adaptor, LanguageModel]:
    """Train an adaptor on vectors and the captions that they stand for.

    Args:
        vectors: float32 (M, D).
        tokens: int64 (M, T) as of `LanguageModel.encode`.
        start: Used as it is where it is frozen; else a copy of it is trained along.
        scale: Steps and settings.
        seed: Of weights, order and noise.

    Returns:
        The adaptor and the language model that it was trained with.
    """
    trained = [weight for weight in start.parameters() if weight.requires_grad]
    language = copy.deepcopy(start) if trained else start
    torch.manual_seed(seed)
    adaptor = Adaptor(vectors.shape[1], language.width, scale.config)
    weights = [*adaptor.parameters(), *(w for w in language.parameters() if w.requires_grad)]
    optimiser = torch.optim.AdamW(weights, lr=scale.rate, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    adaptor.train()
    for step in range(scale.steps):
        rows = torch.from_numpy(rng.integers(len(vectors), size=scale.batch_size))
        drawn = torch.randn(len(rows), scale.config.copies, vectors.shape[1])
        with autocast(vectors.device):
            prefix = adaptor(noisy(vectors[rows, None], drawn, scale.config.noise))
            values, real = language.losses(prefix, tokens[rows])
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / (0.1 * scale.steps + 1))
            group["lr"] = scale.rate * min(warm, 2 * (1 - step / scale.steps))
        optimiser.zero_grad()
        torch.autograd.backward(values.sum() / real.sum())
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    return adaptor.eval(), language


@torch.no_grad()
def write_captions(
    adaptor: Adaptor, language: LanguageModel, entered: Tensor, config: Config, seed: int
) -> list[str]:
    """One caption for each row of vectors (B, N, D), noise added by the seed."""
    drawn = drawn_noise([seed * 100_003 + row for row in range(len(entered))], *entered.shape[1:])
    vectors = noisy(entered, drawn, config.noise)
    found: list[str] = []
    with autocast(entered.device):
        for some in vectors.split(64):
            found += language.write(adaptor(some), most=config.new_tokens, beams=config.beams)
    return found


def entered_of(seen: PictureTokens, copies: int, kind: str) -> Tensor:
    """Vectors (B, N, D) of pictures that an adaptor reads: `none`, `attention`, or `mean`."""
    if kind == "none":
        return seen.whole[:, None].expand(-1, copies, -1)
    parts = sub_regions(seen, copies, mean=kind == "mean")
    return nn.functional.normalize(seen.whole[:, None] + parts, dim=-1)


def run_variants(
    world: Captioning, language: LanguageModel, scale: Scale, seed: int, *, few: bool = False
) -> dict[str, float]:
    """Train all variants with one seed and measure them.

    Args:
        world: Data.
        language: Frozen, or to be trained along.
        scale: Steps and settings.
        seed: Of everything random.
        few: Whether only copies without and with noise are trained.

    Returns:
        `VARIANT: MEASURE` to percent.
    """
    config = scale.config
    tokens = [language.encode(text, config.learned_tokens) for text in world.texts]
    tokens_MT = torch.from_numpy(np.stack(tokens))
    values: dict[str, float] = {}
    ways = {
        "no noise": replace(config, noise=0.0),
        "one copy": replace(config, copies=1),
        # The mean of N copies has as much noise as one with a variance N times smaller.
        "one copy, as much noise": replace(
            config, copies=1, noise=config.noise / config.copies**0.5
        ),
        "copies": config,
    }
    for name, own in ways.items():
        if few and name.startswith("one copy"):
            continue
        own_scale = replace(scale, config=own)
        trained = train_adaptor(world.vectors, tokens_MT, language, own_scale, seed)
        written = partial(_written, trained, world, own, seed)
        values |= _measure(name, written("none"), world)
        if name == "copies":
            captions = written("attention")
            values |= _measure("regions", captions, world)
            values |= _measure("other picture", [*captions[1:], captions[0]], world)
            values |= _measure("patch mean", written("mean"), world)
            values |= _measure("re-ranked", written("attention", _SAMPLES), world)
    if world.pictures is not None and not few:
        trained = train_adaptor(world.pictures, tokens_MT, language, scale, seed)
        captions = _written(trained, world, config, seed, "none")
        values |= _measure("trained on pictures", captions, world)
    return values


def _written(
    trained: tuple[Adaptor, LanguageModel],
    world: Captioning,
    config: Config,
    seed: int,
    kind: str,
    count: int = 1,
) -> list[str]:
    """A caption of each picture, the best of `count`; the first one drawn is always the same."""
    entered = entered_of(world.seen, config.copies, kind)
    drawn = [
        write_captions(*trained, entered, config, seed * 10 + number) for number in range(count)
    ]
    return best_of(drawn, world)


def best_of(drawn: Sequence[Sequence[str]], world: Captioning) -> list[str]:
    """Of several captions of each picture the one with the highest cosine."""
    if len(drawn) == 1:
        return list(drawn[0])
    whole = world.seen.whole.numpy()
    scores = np.stack([(world.encode(texts) * whole).sum(axis=1) for texts in drawn])
    return [drawn[int(best)][row] for row, best in enumerate(scores.argmax(axis=0))]


def _measure(name: str, captions: Sequence[str], world: Captioning) -> dict[str, float]:
    each = [world.score(caption, number) for number, caption in enumerate(captions)]
    return {
        f"{name}: {measure}": 100 * float(np.mean([values[measure] for values in each]))
        for measure in each[0]
    }


# --- scenes ---


def scene_captioning(options: ClaimOptions) -> tuple[DualEncoder, Captioning]:
    """Scenes, and tiny towers trained on them by contrast."""
    sizes = (48, 8) if options.fast else (3000, 200)
    world = scenes(num_train=sizes[0], num_dev=sizes[1], say=options.say)
    model = world.make(0)
    loop = replace(_TOWERS, steps=4, batch_size=16) if options.fast else _TOWERS
    options.say("training the towers that all captioners share")
    train_short(model, Contrast(), world.train, loop)
    texts = [text for sample in world.train_data.samples for text in sample.slots["text"]]
    objects = [sample.meta["objects"] for sample in world.dev_data.samples]

    def score(caption: str, number: int) -> dict[str, float]:
        attributes, whole = score_scene(caption, objects[number])
        return {"attributes": attributes, "objects": whole}

    train_pictures = model.encode_images([s.slots["image"] for s in world.train_data.samples])
    return model, Captioning(
        texts=texts,
        vectors=torch.from_numpy(model.encode_texts(texts)),
        pictures=torch.from_numpy(train_pictures),
        seen=seen_pictures(model, world.dev_data),
        score=score,
        encode=model.encode_texts,
    )


@torch.no_grad()
def seen_pictures(model: DualEncoder, data: DataSet) -> PictureTokens:
    """Pictures of a data set with their tokens."""
    read = model.config.image_preprocess.read
    model.eval()
    found = []
    for start in range(0, len(data), 50):
        some = [read(sample.slots["image"]) for sample in data.samples[start : start + 50]]
        found.append(picture_tokens(model, torch.from_numpy(np.stack(some))))
    return PictureTokens(
        whole=torch.cat([each.whole for each in found]),
        tokens=torch.cat([each.tokens for each in found]),
        attention=torch.cat([each.attention for each in found]),
    )


# --- photographs ---


def photograph_captioning(folder: Path, options: ClaimOptions) -> Captioning:
    """Captions of photographs without these, other photographs, and the default model."""
    model = load(DEFAULT_MODEL)
    counts = (40, 4) if options.fast else (6000, 64)
    train = read_data(folder / "train.jsonl").samples[: counts[0]]
    dev = read_data(folder / "dev.jsonl")
    dev = DataSet(name=dev.name, samples=dev.samples[: counts[1]])
    texts = [text for sample in train for text in sample.slots["text"][:2]]
    options.say(f"reading {len(texts):,} captions and {len(dev):,} pictures")
    references = [sample.slots["text"] for sample in dev.samples]
    return Captioning(
        texts=texts,
        vectors=torch.from_numpy(model.encode_texts(texts)),
        pictures=None,
        seen=seen_pictures(model, dev),
        score=lambda caption, number: {"words": word_overlap(caption, references[number])},
        encode=model.encode_texts,
    )


# --- tables ---


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Scenes with a tiny language model; photographs with a published one where there are some."""
    log = RunLog(None if options.out is None else options.out / "maccap_runs.jsonl")
    scale = Scale()
    if options.fast:
        small = replace(scale.config, queries=2, feed_forward=32, new_tokens=4, copies=3)
        scale = replace(scale, steps=3, batch_size=8, config=small)
    made: list[tuple[DualEncoder, Captioning]] = []

    def run_scenes(seed: int) -> dict[str, float]:
        if not made:
            made.append(scene_captioning(options))
        model, world = made[0]
        language = small_language_model(model.tokenizer, seed=seed)
        return run_variants(world, language, scale, seed)

    runs = _runs(run_scenes, log, {"data": "scenes", "scale": repr(scale)}, options)
    tables = [_scene_table(runs, scale, options)]
    folder = options.folder("flickr8k")
    if folder is None:
        return tables
    photographs: list[Captioning] = []
    long = photograph_scale(options)

    def run_photographs(seed: int) -> dict[str, float]:
        if not photographs:
            photographs.append(photograph_captioning(folder, options))
        language = published_language_model("smollm2")
        return run_variants(photographs[0], language, long, seed, few=True)

    published_path("smollm2")
    runs = _runs(run_photographs, log, {"data": "photographs", "scale": repr(long)}, options)
    return [*tables, _photograph_table(runs, long)]


def photograph_scale(options: ClaimOptions) -> Scale:
    """As long as a language model of 135 million weights on two cores permits."""
    config = Config(queries=10, feed_forward=1024, dropout=0.0, beams=1, new_tokens=16)
    scale = Scale(steps=60, batch_size=16, rate=5e-4, config=config)
    return replace(scale, steps=2, batch_size=2) if options.fast else scale


def _runs(
    run: Callable[[int], dict[str, float]],
    log: RunLog,
    facts: Mapping[str, str],
    options: ClaimOptions,
) -> list[dict[str, float]]:
    found = []
    for seed in range(options.seeds):
        settings = {**facts, "seed": seed, "fast": options.fast}
        values = log.get(settings)
        if values is None:
            values = run(seed)
            log.add(settings, values)
        shown = ", ".join(f"{name} {value:.1f}" for name, value in values.items())
        options.say(f"{facts['data']}, seed {seed}: {shown}")
        found.append(values)
    return found


def _rows(
    runs: Sequence[Mapping[str, float]], pairs: Sequence[tuple[str, str, str]], measure: str
) -> list[ClaimRow]:
    return [
        compare_seeds(
            f"{measure}: {text}",
            [run[f"{method}: {measure}"] for run in runs],
            [run[f"{other}: {measure}"] for run in runs],
            threshold=_SMALLEST_GAIN,
            unit="%",
        )
        for text, method, other in pairs
    ]


_FEW = (
    ("N noisy copies over none", "copies", "no noise"),
    ("with parts of the picture over the whole alone", "regions", "copies"),
    ("attended parts over the mean of all patches", "regions", "patch mean"),
    (f"best of {_SAMPLES} over one", "re-ranked", "regions"),
    ("own picture over another (control)", "regions", "other picture"),
)
_ALL = (
    ("one noisy copy over none", "one copy", "no noise"),
    ("N noisy copies over one", "copies", "one copy"),
    ("N noisy copies over one with as much noise", "copies", "one copy, as much noise"),
    *_FEW,
    ("trained on pictures over the best of texts (room that is left)", "trained on pictures",
     "re-ranked"),
)  # fmt: skip


def _scene_table(
    runs: Sequence[Mapping[str, float]], scale: Scale, options: ClaimOptions
) -> ClaimTable:
    rows = [*_rows(runs, _ALL, "attributes"), *_rows(runs, _ALL, "objects")]
    return ClaimTable(
        title="Noisy copies, parts of the picture and re-ranking make captions truer: scenes",
        rows=tuple(rows),
        settings={
            "data": "procedural scenes, captions that name both objects and their places; 3,000 "
            "texts, 200 pictures of none of them"
            if not options.fast
            else "a few scenes",
            "measure": "F1 of colours, shapes and places that a caption says, and share of objects "
            "whose colour, shape and place are said together",
            "towers": f"tiny, {_TOWERS.steps} steps of contrast, the same for all seeds",
            "training": f"{scale.steps} steps of {scale.batch_size} captions each; a tiny language "
            f"model is trained along; N = {scale.config.copies}, noise {scale.config.noise} times "
            "as long as the vector",
            "selection": "none: the last step is measured",
        },
    )


def _photograph_table(runs: Sequence[Mapping[str, float]], scale: Scale) -> ClaimTable:
    return ClaimTable(
        title="The same on photographs, with SmolLM2-135M",
        rows=tuple(_rows(runs, (*_FEW,), "words")),
        settings={
            "data": "flickr8k: two captions of each training picture, without the pictures; the "
            "first 64 pictures of dev",
            "measure": "F1 of content words with the nearest of five captions",
            "towers": DEFAULT_MODEL,
            "training": f"{scale.steps} steps of {scale.batch_size} captions, which is short",
            "selection": "none: the last step is measured",
        },
    )
