"""ITR reproducibility: which factors of an image-text experiment move recall, and by how much.

Idea: papers claim gains of a few points for an architecture; the loss variant, pretrained words,
the seed, how a checkpoint is picked and whether two models are averaged may move recall as much. So
one factor at a time is changed around a fixed small model, with seeds as the noise floor.

Equations, with S (B, B) the scores of a batch, m the margin:

    SH = sum_{i!=j} [m + S_ij - S_ii]_+ + sum_{i!=j} [m + S_ji - S_ii]_+
    MH = the same with only the largest term of each row and of each column
    rSum = sum of hit@1, hit@5, hit@10 of both directions

Shapes: N pictures, M captions, B pairs of a batch.

Source: Rao et al., "Where Does the Performance Improvement Come From? A Reproducibility Concern
about Image-Text Retrieval" (SIGIR 2022); read: code and tables of the repository. Inferred, not
said there: that its third column of numbers is the sum of hinges.

Differs: the models are not those of the papers but one small model (linear map of frozen features,
GRU over words) that trains in seconds; words start from the text tower of the evaluated system in
place of BERT. A batch has no two captions of one picture.

Costs: tens of short trainings. Index impact: none.

Claim: start of the words and loss variant move rSum by more than the range of seeds; picking the
checkpoint on what is reported flatters; an ensemble of two gains about as much as papers claim; the
same configuration under another name gains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from costream.config import Range
from costream.errors import DataError
from costream.parts import Base, Parts
from costream.records import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from costream.data import DataSet
    from costream.evaluate import ClaimOptions, ClaimTable
    from costream.methods._itr_reproducibility.small import Captioned, Frozen, Setup
    from costream.parts import System
    from costream.records import Sample

CARD = {
    "name": "itr_reproducibility",
    "title": "ITR reproducibility: Where Does the Performance Improvement Come From?",
    "paper": "Rao et al., SIGIR 2022",
    "year": 2022,
    "kind": "factor study",
    "slots": ("evaluation",),
    "index_impact": "none",
    "summary": "Trains small models on a system's frozen features, one factor changed at a time, "
    "and reports each effect beside the spread of seeds.",
    "scale": "Published with models trained for 30 epochs on Flickr30K and COCO in batches of 128. "
    "Here rSum still rises when training ends, so every rule picks the last checkpoint, and "
    "smaller batches win by their steps: rules need training past the best checkpoint. An effect "
    "as small as the range of seeds needs tens of seeds, here or there.",
}

Scores = NDArray[np.float32]

_DEFINITIONS = {
    "rsum": "Mean over seeds of rSum: hit@1 + hit@5 + hit@10 in percent, both directions.",
    "sd": "Standard deviation of rSum over seeds.",
    "effect": "Mean over seeds of rSum less that of the base configuration with the same seed.",
    "low": "Lower end of the effect's interval (95 %, Student's t over seeds).",
    "high": "Upper end of it.",
    "in_sds": "The effect in standard deviations of the base configuration over seeds.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of the study.

    Attributes:
        seeds: Runs of each configuration.
        pairs: Pairs that a run sees, whatever its batch.
        checkpoints: How often a run is measured.
        train_share: Share of the pictures that models are trained on; the others are halved into
            those that checkpoints are picked by and those that are reported.
        folds: Disjoint blocks of pictures that are measured apart and averaged ("1K" of "5K").
        split_seed: Of the split.
    """

    seeds: Annotated[int, Range(2)] = 5
    pairs: Annotated[int, Range(1)] = 30_000
    checkpoints: Annotated[int, Range(1)] = 4
    train_share: Annotated[float, Range(0.1, 0.9)] = 0.6
    folds: Annotated[int, Range(1)] = 1
    split_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """rSum of one training by the rule that picks its checkpoint.

    Attributes:
        last: Of the last checkpoint.
        best_dev: Of the one that is best on dev.
        best_held: Of the one that is best on what is reported: upward biased.
    """

    last: float
    best_dev: float
    best_held: float


# --- measures ---


def r_sum(scores_NM: Scores, picture_of: NDArray[np.int64]) -> float:
    """Sum of six hit@k (rSum) of a score matrix; a picture's best caption counts.

    Args:
        scores_NM: Pictures by captions.
        picture_of: int (M,).

    Example:
        >>> r_sum(np.eye(2, dtype=np.float32), np.arange(2))
        600.0
    """
    from costream.evaluate.scores import GivenScores
    from costream.evaluate.vectors import evaluate_scores

    measured = evaluate_scores(GivenScores(scores_NM), GivenScores(scores_NM.T), picture_of)
    return sum(
        value
        for metrics in measured.values()
        for metric, value in metrics.items()
        if metric.startswith("hit@")
    )


def in_folds(scores_NM: Scores, picture_of: NDArray[np.int64], folds: int) -> float:
    """Mean rSum of disjoint blocks of pictures and their own captions ("1K" of a "5K" gallery).

    Args:
        scores_NM: Pictures by captions.
        picture_of: int (M,).
        folds: Number of blocks, at most one a picture.
    """
    found = []
    for block in np.array_split(np.arange(len(scores_NM)), folds):
        columns = np.flatnonzero(np.isin(picture_of, block))
        own = np.searchsorted(block, picture_of[columns])
        found.append(r_sum(scores_NM[np.ix_(block, columns)], own))
    return float(np.mean(found))


def picked(checkpoints: Sequence[tuple[float, float]]) -> Run:
    """What each rule picks of a run.

    Args:
        checkpoints: rSum on dev and on what is reported, in the order of training.

    Example:
        >>> picked([(10.0, 12.0), (11.0, 9.0), (8.0, 10.0)])
        Run(last=10.0, best_dev=9.0, best_held=12.0)
    """
    return Run(
        last=checkpoints[-1][1],
        best_dev=max(checkpoints, key=lambda pair: pair[0])[1],
        best_held=max(held for _, held in checkpoints),
    )


# --- the grid ---


def grid() -> dict[str, Setup]:
    """Configurations by name: the base, and one factor changed at a time.

    `twin` is the base again, with other seeds.
    """
    from costream.methods._itr_reproducibility.small import Setup

    base = Setup()
    return {
        "base": base,
        "twin": base,
        "loss=sum": replace(base, loss="sum"),
        "loss=info_nce": replace(base, loss="info_nce"),
        "words=random": replace(base, words="random"),
        "batch=32": replace(base, batch=32),
    }


def run_grid(
    frozen: Frozen,
    config: Config,
    *,
    kept: Callable[[dict[str, Any], Callable[[], dict[str, float]]], dict[str, float]],
) -> dict[str, list[float]]:
    """Each configuration and rule with its rSum, one a seed.

    Args:
        frozen: Features and captions.
        config: Sizes.
        kept: Called with what fixes a seed's runs and a function that makes them; gives their
            numbers, from where they are kept or from the function.
    """
    rows = [
        kept({**_plain(config), "run": seed}, lambda seed=seed: run_seed(frozen, config, seed))  # type: ignore[misc]
        for seed in range(config.seeds)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def run_seed(frozen: Frozen, config: Config, seed: int) -> dict[str, float]:
    """All configurations with one seed: name to rSum."""
    from costream.methods._itr_reproducibility.small import train

    found: dict[str, float] = {}
    last: dict[str, Scores] = {}

    def measured(scores: Scores, of: Captioned) -> float:
        return in_folds(scores, of.picture_of, config.folds)

    for name, setup in grid().items():
        # Seeds of the twin are none of the base's.
        own = replace(setup, seed=seed + 1000 * (name == "twin"))
        made = train(frozen, own, pairs=config.pairs, checkpoints=config.checkpoints)
        run = picked(
            [(measured(dev, frozen.dev), measured(held, frozen.held)) for dev, held in made]
        )
        found[name] = run.best_dev
        last[name] = made[-1][1]
        if name == "base":
            found |= {"checkpoint=last": run.last, "checkpoint=best reported": run.best_held}
    both = ((last["base"] + last["twin"]) / 2).astype(np.float32)
    found["ensemble of 2"] = measured(both, frozen.held)
    single = [measured(last[name], frozen.held) for name in ("base", "twin")]
    found["mean of 2"] = float(np.mean(single))
    return found


class FactorGrid:
    """The evaluation (an `Evaluation`): effects of factors on the features of a system.

    Args:
        config: Settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def run(self, system: System, data: DataSet) -> Report:
        """Train the grid on frozen features of the system's model.

        Args:
            system: Its model gives features and word vectors.
            data: Captioned pictures, at least 10.

        Raises:
            DataError: There are too few pictures, or one is broken.
        """
        from costream.evaluate.retrieval import describe_data
        from costream.evaluate.systems import describe_system
        from costream.methods._itr_reproducibility.small import freeze

        frozen = freeze(system.model, *split(data, self._config))
        values = run_grid(frozen, self._config, kept=lambda _, make: make())
        return Report(
            metrics=effects(values),
            definitions=_DEFINITIONS,
            data=describe_data(data, ()),
            model=describe_system(system),
        )


def split(
    data: DataSet, config: Config
) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """Pictures to train on, to pick checkpoints by, and to report; no group is in two parts.

    Raises:
        DataError: There are too few pictures, or one has no caption.
    """
    for sample in data.samples:
        if not sample.slots.get("text"):
            raise DataError(f"{sample.id!r} has no caption", hint="give captioned pictures")
    groups = sorted({sample.group for sample in data.samples})
    if len(groups) < 10:
        raise DataError(
            f"{data.name!r} has {len(groups)} pictures, expected at least 10 to train and measure",
            hint="give a training set",
        )
    order = np.random.default_rng(config.split_seed).permutation(len(groups))
    first = round(config.train_share * len(groups))
    second = (first + len(groups)) // 2
    part = {groups[place]: int(n >= first) + int(n >= second) for n, place in enumerate(order)}
    parts = tuple([s for s in data.samples if part[s.group] == number] for number in range(3))
    return parts[0], parts[1], parts[2]


def effects(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Each configuration beside the base.

    Args:
        values: Name to rSum, one a seed; `base` must be there.
    """
    from costream.evaluate.claims import t_interval

    spread = float(np.std(values["base"], ddof=1))
    found = {}
    for name, each in values.items():
        if name == "mean of 2":
            continue
        base = values["mean of 2"] if name == "ensemble of 2" else values["base"]
        difference = np.subtract(each, base)
        low, high = t_interval(difference)
        effect = float(difference.mean())
        found[name] = {
            "rsum": float(np.mean(each)),
            "sd": float(np.std(each, ddof=1)),
            "effect": effect,
            "low": low,
            "high": high,
            "in_sds": effect / spread if spread else 0.0,
        }
    return found


def parts(config: Config, base: Base) -> Parts:
    """The evaluation."""
    return Parts(evaluation=(FactorGrid(config),))


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """Effects of the factors on photographs, or on procedural scenes."""
    from costream.methods._itr_reproducibility.claim import reproduce

    return reproduce(options)


def _plain(config: Config) -> dict[str, Any]:
    return {
        each.name: getattr(config, each.name) for each in fields(config) if each.name != "seeds"
    }
