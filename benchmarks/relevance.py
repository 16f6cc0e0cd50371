"""How far relevance can be trusted.

    python benchmarks/relevance.py --data DIR/flickr8k --json docs/results/relevance.json

`--data` is a folder with `dev.jsonl` (`image`, `captions`) and its pictures. They are split by the
hash of their names. On half A the constants of `costream.search.relevance` are learned (`--fit`
prints them to be pasted there) and every threshold is set: that at which one query in ten whose
picture is there is refused. Half B is only reported on: half of its pictures are taken out, so that
of the captions one half should find something and one half nothing. Besides, B is asked for things
that are not in it, and for letters that mean nothing.

The second table of each size is what `min_relevance` does at several values, and how well relevance
is calibrated: of the captions whose best picture gets a relevance between two values, how many have
their picture there.

Pictures that were not taken out often match a caption whose own picture was. That is counted as a
false accept all the same, so the figures are a lower bound of what people would say.

Shape letters: Q queries, N pictures, D dimensions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import costream
from costream.search import relevance
from costream.search.relevance import Background, Constants, RelativeConstants, best_of

Floats = NDArray[np.floating[Any]]

SIZES = (30, 60, 120, 250)
REMOVALS = 6
REFUSED = 0.1
RESAMPLES = 500
LEAST = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Things that people might search for, and that are in no picture of Flickr8k's dev split.
OFF_TOPIC = """
an x-ray of a broken wrist; a spreadsheet of quarterly revenue; the periodic table of elements;
a circuit board under a microscope; sheet music for piano; a galaxy seen through a telescope;
a page of handwritten equations; an invoice with a due date; a loaf of bread on a cutting board;
a bowl of ramen with an egg; a medieval castle on a hill; an empty kitchen with white cabinets;
a jar of pickled cucumbers; a computer keyboard on a desk; a vase of tulips;
the eiffel tower at night; a submarine under the ice; a bar chart of sales; a passport photo page;
an aquarium with clownfish; a penguin colony; a wind turbine; a cathedral's stained glass window;
a stack of old books; a microscope image of bacteria; a red sports car in a showroom;
an elephant bathing; a space shuttle launch; a plate of sushi; a grand piano; a wooden chess set;
a snail on a leaf; a telephone from the fifties; a bottle of perfume; solar panels on a roof;
a cup of coffee seen from above; a map of the london underground; a gold wedding ring;
an owl in a tree at night; a cactus in a pot; a dinosaur skeleton; a volcano erupting;
a screenshot of python code; the logo of a bank; a tomato plant; a zebra; a giraffe eating leaves;
a screw and a nut; a clock tower; a pile of coins
"""


@dataclass(frozen=True, kw_only=True)
class Half:
    """Pictures and captions of one half of the split."""

    pictures_ND: Floats
    captions_QD: Floats
    owner_Q: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Queries asked of one collection.

    Attributes:
        backgrounds: What chance gives each query.
        best_Q: Score of each query's best picture.
        present_Q: Whether the query's own picture is in the collection.
        owner_Q: Picture of each query, for resampling; -1 for queries without one.
    """

    backgrounds: list[Background]
    best_Q: Floats
    present_Q: NDArray[np.bool_]
    owner_Q: NDArray[np.int64]


def read_halves(data: Path, model_name: str, cache: Path | None) -> tuple[Half, Half]:
    """Embed the dev split, or read it from the cache, and split it by the hash of names."""
    rows = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    captions = [caption for row in rows for caption in row["captions"]]
    if cache is not None and cache.exists():
        stored = np.load(cache)
        texts, pictures = stored["texts"], stored["pictures"]
    else:
        model = costream.load(model_name)
        texts = model.encode_texts(captions)
        pictures = model.encode_images([data / row["image"] for row in rows])
        if cache is not None:
            np.savez(cache, texts=texts, pictures=pictures)
    # As an index stores them.
    pictures = pictures.astype(np.float16).astype(np.float32)
    owner = np.repeat(np.arange(len(rows)), [len(row["captions"]) for row in rows])
    names = [row["image"].encode() for row in rows]
    side = np.array([int(hashlib.sha256(name).hexdigest(), 16) % 2 for name in names])
    halves = []
    for number in (0, 1):
        kept = np.flatnonzero(side == number)
        mine = np.isin(owner, kept)
        halves.append(
            Half(
                pictures_ND=pictures[kept],
                captions_QD=texts[mine],
                owner_Q=np.searchsorted(kept, owner[mine]),
            )
        )
    return halves[0], halves[1]


def trial(half: Half, size: int, seed: int) -> Trial:
    """Take half of the pictures out, keep at most `size` of the rest, and ask for all.

    As many queries with as without their picture.
    """
    rng = np.random.default_rng([seed, size])
    kept = rng.permutation(len(half.pictures_ND))[: min(size, len(half.pictures_ND) // 2)]
    present_Q = np.isin(half.owner_Q, kept)
    count = min(present_Q.sum(), (~present_Q).sum())
    chosen = np.concatenate(
        [
            rng.choice(np.flatnonzero(which), count, replace=False)
            for which in (present_Q, ~present_Q)
        ]
    )
    asked = ask(half.captions_QD[chosen], half.pictures_ND[kept])
    return Trial(
        backgrounds=asked.backgrounds,
        best_Q=asked.best_Q,
        present_Q=present_Q[chosen],
        owner_Q=half.owner_Q[chosen],
    )


def ask(queries_QD: Floats, pictures_ND: Floats) -> Trial:
    """Queries that have no picture in the collection."""
    backgrounds = []
    for query_D in queries_QD:
        background = relevance.background_of(query_D, pictures_ND, len(pictures_ND))
        if background is None:
            raise SystemExit("a collection is too small to tell the spread of a query")
        backgrounds.append(background)
    count = len(queries_QD)
    return Trial(
        backgrounds=backgrounds,
        best_Q=(queries_QD @ pictures_ND.T).max(axis=1),
        present_Q=np.zeros(count, dtype=bool),
        owner_Q=np.full(count, -1),
    )


# --- learning ---


def logistic(features: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Weights of a logistic regression (Newton's method, a little ridge), the offset last."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    inputs = np.c_[(features - mean) / deviation, np.ones(len(features))]
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        odds = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (odds - truth) / len(truth) + 1e-3 * weights
        curvature = (inputs.T * (odds * (1 - odds))) @ inputs / len(truth)
        weights -= np.linalg.solve(curvature + 1e-3 * np.eye(len(weights)), gradient)
    raw = weights[:-1] / deviation
    return np.append(raw, weights[-1] - raw @ mean)


def fit(trials: Sequence[Trial]) -> tuple[Constants, RelativeConstants]:
    """Learn the constants from queries with and without their picture."""
    truth = np.concatenate([one.present_Q for one in trials])
    best = np.concatenate([one.best_Q for one in trials])
    known = [background for one in trials for background in one.backgrounds]
    mean, spread = (np.array([getattr(b, name) for b in known]) for name in ("mean", "spread"))
    chance = np.array([best_of(b.num_items) for b in known])
    score, own, most, offset = logistic(np.c_[best, spread, spread * chance], truth).tolist()
    weight, level = logistic(((best - mean) / spread - chance)[:, None], truth).tolist()
    measured = Constants(offset=offset, score=score, spread=own, best=most, threshold=0.0)
    relative = RelativeConstants(offset=level, weight=weight, threshold=0.0)
    return (
        Constants(
            offset=round(offset, 3),
            score=round(score, 3),
            spread=round(own, 3),
            best=round(most, 3),
            threshold=threshold(trials, measured_relevance(measured)),
        ),
        RelativeConstants(
            offset=round(level, 3),
            weight=round(weight, 3),
            threshold=threshold(trials, relative_relevance(relative)),
        ),
    )


Measure = Callable[[Trial], Floats]


def cosine(one: Trial) -> Floats:
    """The plain score of the best picture."""
    return one.best_Q


def measured_relevance(constants: Constants) -> Measure:
    """Relevance of the best picture where the model was measured."""

    def measure(one: Trial) -> Floats:
        judges = [relevance.measured_judge(b, constants) for b in one.backgrounds]
        return np.array([j.relevance(float(s)) for j, s in zip(judges, one.best_Q, strict=True)])

    return measure


def relative_relevance(constants: RelativeConstants) -> Measure:
    """Relevance of the best picture for any model."""

    def measure(one: Trial) -> Floats:
        judges = [relevance.relative_judge(b, constants) for b in one.backgrounds]
        return np.array([j.relevance(float(s)) for j, s in zip(judges, one.best_Q, strict=True)])

    return measure


def threshold(trials: Sequence[Trial], measure: Measure) -> float:
    """Where one query in ten whose picture is there is refused."""
    values = np.concatenate([measure(one)[one.present_Q] for one in trials])
    return round(float(np.quantile(values, REFUSED)), 3)


# --- reporting ---


def auc(present: Floats, absent: Floats) -> float:
    """Chance that a query with its picture gets more than one without; ties count half."""
    ordered = np.sort(absent)
    below = np.searchsorted(ordered, present, "left") + np.searchsorted(ordered, present, "right")
    return float(below.mean() / 2 / len(absent))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval over pictures."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def plain(self) -> list[float]:
        """For JSON: the figure and its interval."""
        return [round(number, 4) for number in (self.value, self.low, self.high)]


def with_interval(
    trials: Sequence[Trial], measure: Measure, figure: Callable[[Floats, Floats], float]
) -> Estimate:
    """A figure of present and absent queries' values."""
    values = np.concatenate([measure(one) for one in trials])
    present = np.concatenate([one.present_Q for one in trials])
    owner = np.concatenate([one.owner_Q for one in trials])
    rng = np.random.default_rng(0)
    pictures = np.unique(owner)
    rows_of = {picture: np.flatnonzero(owner == picture) for picture in pictures}
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rows_of[p] for p in rng.choice(pictures, len(pictures))])
        drawn.append(figure(values[rows][present[rows]], values[rows][~present[rows]]))
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return Estimate(value=figure(values[present], values[~present]), low=low, high=high)


def accepted(least: float) -> Callable[[Floats, Floats], float]:
    """Share of the captions without their picture whose best picture is accepted."""
    return lambda _, absent: float((absent >= least).mean())


def rejected(least: float) -> Callable[[Floats, Floats], float]:
    """Share of the captions with their picture whose best picture is rejected."""
    return lambda present, _: float((present < least).mean())


def sure(low: float, high: float) -> Callable[[Floats, Floats], float]:
    """Of the captions with a relevance from `low` to `high`, the share with their picture."""

    def share(present: Floats, absent: Floats) -> float:
        there = int(((present >= low) & (present < high)).sum())
        count = there + int(((absent >= low) & (absent < high)).sum())
        return there / count if count else math.nan

    return share


def by_threshold(trials: Sequence[Trial], measure: Measure) -> list[dict[str, Any]]:
    """What `min_relevance` does at several values, printed and returned."""
    values = np.concatenate([measure(one) for one in trials])
    print("\n| min_relevance | false accepts | false rejects | relevance up to | queries | right |")
    print("|---|---|---|---|---|---|")
    rows = []
    for low, high in zip(LEAST, (*LEAST[1:], 1.001), strict=True):
        row = {
            "false_accepts": with_interval(trials, measure, accepted(low)),
            "false_rejects": with_interval(trials, measure, rejected(low)),
            "right": with_interval(trials, measure, sure(low, high)),
        }
        count = int(((values >= low) & (values < high)).sum())
        cells = f"{low} | {row['false_accepts']} | {row['false_rejects']}"
        print(f"| {cells} | {min(high, 1.0)} | {count} | {row['right']} |")
        plain = {key: estimate.plain() for key, estimate in row.items()}
        rows.append({"min_relevance": low, "queries_up_to_next": count} | plain)
    return rows


def report(a: Half, b: Half, model_name: str, measures: dict[str, Measure]) -> list[dict[str, Any]]:
    """Print the tables of each size of the collection, and give their figures."""
    model = costream.load(model_name)
    rng = random.Random(0)  # noqa: S311
    nonsense = [
        " ".join(
            "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))
            for _ in range(rng.randint(1, 6))
        )
        for _ in range(150)
    ]
    other = " ".join(OFF_TOPIC.split()).split("; ")
    strange = {"off topic": model.encode_texts(other), "nonsense": model.encode_texts(nonsense)}
    learned = [trial(a, size, seed) for size in SIZES for seed in range(REMOVALS)]
    sizes = []
    for size in SIZES[1::2]:
        trials = [trial(b, size, 1000 + seed) for seed in range(REMOVALS)]
        count = len(trials[0].backgrounds)
        shown = min(size, len(b.pictures_ND) // 2)
        asked = f"{len(other)} off topic, {len(nonsense)} nonsense"
        print(f"\n{shown} pictures, {REMOVALS} x {count} captions, {asked}")
        print("| | AUC | false accepts | false rejects | off topic accepted | nonsense accepted |")
        print("|---|---|---|---|---|---|")
        rows = []
        for name, measure in measures.items():
            level = threshold(learned, measure)
            row = {
                "auc": with_interval(trials, measure, auc),
                "false_accepts": with_interval(trials, measure, accepted(level)),
                "false_rejects": with_interval(trials, measure, rejected(level)),
            }
            foreign = {}
            for kind, queries_QD in strange.items():
                values = measure(ask(queries_QD, b.pictures_ND[:shown]))
                foreign[f"{kind} accepted"] = round(float((values >= level).mean()), 4)
            cells = [str(cell) for cell in row.values()]
            cells += [f"{share:.2f}" for share in foreign.values()]
            print(f"| {name}, at least {level:.3f} | {' | '.join(cells)} |")
            plain = {key: estimate.plain() for key, estimate in row.items()}
            rows.append({"what": name, "threshold": level} | plain | foreign)
        by_least = by_threshold(trials, list(measures.values())[-1])
        sizes.append(
            {"pictures": shown, "captions": REMOVALS * count, "at_one_in_ten": rows}
            | {"by_min_relevance": by_least}
        )
    return sizes


def main() -> int:
    """Learn, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="cots-mini")
    parser.add_argument("--cache", type=Path, help="keep the vectors in this .npz file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--fit", action="store_true", help="learn the constants and print them")
    options = parser.parse_args()
    a, b = read_halves(options.data, options.model, options.cache)
    print(f"A: {len(a.pictures_ND)} pictures, B: {len(b.pictures_ND)} pictures")
    measured, relative = fit([trial(a, size, seed) for size in SIZES for seed in range(REMOVALS)])
    if options.fit:
        print(f'    "{costream.load(options.model).space.weights_hash}": {measured},')
        print(f"    {relative}")
    measures = {
        "cosine": cosine,
        "above chance (any model)": relative_relevance(relative),
        "relevance (this model)": measured_relevance(measured),
    }
    sizes = report(a, b, options.model, measures)
    if options.json is not None:
        content = {
            "model": options.model,
            "data": f"half B of the dev split, {len(b.pictures_ND)} pictures, half of them removed",
            "intervals": f"95 %, {RESAMPLES} resamplings of pictures",
            "sizes": sizes,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
