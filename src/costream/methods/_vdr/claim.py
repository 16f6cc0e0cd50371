"""With and without the bag of words, on scenes whose true words are known; and its control.

Shape letters: N pictures, M texts, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from costream.data.scenes import COLOURS, POSITIONS, SHAPES
from costream.encoders.dual import DualEncoder
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds
from costream.evaluate.claims import ClaimRow
from costream.evaluate.run_log import RunLog
from costream.evaluate.vectors import evaluate_vectors
from costream.methods.vdr import (
    Config,
    VdrObjective,
    bags_of,
    head_of,
    keep_top,
    with_words,
    words_of,
)
from costream.records import Sample
from costream.train import worlds
from costream.train.config import TrainConfig
from costream.train.short import encode_cached, train_short

ARMS: Mapping[str, Config] = {
    "both": Config(),
    "encoder only": Config(terms="encoder"),
    "bag only": Config(terms="bag"),
    "bags permuted": Config(),
}
_NUM_WORDS = 4

Runs = Mapping[str, Sequence[Mapping[str, float]]]


class Permuted(VdrObjective):
    """The control: every word of a bag stands for another one, always the same."""

    def bags(self, ids: Tensor, mask: Tensor, columns: Tensor, count: int) -> Tensor:
        """Bags of words under the permutation (N, V)."""
        return super().bags(ids, mask, columns, count)[:, permutation(count)]


def permutation(count: int) -> Tensor:
    """A fixed permutation of the words."""
    return torch.from_numpy(np.random.default_rng(104_729).permutation(count))


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Train the arms with every seed and compare them.

    Args:
        options: Seeds and size; the world is of scenes, where it is known which words are true.

    Returns:
        One table.
    """
    steps = 2 if options.fast else 300
    loop = TrainConfig(
        steps=steps,
        batch_size=8 if options.fast else 48,
        learning_rate=1e-3,
        warmup_steps=max(steps // 10, 1),
        weight_decay=0.05,
    )
    world = worlds.scenes(
        num_train=24 if options.fast else 3000,
        num_dev=12 if options.fast else 300,
        say=options.say,
    )
    log = RunLog(None if options.out is None else options.out / "vdr_runs.jsonl")
    runs: dict[str, list[Mapping[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm, config in ARMS.items():
            key = {"arm": arm, "seed": seed, "loop": repr(loop), "config": repr(config)}
            key["facts"] = repr(sorted(world.facts.items()))
            values = log.get(key)
            if values is None:
                values = _run(world, arm, config, replace(loop, seed=seed))
                log.add(key, values)
            runs[arm].append(values)
            options.say(
                f"{arm}, seed {seed}: hit@1 {values['encoder']:.1f} by the encoder, "
                f"{values['bag']:.1f} by bags, {values['true words']:.1f} % of words true"
            )
    return [_table(runs, world, loop)]


def _run(world: worlds.World, arm: str, config: Config, loop: TrainConfig) -> dict[str, float]:
    model = with_words(world.make(loop.seed), config, seed=loop.seed)
    is_permuted = arm == "bags permuted"
    objective = Permuted(config) if is_permuted else VdrObjective(config)
    train_short(model, objective, world.train, loop)
    images, texts = encode_cached(model, world.dev)
    head, count = head_of(model), images.shape[1]
    bags = bags_of(world.dev.ids, world.dev.mask.bool(), head.columns, count)
    if is_permuted:
        bags = bags[:, permutation(count)]
    owner = world.dev.image_of_text

    def hits(queries: Tensor) -> float:
        found = evaluate_vectors(images.numpy(), queries.numpy(), owner, ks=(1,))
        return found["text_to_image"]["hit@1"]

    kept = keep_top(texts, config.k, bags)
    return {
        "encoder": hits(kept),
        "bag": hits(bags),
        "true words": true_words(model, images.numpy(), world.dev_data.samples),
        "words": float(count),
    }


def true_words(
    model: DualEncoder, weights_NV: NDArray[np.float32], samples: Sequence[Sample]
) -> float:
    """Percent of each picture's words of largest weight that are true of it.

    Only words that say what is there, and where, count as words: `a` is true of everything.
    """
    names = words_of(model)
    says = np.array([name in _TELLING for name in names])
    hits = []
    for weights, sample in zip(weights_NV, samples, strict=True):
        best = np.argsort(-np.where(says, weights, -np.inf))[:_NUM_WORDS]
        true = words_of_scene(sample)
        hits.append(np.mean([names[word] in true for word in best]))
    return 100.0 * float(np.mean(hits))


def words_of_scene(sample: Sample) -> frozenset[str]:
    """Words that a caption of a scene may say of its objects and their places.

    Example:
        >>> from costream.data import make_scenes
        >>> scene = make_scenes(1, detail="full").samples[0]
        >>> set(scene.slots["text"][0].split()) & _TELLING <= words_of_scene(scene)
        True
    """
    words: set[str] = set()
    for item in sample.meta["objects"]:
        texts = (item.colour, *SHAPES[item.shape], *POSITIONS[item.position])
        words.update(word for text in texts for word in text.split())
    return frozenset(words) & _TELLING


_EVERY = (*COLOURS, *(t for group in (*SHAPES.values(), *POSITIONS) for t in group))
_TELLING = frozenset(word for text in _EVERY for word in text.split()) - frozenset(
    "at the in on edge corner sign".split()
)


def _table(runs: Runs, world: worlds.World, loop: TrainConfig) -> ClaimTable:
    def row(name: str, metric: str, method: str, baseline: str, least: float = 0.0) -> ClaimRow:
        values = ([run[metric] for run in runs[arm]] for arm in (method, baseline))
        return compare_seeds(name, *values, threshold=least, unit="%")

    rows = (
        row("bags find: both terms over the encoder's alone", "bag", "both", "encoder only"),
        row(
            "true words: both terms over the encoder's alone", "true words", "both", "encoder only"
        ),
        row(
            "the encoder finds no worse: both terms over its own alone (at most 2 points lost)",
            "encoder",
            "both",
            "encoder only",
            -2.0,
        ),
        row("the encoder: both terms over bags alone", "encoder", "both", "bag only"),
        row("control, true words: bags over permuted bags", "true words", "both", "bags permuted"),
        row(
            "control, bags find as well when permuted (at most 5 points lost)",
            "bag",
            "bags permuted",
            "both",
            -5.0,
        ),
    )
    settings = {
        **world.facts,
        "words": f"{runs['both'][0]['words']:.0f}, of which {len(_TELLING)} say what is there",
        "steps": f"{loop.steps} of {loop.batch_size} scenes with one caption each, in every arm",
        "selection": "none: the last step is measured",
    }
    title = "On scenes: training against bags of words ties dimensions to words"
    return ClaimTable(title=title, rows=rows, settings=settings)
