"""The values of all runs as tables with verdicts, which follow from the numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from costream.evaluate import ClaimRow, ClaimTable, compare_seeds
from costream.methods._cots.all_runs import Results, Values
from costream.methods._cots.world import Scale

LOSS_NAMES = {
    "contrast": "contrast",
    "kl": "contrast + KL",
    "masked": "contrast + masked",
    "all": "all three",
    "longer": "contrast, same seconds",
}


def column(runs: Sequence[Values], metric: str) -> list[float]:
    """One value of each seed."""
    return [float(values[metric]) for values in runs]


def mean_of(runs: Sequence[Values], metric: str) -> float:
    """The mean over seeds."""
    return statistics.fmean(column(runs, metric))


def loss_table(results: Results, settings: Mapping[str, str]) -> ClaimTable:
    """Does each interaction add to contrast alone?"""
    losses = results.losses

    def row(name: str, method: str, baseline: str) -> ClaimRow:
        pair = column(losses[method], "hit@1"), column(losses[baseline], "hit@1")
        return compare_seeds(name, *pair, unit="%")

    rows = (
        row("contrast + KL over contrast", "kl", "contrast"),
        row("contrast + masked over contrast", "masked", "contrast"),
        row("all three over contrast", "all", "contrast"),
        row("all three over contrast + masked", "all", "masked"),
        row("all three over contrast for the same seconds", "all", "longer"),
    )
    plain = mean_of(losses["contrast"], "step_s")
    times = "; ".join(
        f"{name} {mean_of(losses[key], 'step_s'):.3f} s "
        f"({mean_of(losses[key], 'step_s') / plain:.2f} x)"
        for key, name in LOSS_NAMES.items()
        if key != "longer"
    )
    extra = {
        "measured": "mean of hit@1 image to text (any caption counts) and text to image, on dev",
        "time a step": times,
        "steps of contrast for the same seconds": str(results.longer_steps),
    }
    title = "Each interaction adds to contrast alone: hit@1 at equal steps"
    return ClaimTable(title=title, rows=rows, settings={**extra, **settings})


def purpose_table(results: Results) -> ClaimTable:
    """Does each interaction do what it is for?"""
    losses = results.losses

    def told(name: str, what: str) -> ClaimRow:
        pair = column(losses["all"], f"{what} told"), column(losses["all"], f"{what} not told")
        return compare_seeds(name, *pair, more_is_better=False, unit="nats")

    def gap(name: str) -> list[float]:
        forward = column(losses[name], "image_to_text hit@1")
        backward = column(losses[name], "text_to_image hit@1")
        return [abs(a - b) for a, b in zip(forward, backward, strict=True)]

    rows = (
        told("loss of masked words, told their picture over another one", "mlm"),
        told("loss of masked patches, told their caption over another one", "mvm"),
        compare_seeds(
            "divergence of the two tasks, contrast + KL over contrast",
            column(losses["kl"], "kl"),
            column(losses["contrast"], "kl"),
            more_is_better=False,
            unit="nats",
        ),
        compare_seeds(
            "gap between the directions' hit@1, contrast + KL over contrast",
            gap("kl"),
            gap("contrast"),
            more_is_better=False,
            unit="%",
        ),
    )
    title = "Each interaction does what it is for: less is better, on dev"
    return ClaimTable(title=title, rows=rows, settings={})


def filter_table(results: Results, scale: Scale) -> ClaimTable:
    """Does the filter help when captions are mismatched?"""
    rows = []
    for share in scale.shares:
        off = column(results.filters[share, "off"], "hit@1")
        for kind in ("k=1", "oracle"):
            if (share, kind) not in results.filters:
                continue
            gained = column(results.filters[share, kind], "hit@1")
            name = f"filter {kind} over no filter, {100 * share:g} % mismatched"
            if share == 0:
                name += ", costs at most 1"
            threshold = -1.0 if share == 0 else 0.0
            rows.append(compare_seeds(name, gained, off, threshold=threshold, unit="%"))
    settings = {
        f"filter {kind}, {100 * share:g} % mismatched": filter_sentence(runs, share)
        for (share, kind), runs in results.filters.items()
        if kind.startswith("k=")
    }
    title = "The filter helps when captions are mismatched: hit@1 of contrast alone"
    note = {"filter": "counted over the visits of the second half of the steps"}
    return ClaimTable(title=title, rows=tuple(rows), settings={**note, **settings})


def filter_sentence(runs: Sequence[Values], share: float) -> str:
    """What the filter left out where a share of captions was mismatched, mean over seeds."""
    left_out = f"left out {mean_of(runs, 'left out'):.1f} % of the visits"
    if share == 0:
        return f"{left_out}, none of them mismatched"
    return (
        f"{left_out}, precision {mean_of(runs, 'precision'):.0f} %, "
        f"recall {mean_of(runs, 'recall'):.0f} %, "
        f"AUC of the similarity {mean_of(runs, 'auc'):.3f}"
    )
