"""One run of the experiment: which losses and filter, on which captions, and what it measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from costream.encoders.device import autocast
from costream.encoders.dual import DualEncoder
from costream.methods import cots
from costream.methods._cots.world import Scale, World
from costream.objectives.align import kl_rows
from costream.records import Features
from costream.train.loader import Draw
from costream.train.short import CachedPairs, encode_cached, first_captions, train_short
from costream.train.worlds import retrieval_hits

_PROBED = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run.

    Attributes:
        kl: Whether the two retrieval tasks are aligned.
        masked: Whether masked patches and words are predicted.
        filter_k: Deviations below the mean at which a pair is left out; None is off.
        mismatched: Share of the training pictures that have another picture's captions.
        oracle: Whether the mismatched pairs are known and left out.
        steps: Optimiser steps.
        seed: Of weights, batches, captions, masks and mismatches.
    """

    kl: bool = False
    masked: bool = False
    filter_k: float | None = None
    mismatched: float = 0.0
    oracle: bool = False
    steps: int
    seed: int = 0

    @property
    def title(self) -> str:
        """What the run is called, without its seed."""
        losses = ["contrast", *["KL"] * self.kl, *["masked"] * self.masked]
        words = [" + ".join(losses)]
        if self.filter_k is not None:
            words.append(f"filter k={self.filter_k:g}")
        if self.oracle:
            words.append("oracle filter")
        if self.mismatched:
            words.append(f"{100 * self.mismatched:g} % mismatched")
        return ", ".join(words)


def mismatch(count: int, share: float, seed: int) -> NDArray[np.int64]:
    """For each of `count` pictures, the one whose captions it gets.

    `round(share * count)` pictures, drawn by the seed, each get the captions of another one of
    them; all others keep their own.

    Example:
        >>> mismatch(4, 0.0, seed=0).tolist()
        [0, 1, 2, 3]
        >>> int((mismatch(10, 0.4, seed=0) != np.arange(10)).sum())
        4
    """
    owner = np.arange(count)
    chosen = np.random.default_rng((seed, 104_729)).permutation(count)[: round(share * count)]
    # Handed on in a ring, nobody keeps its own.
    owner[chosen] = np.roll(chosen, 1)
    return owner


class FilterWatch:
    """Looks over the filter's shoulder: which pairs it leaves out, and which are mismatched.

    Args:
        wrong: bool (N,), which training pictures have another one's captions.
        first: Step from which on it counts.
    """

    def __init__(self, wrong: NDArray[np.bool_], first: int) -> None:
        self.wrong, self.first = wrong, first
        self._threshold = -math.inf
        self._similarity: list[NDArray[np.float64]] = []
        self._dropped: list[NDArray[np.bool_]] = []
        self._wrong: list[NDArray[np.bool_]] = []

    def __call__(self, step: int, rows: Sequence[int], state: nn.Module) -> None:
        """Read the similarities of a step, just pushed, against the threshold from before it."""
        if not isinstance(state, cots.State):
            raise TypeError(f"got a state of type {type(state).__name__}, expected that of COTS")
        seen = int(state.filter.seen)
        slots = torch.arange(seen - len(rows), seen) % state.filter.window
        similarity = state.filter.recent[slots].double().numpy()
        if step >= self.first:
            self._similarity.append(similarity)
            # The same slack for rounding as the filter's own.
            self._dropped.append(similarity < self._threshold - 1e-6)
            self._wrong.append(self.wrong[list(rows)])
        self._threshold = float(state.filter.threshold())

    def values(self) -> dict[str, float]:
        """Share left out, precision, recall (percent) and AUC over the visits counted."""
        dropped, wrong = np.concatenate(self._dropped), np.concatenate(self._wrong)
        hit = float((dropped & wrong).sum())
        similarity = np.concatenate(self._similarity)
        return {
            "left out": 100.0 * float(dropped.mean()),
            "precision": 100.0 * hit / max(int(dropped.sum()), 1),
            "recall": 100.0 * hit / max(int(wrong.sum()), 1),
            "auc": auc(similarity[~wrong], similarity[wrong]),
        }


def auc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float:
    """Probability that a value of `higher` exceeds one of `lower`, ties half; 0.5 without values.

    Example:
        >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.875
    """
    if len(higher) == 0 or len(lower) == 0:
        return 0.5
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.mean() / 2 / len(lower))


def method_of(run: Run, scale: Scale) -> cots.Config:
    """The settings of COTS for a run."""
    return replace(
        scale.method,
        kl=float(run.kl),
        mvm=float(run.masked),
        mlm=float(run.masked),
        filter_k=run.filter_k,
    )


def make_run(world: World, scale: Scale, run: Run) -> tuple[dict[str, float], DualEncoder]:
    """Train and measure.

    Returns:
        hit@k in percent of both directions and their mean (`hit@1`), seconds a step, what the
        interactions did, and what the filter did in the second half of the steps; and the model.
    """
    model = world.make(run.seed)
    config = method_of(run, scale)
    objective = cots.CotsObjective(
        config,
        model,
        tokenizer=world.codes if run.masked else None,
        words=cots.words_of(model) if run.masked else None,
    )
    owner = mismatch(len(world.train.names), run.mismatched, run.seed)
    wrong = owner != np.arange(len(owner))
    watch = FilterWatch(wrong, first=run.steps // 2)
    begin = time.monotonic()
    state, seconds = train_short(
        model,
        objective,
        world.train,
        replace(scale.loop, steps=run.steps, seed=run.seed),
        captions_of=owner.tolist(),
        trust=(1.0 - wrong).tolist() if run.oracle else None,
        on_step=watch,
    )
    values = {"step_s": statistics.median(seconds), **watch.values()}
    values |= retrieval(model, world.dev, config.temperature)
    if run.masked:
        values |= told_and_not_told(model, objective, world.dev, state)
    values["seconds"] = time.monotonic() - begin
    return values, model


def retrieval(model: DualEncoder, dev: CachedPairs, temperature: float) -> dict[str, float]:
    """hit@k by direction, the mean of both hit@1, and how much the two tasks disagree."""
    images, texts = encode_cached(model, dev)
    scores = images @ texts[list(dev.first_text[:-1])].T / temperature
    return {**retrieval_hits(model, dev), "kl": float(kl_rows(scores, scores.T).mean())}


@torch.no_grad()
def told_and_not_told(
    model: DualEncoder, objective: cots.CotsObjective, dev: CachedPairs, state: nn.Module
) -> dict[str, float]:
    """Cross-entropy of masked words and patches, told the true partner or another pair's.

    Changes the state's queue, so it must come last.
    """
    model.eval()
    probe = first_captions(dev, _PROBED)
    count = len(probe.names)
    sums: dict[str, float] = {}
    chunks = torch.chunk(torch.arange(count), math.ceil(count / 100))
    with autocast(model.device):
        for rows in chunks:
            draws = [Draw(sample=row, seed=row) for row in rows.tolist()]
            batch, frozen = probe.batch(draws, range(count), [1.0] * count)
            features = model.features(batch, frozen)
            for who, partners in (("told", features), ("not told", _swapped(features))):
                parts = objective.loss(model, batch, partners, state).parts
                for name in ("mlm", "mvm"):
                    key = f"{name} {who}"
                    sums[key] = sums.get(key, 0.0) + float(parts[name]) * len(rows) / count
    return sums


def _swapped(features: Mapping[str, Features]) -> dict[str, Features]:
    """Every pair's global vectors exchanged for the next pair's; tokens and maps stay."""
    return {
        name: replace(each, pooled=each.pooled.roll(1, dims=0)) for name, each in features.items()
    }
