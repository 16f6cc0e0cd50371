"""All runs of the experiment: which there are, and how they are made or found again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from costream.encoders.dual import DualEncoder
from costream.evaluate.run_log import RunLog
from costream.methods._cots.one_run import Run, make_run
from costream.methods._cots.world import Say, Scale, World

Values = Mapping[str, Any]

_FORMAT = 1


class Experiment:
    """Makes the runs that are not in the log yet, and finds the values of those that are.

    Args:
        world: What all runs share.
        scale: Sizes.
        log: Of finished runs.
        say: Told about progress.
    """

    def __init__(self, world: World, scale: Scale, log: RunLog, say: Say) -> None:
        self.world, self.scale, self.log, self.say = world, scale, log, say
        self.models: dict[Run, DualEncoder] = {}
        self._units = self._seconds = 0.0

    def settings(self, **own: Any) -> dict[str, Any]:
        """Everything that fixes a run, as plain values."""
        fixed = {"loop": asdict(self.scale.loop), "method": asdict(self.scale.method)}
        facts = {"format": _FORMAT, "torch": torch.__version__, **self.world.facts}
        return {**facts, **fixed, **own}

    def is_known(self, run: Run) -> bool:
        """Whether the run is in the log."""
        return self.log.get(self.settings(run=asdict(run))) is not None

    def values(self, run: Run) -> Values:
        """What a run measured; it is made when it is not in the log."""
        settings = self.settings(run=asdict(run))
        if self.log.get(settings) is None:
            self.log.add(settings, self._make(run)[0])
        return self.log.get(settings) or {}

    def model(self, run: Run) -> DualEncoder:
        """The trained model of a run; it is trained again when only its values are known."""
        self.values(run)
        if run not in self.models:
            self._make(run)
        return self.models[run]

    def _make(self, run: Run) -> tuple[dict[str, float], DualEncoder]:
        begin = time.monotonic()
        measured, model = make_run(self.world, self.scale, run)
        self._seconds += time.monotonic() - begin
        self._units += _cost(run)
        if run == full_run(self.scale):
            self.models[run] = model
        return measured, model

    def make_all(self, runs: Iterable[Run], later: float = 0.0) -> None:
        """Make these runs, saying after each what it gave and how long the rest will take.

        Args:
            runs: In this order.
            later: Cost of runs that will follow these, in steps of contrast.
        """
        runs = list(runs)
        for number, run in enumerate(runs):
            known = self.is_known(run)
            values = self.values(run)
            waiting = [r for r in runs[number + 1 :] if not self.is_known(r)]
            left = (sum(map(_cost, waiting)) + later) * self._seconds / max(self._units, 1.0)
            self.say(
                f"{run.title}, seed {run.seed}, {run.steps} steps: "
                f"hit@1 {values['image_to_text hit@1']:.1f} image to text, "
                f"{values['text_to_image hit@1']:.1f} text to image, "
                + ("made before" if known else f"{values['seconds']:.0f} s")
                + (f"; about {left / 60:.1f} min of runs left" if self._units else "")
            )


def _cost(run: Run) -> float:
    """About how long a run takes, in steps of contrast."""
    return run.steps * (1.8 if run.masked else 1.0) + 40


def full_run(scale: Scale) -> Run:
    """All three interactions, first seed: the two-stream model that is timed."""
    return Run(kl=True, masked=True, steps=scale.loop.steps, seed=scale.seeds[0])


def seeded(runs: Iterable[Run], scale: Scale) -> list[Run]:
    """Each run with each seed, seed by seed, so that what stops early has whole comparisons."""
    runs = list(runs)
    return [replace(run, seed=seed) for seed in scale.seeds for run in runs]


def loss_runs(scale: Scale) -> dict[str, Run]:
    """Contrast alone, and with each interaction."""
    plain = Run(steps=scale.loop.steps)
    return {
        "contrast": plain,
        "kl": replace(plain, kl=True),
        "masked": replace(plain, masked=True),
        "all": replace(plain, kl=True, masked=True),
    }


def filter_runs(scale: Scale) -> dict[tuple[float, str], Run]:
    """Contrast alone under each share of mismatched captions, with and without the filter."""
    runs = {}
    for share in scale.shares:
        plain = Run(steps=scale.loop.steps, mismatched=share)
        runs[share, "off"] = plain
        runs[share, "k=1"] = replace(plain, filter_k=1.0)
        if share > 0:
            runs[share, "oracle"] = replace(plain, oracle=True)
    return runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Values of all runs, by seed.

    Attributes:
        losses: `contrast`, `kl`, `masked`, `all`, and `longer`: contrast alone for as many seconds
            as `all`.
        filters: (share of mismatched captions, `off`, `k=1` or `oracle`).
        longer_steps: Steps of `longer`.
    """

    losses: Mapping[str, Sequence[Values]]
    filters: Mapping[tuple[float, str], Sequence[Values]]
    longer_steps: int


def all_results(experiment: Experiment) -> Results:
    """Make every run that is not in the log."""
    scale = experiment.scale
    losses, filters = loss_runs(scale), filter_runs(scale)
    filtered = seeded(filters.values(), scale)
    longer_guess = 1.8 * len(scale.seeds) * scale.loop.steps
    later = sum(_cost(run) for run in filtered if not experiment.is_known(run))
    experiment.make_all(seeded(losses.values(), scale), later=later + longer_guess)

    def by_seed(run: Run) -> list[Values]:
        return [experiment.values(replace(run, seed=seed)) for seed in scale.seeds]

    def step_s(name: str) -> float:
        return statistics.median(float(values["step_s"]) for values in by_seed(losses[name]))

    ratio = step_s("all") / step_s("contrast")
    longer = replace(losses["contrast"], steps=max(round(scale.loop.steps * ratio), 1))
    experiment.make_all(seeded([longer], scale), later=later)
    experiment.make_all(filtered)
    return Results(
        losses={name: by_seed(run) for name, run in {**losses, "longer": longer}.items()},
        filters={key: by_seed(run) for key, run in filters.items()},
        longer_steps=longer.steps,
    )
