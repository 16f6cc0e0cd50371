"""Small models of scenes, attacked by themselves and by each other.

Training captions name a colour with probability 0.3, measured ones none, so that a true colour can
be inserted. The scene graph says which one is true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costream.data import DataSet, make_scenes
from costream.data.scenes import COLOURS
from costream.encoders.dual import DualEncoder
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds
from costream.evaluate.claims import ClaimRow
from costream.evaluate.run_log import RunLog
from costream.methods import xmai
from costream.methods._xmai.words import WordModel
from costream.objectives.in_batch import Contrast
from costream.parts import System
from costream.records import Sample
from costream.train.config import TrainConfig
from costream.train.short import train_short
from costream.train.worlds import World, make_world, tiny_models

_NAMED = 0.3
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)}) ")


_LOOP = TrainConfig(
    steps=400, batch_size=64, learning_rate=1e-3, warmup_steps=40, weight_decay=0.05
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large the experiment is."""

    train: int = 3000
    measured: int = 400
    loop: TrainConfig = _LOOP


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Train one model more than there are seeds; each is attacked, the next one sees what carries.

    Args:
        options: The data root is not used: nothing says which words are true of photographs.
    """
    scale = Scale()
    if options.fast:
        loop = replace(scale.loop, steps=4, batch_size=16, warmup_steps=1)
        scale = Scale(train=48, measured=24, loop=loop)
    log = RunLog(None if options.out is None else options.out / "xmai_runs.jsonl")
    world = make_colour_world(scale, options)
    models: dict[int, DualEncoder] = {}

    def model_of(seed: int) -> DualEncoder:
        if seed not in models:
            options.say(f"training model {seed}")
            models[seed] = world.make(seed)
            train_short(models[seed], Contrast(), world.train, replace(scale.loop, seed=seed))
        return models[seed]

    runs = []
    for seed in range(options.seeds):
        settings = {"seed": seed, "fast": options.fast, **world.facts}
        run = log.get(settings)
        if run is None:
            run = attack(model_of(seed), model_of(seed + 1), world, seed)
            log.add(settings, run)
            options.say(", ".join(f"{name} {value:.1f}" for name, value in run.items()))
        runs.append(run)
    facts = {
        **world.facts,
        "training": f"{scale.loop.steps} steps of {scale.loop.batch_size}, contrast alone; models "
        "differ by seed, the one that is transferred to is the next",
        "words": "k = 6, for there are six colours; l1, l2, l3 = 1, 5, 5; word vectors of the "
        "attacked model",
        "seeds": ", ".join(map(str, range(options.seeds))),
    }
    return [ClaimTable(title=_TITLE, rows=tuple(rows_of(runs)), settings=facts)]


_TITLE = "Inserted attributes take captions away from pictures, even true ones"


def attack(attacked: DualEncoder, other: DualEncoder, world: World, seed: int) -> dict[str, float]:
    """Numbers of one attacked model: mean reciprocal ranks and shares of true words."""
    config = xmai.Config(k=6, most_captions=0, shuffle_seed=seed)
    data = world.dev_data
    pairs = xmai.choose(data, config)
    seen = [xmai.seen_in(sample) for sample in data.samples]
    corpus = [text for sample in world.train_data.samples for text in sample.slots["text"]]
    vectors = xmai.Attacked(attacked, data.samples)
    inserter = xmai.Inserter(config, vectors, WordModel(corpus), frozenset())
    arms = {"original": [xmai.Inserted(text=pair.text) for pair in pairs]}
    arms["deletion"] = xmai.deleted(pairs, seed)
    for arm, weights in _WEIGHTS.items():
        arms[arm] = [
            inserter.insert(pair.text, pair.picture, seen[pair.picture], weights) for pair in pairs
        ]
    values: dict[str, float] = {}

    def rank(name: str, texts: Sequence[xmai.Inserted], rows: Sequence[int]) -> None:
        some, words = [pairs[row] for row in rows], [texts[row].text for row in rows]
        for whose, model in (("attacked", attacked), ("other", other)):
            found = xmai.measure(System(model=model), data.samples, some, words, config)
            values[f"{name} {whose}"] = found["mrr"]

    for arm, texts in arms.items():
        rank(arm, texts, range(len(pairs)))
        quality = xmai.qualities(vectors, data.samples, pairs, texts)
        values |= {f"{arm} {name}": value for name, value in quality.items()}
    true = [
        row for row in range(len(pairs)) if _is_true(arms["adversarial"][row], seen, pairs[row])
    ]
    if len(true) > 1:
        rank("true original", arms["original"], true)
        rank("true adversarial", arms["adversarial"], true)
    values["captions with true words"] = float(len(true))
    return values


_WEIGHTS = {
    "language_model": (1.0, 0.0, 0.0),
    "grounded": (1.0, 5.0, 0.0),
    "adversarial": (1.0, 5.0, 5.0),
}


def rows_of(runs: Sequence[Mapping[str, float]]) -> list[ClaimRow]:
    """The comparisons: reciprocal ranks and shares of true words, in percent."""

    def of(name: str) -> list[float]:
        return [run[name] for run in runs]

    def fall(arm: str, whose: str) -> list[float]:
        pairs = zip(of(f"original {whose}"), of(f"{arm} {whose}"), strict=True)
        return [before - after for before, after in pairs]

    def row(
        name: str, more: Sequence[float], less: Sequence[float], threshold: float = 0.0
    ) -> ClaimRow:
        return compare_seeds(name, more, less, threshold=threshold, unit="%")

    rows = [
        row(
            "MRR: original over adversarial", of("original attacked"), of("adversarial attacked"), 1
        ),
        row(
            "MRR: grounded not below original by 1",
            of("grounded attacked"),
            of("original attacked"),
            -1,
        ),
        row(
            "MRR: grounded over adversarial", of("grounded attacked"), of("adversarial attacked"), 1
        ),
        row(
            "MRR: original over likely words alone",
            of("original attacked"),
            of("language_model attacked"),
            1,
        ),
        row("MRR: original over deletion", of("original attacked"), of("deletion attacked"), 1),
        row("true words: grounded over likely", of("grounded true"), of("language_model true"), 5),
        row(
            "true words: adversarial over likely", of("adversarial true"), of("language_model true")
        ),
        row(
            "MRR of the other model: original over adversarial",
            of("original other"),
            of("adversarial other"),
            1,
        ),
        row(
            "fall of MRR: attacked over other model",
            fall("adversarial", "attacked"),
            fall("adversarial", "other"),
        ),
    ]
    if all("true adversarial attacked" in run for run in runs):
        before, after = of("true original attacked"), of("true adversarial attacked")
        rows.append(
            row("MRR where all words are true: original over adversarial", before, after, 1)
        )
    return rows


def _is_true(
    one: xmai.Inserted, seen: Sequence[tuple[xmai.Seen, ...] | None], pair: xmai.Pair
) -> bool:
    """Whether words were inserted, and all are what the scene says of their objects."""
    objects = seen[pair.picture] or ()
    return bool(one.words) and all(
        any(word in objects[number].attributes for number in slot.objects)
        for _, word, slot in one.words
    )


def make_colour_world(scale: Scale, options: ClaimOptions) -> World:
    """Scenes whose training captions name few colours, and whose measured ones name none."""
    whole = make_scenes(scale.train, seed=0, num_captions=2, detail="full")
    dev = make_scenes(scale.measured, seed=0, skip=scale.train, detail="full")
    facts = {
        "start": "random weights",
        "colours": f"named with probability {_NAMED} in training captions, never in measured ones",
    }
    return make_world(
        tiny_models(whole),
        without_colours(whole, _NAMED),
        without_colours(dev, 0.0),
        facts=facts,
        say=options.say,
    )


def without_colours(data: DataSet, kept: float) -> DataSet:
    """Captions of which each colour is kept with a probability.

    Args:
        data: Scenes.
        kept: The probability.
    """

    def strip(sample: Sample) -> Sample:
        rng = np.random.default_rng(int(sample.id.rpartition("-")[2]))
        texts = tuple(
            _COLOUR.sub(lambda match: match.group() if rng.random() < kept else "", text)
            for text in sample.slots["text"]
        )
        return replace(sample, slots={**sample.slots, "text": texts})

    return DataSet(
        name=f"{data.name}, {kept:.0%} of colours", samples=tuple(map(strip, data.samples))
    )
