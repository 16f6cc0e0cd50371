"""How far relevance can be trusted.

    python benchmarks/relevance.py --data DIR/flickr8k --json docs/results/relevance.json

`--data` is a folder with `dev.jsonl` (`image`, `captions`) and its pictures. They are split by the
hash of their names. On half A the constants of `costream.search.relevance` are learned (`--fit`
prints them to be pasted there, and writes the prior that is shipped) and every threshold is set:
that at which one question in ten whose picture is there is refused. Half B is only reported on.

Every picture is asked for twice in every way there is (`CASES` in `_relevance.py`): in a collection
that it is in, and in one that it is not in, of 1 to 240 pictures. The first table is what comes out
at the threshold below which the program says that nothing is relevant. A question whose picture is
not there and whose best result is accepted is a false accept; one whose picture is there and whose
best is not accepted a false reject. Besides, B is asked for things that are not in it, and for
letters that mean nothing. The other tables are what a plain cosine does, what `min_relevance` does
at several values, and how well relevance is calibrated.

Another picture often matches a question whose own picture is not there. That is counted as a false
accept all the same, so the figures are a lower bound of what people would say.

Shape letters: Q questions, N pictures, D dimensions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _relevance import CASES, Asked, Floats, Half, ask, ask_strange, read_halves
from numpy.typing import NDArray

import costream
from costream.search.background import (
    FEWEST,
    Background,
    Prior,
    background_of,
    best_of,
    prior_from,
    write_prior,
)
from costream.search.relevance import (
    ANY_MODEL,
    MEASURED,
    Constants,
    Judge,
    Kind,
    RelativeConstants,
    judge_of,
    measured_judge,
    relative_judge,
)

FIT_SIZES = (1, 2, 3, 6, 10, 20, 30, 60, 120, 250)
# What a threshold is set on: where telling is hard, and where most collections are.
THRESHOLD_SIZES = (60, 120, 250)
SIZES = (1, 3, 10, 30, 100, 240)
SHOWN = (3, 30, 240)
REFUSED = 0.1
RESAMPLES = 1000
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
class Best:
    """What questions found.

    Attributes:
        score_Q: Of each question's best picture.
        values_Q: What is made of it: its relevance, or the score again.
        present_Q: Whether the picture that is asked for is there.
        target_Q: Its number.
    """

    score_Q: Floats
    values_Q: Floats
    present_Q: NDArray[np.bool_]
    target_Q: NDArray[np.int64]


Judging = Callable[[Floats, Floats], Judge]
"""Of a question and the vectors that it searches."""


def found(asked: Asked, judging: Judging | None = None) -> Best:
    """The best picture of each question, and its relevance if there is a judge, else its score."""
    pairs = list(zip(asked.vectors_QD, asked.collections, strict=True))
    scores = [float((pictures_ND @ query_D).max()) for query_D, pictures_ND in pairs]
    values = scores
    if judging is not None:
        judges = [judging(query_D, pictures_ND) for query_D, pictures_ND in pairs]
        values = [judge.relevance(score) for judge, score in zip(judges, scores, strict=True)]
    return Best(
        score_Q=np.array(scores),
        values_Q=np.array(values),
        present_Q=asked.present_Q,
        target_Q=asked.target_Q,
    )


def joined(parts: Sequence[Best]) -> Best:
    """All questions."""
    names = ("score_Q", "values_Q", "present_Q", "target_Q")
    return Best(**{name: np.concatenate([getattr(one, name) for one in parts]) for name in names})


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


def backgrounds(asked: Asked, prior: Prior | None) -> list[Background]:
    """What chance gives each question."""
    known = []
    for query_D, pictures_ND in zip(asked.vectors_QD, asked.collections, strict=True):
        background = background_of(query_D, pictures_ND, len(pictures_ND), prior)
        if background is None:
            raise SystemExit("a collection is too small to tell the spread of a question")
        known.append(background)
    return known


def learn(asked: Sequence[Asked], prior: Prior) -> Constants:
    """The constants of one kind of question; no threshold yet."""
    best = joined([found(one) for one in asked])
    known = [background for one in asked for background in backgrounds(one, prior)]
    spread = np.array([b.spread for b in known])
    chance = np.array([best_of(b.num_items) for b in known])
    features = np.c_[best.score_Q, spread, spread * chance]
    score, own, most, offset = logistic(features, best.present_Q).round(3).tolist()
    return Constants(offset=offset, score=score, spread=own, best=most, threshold=0.0)


def learn_relative(asked: Sequence[Asked]) -> RelativeConstants:
    """The constants of any model; no threshold yet."""
    best = joined([found(one) for one in asked])
    known = [background for one in asked for background in backgrounds(one, None)]
    mean, spread = (np.array([getattr(b, name) for b in known]) for name in ("mean", "spread"))
    chance = np.array([best_of(b.num_items) for b in known])
    above = (best.score_Q - mean) / spread - chance
    weight, offset = logistic(above[:, None], best.present_Q).round(3).tolist()
    return RelativeConstants(offset=offset, weight=weight, threshold=0.0)


def judging_by(constants: Constants | RelativeConstants, prior: Prior | None) -> Judging:
    """A judge of constants that are not in the product yet."""

    def judging(query_D: Floats, pictures_ND: Floats) -> Judge:
        background = background_of(query_D, pictures_ND, len(pictures_ND), prior)
        if background is None:
            raise SystemExit("a collection is too small to tell the spread of a question")
        if isinstance(constants, Constants):
            return measured_judge(background, constants)
        return relative_judge(background, constants)

    return judging


def threshold(best: Best) -> float:
    """Where one question in ten whose picture is there is refused."""
    return round(float(np.quantile(best.values_Q[best.present_Q], REFUSED)), 3)


def fit(half: Half) -> tuple[Prior, dict[Kind, Constants], RelativeConstants]:
    """Learn the prior and all constants from one half."""
    prior = prior_from(half.wholes_ND)
    measured: dict[Kind, Constants] = {}
    large: list[Asked] = []
    for kind in dict.fromkeys(case.kind for case in CASES.values()):
        cases = [case for case in CASES.values() if case.kind == kind]
        asked = {size: [ask(half, case, size, 0) for case in cases] for size in FIT_SIZES}
        constants = learn([one for size in FIT_SIZES for one in asked[size]], prior)
        hard = [one for size in THRESHOLD_SIZES for one in asked[size]]
        level = threshold(joined([found(one, judging_by(constants, prior)) for one in hard]))
        measured[kind] = replace(constants, threshold=level)
        large.extend(one for size in FIT_SIZES if size >= FEWEST for one in asked[size])
    relative = learn_relative(large)
    hard = [one for one in large if len(one.collections[0]) >= THRESHOLD_SIZES[0]]
    level = threshold(joined([found(one, judging_by(relative, None)) for one in hard]))
    return prior, measured, replace(relative, threshold=level)


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


def with_interval(best: Best, figure: Callable[[Floats, Floats], float]) -> Estimate:
    """A figure of present and absent questions' values."""
    rng = np.random.default_rng(0)
    pictures, own = np.unique(best.target_Q, return_inverse=True)
    order = np.argsort(own, kind="stable")
    rows_of = np.split(order, np.searchsorted(own[order], np.arange(1, len(pictures))))
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate(
            [rows_of[one] for one in rng.integers(len(pictures), size=len(rows_of))]
        )
        present = best.present_Q[rows]
        drawn.append(figure(best.values_Q[rows][present], best.values_Q[rows][~present]))
    low, high = np.nanquantile(drawn, (0.025, 0.975)).tolist()
    value = figure(best.values_Q[best.present_Q], best.values_Q[~best.present_Q])
    return Estimate(value=value, low=low, high=high)


def accepted(least: float) -> Callable[[Floats, Floats], float]:
    """Share of the questions without their picture whose best picture is accepted."""
    return lambda _, absent: float((absent >= least).mean())


def rejected(least: float) -> Callable[[Floats, Floats], float]:
    """Share of the questions with their picture whose best picture is rejected."""
    return lambda present, _: float((present < least).mean())


def sure(low: float, high: float) -> Callable[[Floats, Floats], float]:
    """Of the questions with a relevance from `low` to `high`, the share with their picture."""

    def share(present: Floats, absent: Floats) -> float:
        there = int(((present >= low) & (present < high)).sum())
        count = there + int(((absent >= low) & (absent < high)).sum())
        return there / count if count else math.nan

    return share


Product = Callable[[Kind], Judging]


def by_case(
    half: Half, product: Product
) -> tuple[list[dict[str, Any]], dict[str, dict[int, Best]]]:
    """The table of all ways to ask and all sizes, and what was found."""
    print(
        f"\nFalse accepts / false rejects by size of the collection, {len(half.wholes_ND)} pictures"
    )
    print("| asked by | " + " | ".join(str(size) for size in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    rows: list[dict[str, Any]] = []
    kept: dict[str, dict[int, Best]] = {}
    for name, case in CASES.items():
        judging, cells, kept[name] = product(case.kind), [], {}
        for size in SIZES:
            asked = ask(half, case, size, 1)
            best = kept[name][size] = found(asked, judging)
            level = judging(asked.vectors_QD[0], asked.collections[0]).threshold
            accepts = with_interval(best, accepted(level))
            rejects = with_interval(best, rejected(level))
            cells.append(f"{accepts} / {rejects}")
            rows.append(
                {"asked_by": name, "kind": case.kind, "pictures": size, "threshold": level}
                | {"questions": len(best.values_Q)}
                | {"false_accepts": accepts.plain(), "false_rejects": rejects.plain()}
            )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return rows, kept


def by_measure(
    a: Half, b: Half, strange: Mapping[str, Floats], product: Product, weights_hash: str
) -> list[dict[str, Any]]:
    """What a plain cosine and the distance above chance do beside relevance, for words."""
    case = CASES["words"]
    learned = [ask(a, case, size, 0) for size in THRESHOLD_SIZES]
    level = threshold(joined([found(one) for one in learned]))
    judging = product("words")
    measures: dict[str, tuple[Judging | None, float]] = {
        "cosine": (None, level),
        "above chance (any model)": (judging_by(ANY_MODEL, None), ANY_MODEL.threshold),
        "relevance": (
            judging,
            judging(learned[0].vectors_QD[0], learned[0].collections[0]).threshold,
        ),
    }
    print("\n| words | pictures | AUC | false accepts | false rejects | off topic | nonsense |")
    print("|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for name, (how, least) in measures.items():
        for size in SHOWN:
            if name.startswith("above") and size < FEWEST:
                continue
            best = found(ask(b, case, size, 1), how)
            figures = {
                "auc": with_interval(best, auc),
                "false_accepts": with_interval(best, accepted(least)),
                "false_rejects": with_interval(best, rejected(least)),
            }
            foreign = {
                kind: round(
                    float((found(ask_strange(v, b, size, 1), how).values_Q >= least).mean()), 4
                )
                for kind, v in strange.items()
            }
            cells = [str(each) for each in figures.values()]
            cells += [f"{share:.2f}" for share in foreign.values()]
            print(f"| {name}, at least {least:.3f} | {size} | {' | '.join(cells)} |", flush=True)
            plain = {key: each.plain() for key, each in figures.items()}
            rows.append({"what": name, "threshold": least, "pictures": size} | plain | foreign)
    return rows


def by_least(kept: Mapping[int, Best]) -> list[dict[str, Any]]:
    """What `min_relevance` does at several values, for words."""
    heads = [f"false accepts, {size} pictures | false rejects, {size}" for size in SHOWN]
    print(f"\n| min_relevance | {' | '.join(heads)} |")
    print("|---|" + "---|---|" * len(SHOWN))
    rows: list[dict[str, Any]] = []
    for least in LEAST:
        cells = []
        for size in SHOWN:
            accepts = with_interval(kept[size], accepted(least))
            rejects = with_interval(kept[size], rejected(least))
            cells += [str(accepts), str(rejects)]
            rows.append(
                {"min_relevance": least, "pictures": size}
                | {"false_accepts": accepts.plain(), "false_rejects": rejects.plain()}
            )
        print(f"| {least} | {' | '.join(cells)} |", flush=True)
    return rows


def calibration(kept: Mapping[str, Mapping[int, Best]]) -> list[dict[str, Any]]:
    """Of the questions with a relevance between two values, how many have their picture there."""
    groups = {f"words, {size} pictures": kept["words"][size] for size in SHOWN}
    groups["words, all sizes"] = joined(list(kept["words"].values()))
    others = [best for name, sizes in kept.items() if name != "words" for best in sizes.values()]
    groups["all other ways, all sizes"] = joined(others)
    print(f"\n| relevance of the best picture | {' | '.join(groups)} |")
    print("|---|" + "---|" * len(groups))
    rows: list[dict[str, Any]] = []
    for low, high in zip((0.0, *LEAST), (*LEAST, 1.001), strict=True):
        cells = []
        for name, best in groups.items():
            count = int(((best.values_Q >= low) & (best.values_Q < high)).sum())
            # Fewer tell nothing.
            if count < 20:
                cells.append(f"({count})")
                continue
            share = with_interval(best, sure(low, high))
            cells.append(f"{share} of {count}")
            rows.append(
                {"relevance": [low, min(high, 1.0)], "of": name, "questions": count}
                | {"right": share.plain()}
            )
        print(f"| {low} to {min(high, 1.0)} | {' | '.join(cells)} |", flush=True)
    return rows


def strange_words() -> dict[str, list[str]]:
    """Words that no picture of the split is to be found by."""
    rng = random.Random(0)  # noqa: S311
    nonsense = [
        " ".join(
            "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))
            for _ in range(rng.randint(1, 6))
        )
        for _ in range(150)
    ]
    return {
        "off_topic_accepted": " ".join(OFF_TOPIC.split()).split("; "),
        "nonsense_accepted": nonsense,
    }


def main() -> int:
    """Learn, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="cots-mini")
    parser.add_argument("--cache", type=Path, help="keep the vectors in this .npz file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--fit", action="store_true", help="learn the constants, print them, and write the prior"
    )
    options = parser.parse_args()
    model = costream.load(options.model)
    space = model.space
    a, b = read_halves(options.data, model, options.cache)
    print(f"A: {len(a.wholes_ND)} pictures, B: {len(b.wholes_ND)} pictures")
    if options.fit:
        prior, measured, relative = fit(a)
        print(f"wrote {write_prior(prior, space.weights_hash)}")
        print(f'    "{space.weights_hash}": {{')
        for kind, constants in measured.items():
            print(f'        "{kind}": {constants},')
        print(f"    }}\n    {relative}")
        return 0
    if space.weights_hash not in MEASURED:
        raise SystemExit("the model was not measured: run with --fit, paste what it prints")

    def product(kind: Kind) -> Judging:
        """What a `Searcher` asks."""

        def judging(query_D: Floats, pictures_ND: Floats) -> Judge:
            judge = judge_of(query_D, pictures_ND, len(pictures_ND), space=space, kind=kind)
            if not isinstance(judge, Judge):
                raise SystemExit(judge.why)
            return judge

        return judging

    strange = {name: model.encode_texts(words) for name, words in strange_words().items()}
    cases, kept = by_case(b, product)
    content = {
        "model": options.model,
        "data": f"half B of the dev split, {len(b.wholes_ND)} pictures, each asked for in a "
        "collection that it is in and in one that it is not in",
        "intervals": f"95 %, {RESAMPLES} resamplings of pictures",
        "cases": cases,
        "measures": by_measure(a, b, strange, product, space.weights_hash),
        "by_min_relevance": by_least(kept["words"]),
        "calibration": calibration(kept),
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
