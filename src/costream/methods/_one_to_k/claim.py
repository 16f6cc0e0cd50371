"""The arms of the experiment, at equal numbers of captions read, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from costream.data import DataSet, read_data
from costream.data.scenes import made_up_language
from costream.encoders.dual import DualEncoder
from costream.errors import DataError
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds, rank_of_truth
from costream.evaluate.run_log import RunLog
from costream.evaluate.scores import DotScores
from costream.evaluate.truth import truth_from_groups
from costream.methods._one_to_k.consistency import WAYS, summary
from costream.methods.one_to_k import Config, OneToK
from costream.objectives import Losses, Objective
from costream.records import Batch, Features, Sample
from costream.train import worlds
from costream.train.config import TrainConfig
from costream.train.loader import Draw
from costream.train.short import CachedPairs, cache_texts, encode_cached, train_short

ARMS = ("1-to-1", "1-to-1, K times the steps", "pivot", "1-to-K")
_REAL = ("text", "text.de", "text.fr", "text.cs")
_SYNONYMS = {"text.a": 1, "text.b": 2, "text.c": 4}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ManyLanguages:
    """Cached pictures with captions in several languages, for `train_short`.

    Attributes:
        by: Slot to the cached captions; pictures are the same in all.
        one: Whether a batch has one language a picture (drawn), as the slot `text`.
    """

    by: Mapping[str, CachedPairs]
    one: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """One a picture."""
        return next(iter(self.by.values())).names

    def batch(
        self, draws: Sequence[Draw], captions_of: Sequence[int], trust: Sequence[float]
    ) -> tuple[Batch, Tensor | None]:
        """As of `CachedPairs.batch`, with a caption in each language, or one in a drawn one."""
        found = {slot: pairs.batch(draws, captions_of, trust) for slot, pairs in self.by.items()}
        first, frozen = next(iter(found.values()))
        slots = {"image": first.slots["image"]}
        for slot, (batch, _) in found.items():
            for part in ("ids", "mask"):
                slots[f"{slot}.{part}"] = batch.slots[f"text.{part}"]
        if not self.one:
            return replace(first, slots=slots), frozen
        names = list(self.by)
        chosen = [names[np.random.default_rng((d.seed, 2)).integers(len(names))] for d in draws]
        longest = max(slots[f"{slot}.ids"].shape[2] for slot in names)
        for part in ("ids", "mask"):
            rows = [
                nn.functional.pad(each, (0, longest - each.shape[1]))
                for each in (slots[f"{slot}.{part}"][n] for n, slot in enumerate(chosen))
            ]
            slots[f"text.{part}"] = torch.stack(rows)
        kept = {slot: slots[slot] for slot in ("image", "text.ids", "text.mask")}
        return replace(first, slots=kept), frozen


class Pivot(nn.Module, Objective):
    """English against pictures, and English against every other language, in the same form."""

    def __init__(self, languages: Sequence[str]) -> None:
        super().__init__()
        self.pivot = languages[0]
        self.pictures = OneToK(Config(languages=(self.pivot,)))
        self.others = OneToK(Config(languages=tuple(languages[1:])))

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Keep both temperatures in their range."""
        self.pictures.after_step(model, state)
        self.others.after_step(model, state)

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """English stands in for the pictures before the other languages."""
        first = self.pictures.loss(model, batch, features, state)
        instead = dict(features) | {"image": features[self.pivot]}
        second = self.others.loss(model, batch, instead, state)
        return Losses(total=(first.total + second.total) / 2, parts=first.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of the experiment."""

    loop: TrainConfig
    most_train: int
    most_dev: int


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Train the arms with every seed and compare them."""
    folder = options.folder("flickr8k")
    steps = 2 if options.fast else 150
    sizes = Sizes(
        loop=TrainConfig(
            steps=steps,
            batch_size=8 if options.fast else 48,
            learning_rate=1.5e-3 if folder else 1e-3,
            stem_rate=0.0,
            text_rate=0.5 if folder else 1.0,
            warmup_steps=max(steps // 10, 1),
            weight_decay=0.05,
        ),
        most_train=24 if options.fast else 3000,
        most_dev=12 if options.fast else 500,
    )
    if folder is not None:
        world, by = _photographs(folder, sizes, options.say)
    else:
        world, by = _scenes(sizes, options.say)
    log = RunLog(None if options.out is None else options.out / "one_to_k_runs.jsonl")
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:
            key = {"arm": arm, "seed": seed, "sizes": repr(sizes), "facts": dict(world.facts)}
            values = log.get(key)
            if values is None:
                values = _run(world, by, arm, replace(sizes.loop, seed=seed))
                log.add(key, values)
            runs[arm].append(values)
            options.say(
                f"{arm}, seed {seed}: hit@1 {values['hit@1']:.1f}, MRV {values['variance']:.0f}"
            )
    return [_table(runs, world, sizes, len(by["train"]))]


def _run(
    world: worlds.World,
    by: Mapping[str, Mapping[str, CachedPairs]],
    arm: str,
    loop: TrainConfig,
) -> dict[str, float]:
    model = world.make(loop.seed)
    languages = tuple(by["train"])
    longer = replace(loop, steps=loop.steps * len(languages), warmup_steps=loop.warmup_steps)
    single = arm.startswith("1-to-1")
    config = Config(languages=("text",) if single else languages)
    objective = Pivot(languages) if arm == "pivot" else OneToK(config)
    pairs = ManyLanguages(by=by["train"], one=single)
    train_short(model, objective, pairs, longer if arm == ARMS[1] else loop)
    return _measure(model, by["dev"])


def _measure(model: DualEncoder, dev: Mapping[str, CachedPairs]) -> dict[str, float]:
    """Hits and variances, means of both directions, and the hits of the worst language."""
    ranks: dict[str, list[NDArray[np.float64]]] = {way: [] for way in WAYS}
    hits: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for slot, pairs in dev.items():
        images, texts = (each.numpy() for each in encode_cached(model, pairs))
        owner = pairs.image_of_text
        pictures = np.arange(len(images))
        forward = rank_of_truth(DotScores(images, texts), truth_from_groups(pictures, owner))
        backward = rank_of_truth(DotScores(texts, images), truth_from_groups(owner, pictures))
        for way, found in zip(WAYS, (forward, backward), strict=True):
            hits[way][slot] = 100 * float(found.first_within(1).mean())
        ranks[WAYS[0]].append(forward.first_rank())
        ranks[WAYS[1]].append(np.bincount(owner, backward.first_rank()) / np.bincount(owner))
    both = [summary(np.stack(ranks[way], axis=1), hits[way]) for way in WAYS]
    names = {"hit@1": "hit@1", "worst": "hit@1 worst", "variance": "mean rank variance"}
    names |= {"deviation": "mean rank deviation"}
    return {short: float(np.mean([each[name] for each in both])) for short, name in names.items()}


def _table(
    runs: Mapping[str, list[dict[str, float]]],
    world: worlds.World,
    sizes: Sizes,
    num_languages: int,
) -> ClaimTable:
    rows = []
    for arm in ARMS[:-1]:
        for metric, name, more in (
            ("deviation", "mean rank deviation", False),
            ("variance", "mean rank variance", False),
            ("hit@1", "hit@1, mean of languages", True),
        ):
            rows.append(
                compare_seeds(
                    f"{name}: 1-to-K over {arm}",
                    [run[metric] for run in runs["1-to-K"]],
                    [run[metric] for run in runs[arm]],
                    more_is_better=more,
                    unit="%" if more else "",
                )
            )
    settings = {
        **world.facts,
        "languages": str(num_languages),
        "steps": f"{sizes.loop.steps} of {sizes.loop.batch_size} pictures; 1-to-K reads "
        f"{num_languages} captions a picture, as does 1-to-1 with {num_languages} times the steps",
        "selection": "none: the last step is measured",
    }
    title = "With 1-to-K contrast, ranks depend less on the language (both directions, dev)"
    return ClaimTable(title=title, rows=tuple(rows), settings=settings)


def _cached(world: worlds.World, languages: Sequence[str]) -> dict[str, dict[str, CachedPairs]]:
    model = world.make(0)
    sets = {"train": (world.train, world.train_data), "dev": (world.dev, world.dev_data)}
    return {
        part: {
            slot: cache_texts(model, pairs, [s.slots[slot] for s in data.samples])
            for slot in languages
        }
        for part, (pairs, data) in sets.items()
    }


def _photographs(
    folder: Path, sizes: Sizes, say: Callable[[str], None]
) -> tuple[worlds.World, dict[str, dict[str, CachedPairs]]]:
    chosen = []
    for name, most in (("train", sizes.most_train), ("dev", sizes.most_dev)):
        data = read_data(folder / f"{name}.jsonl")
        samples = [s for s in data.samples if all(s.slots.get(slot) for slot in _REAL)]
        if not samples:
            raise DataError(f"no picture of {data.name} has captions in {', '.join(_REAL)}")
        chosen.append(DataSet(name=data.name, samples=tuple(samples[:most])))
    make, start = worlds.photograph_models()
    world = worlds.make_world(make, *chosen, facts={"start": start}, say=say)
    return world, _cached(world, _REAL)


def _scenes(
    sizes: Sizes, say: Callable[[str], None]
) -> tuple[worlds.World, dict[str, dict[str, CachedPairs]]]:
    from costream.data import make_scenes

    parts = [
        make_scenes(sizes.most_train, seed=0, detail="full"),
        make_scenes(sizes.most_dev, seed=0, skip=sizes.most_train, detail="full"),
    ]
    spoken = [DataSet(name=f"{p.name}, 4 languages", samples=_spoken(p)) for p in parts]
    words = [
        text
        for s in spoken[0].samples
        for slot in s.slots
        if slot != "image"
        for text in s.slots[slot]
    ]
    every = Sample(id="words", group="words", slots={"text": tuple(words)})
    make = worlds.tiny_models(DataSet(name="words", samples=(every,)))
    world = worlds.make_world(make, *spoken, facts={"start": "random weights"}, say=say)
    return world, _cached(world, ("text", *_SYNONYMS))


def _spoken(data: DataSet) -> tuple[Sample, ...]:
    return tuple(
        replace(
            sample,
            slots=dict(sample.slots)
            | {
                slot: tuple(
                    made_up_language(text, slot, np.random.default_rng((number, count)), count)
                    for text in sample.slots["text"]
                )
                for slot, count in _SYNONYMS.items()
            },
        )
        for number, sample in enumerate(data.samples)
    )
