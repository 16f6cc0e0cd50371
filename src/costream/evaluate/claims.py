"""A paper's claim as numbers with an interval and a verdict that follows from it.

The unit of evidence is a *pair*: method and baseline trained with the same seed, data order and
number of steps. The verdict is computed, never written by hand:

- `shown`: the whole interval lies above the threshold;
- `contradicted`: the whole interval lies below it;
- `not shown`: the interval contains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError

Verdict = Literal["shown", "not shown", "contradicted"]
IntervalKind = Literal["t", "bootstrap"]
Form = Literal["text", "markdown"]

_DRAWS_AT_ONCE = 2**22
_MOST_RUNS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRow:
    """One comparison of a method with its baseline.

    Attributes:
        name: What is compared, and on what.
        method: Values of the method, one a seed.
        baseline: Values of the baseline, in the order of the same seeds.
        unit: Of the values (`%`, `s`, ...).
        more_is_better: False where a smaller value is a gain.
        gain: Mean over seeds of method - baseline, or of baseline - method where less is better.
        low: Lower end of the gain's interval.
        high: Upper end.
        confidence: Of the interval, 0 to 1.
        interval: How it was computed.
        threshold: What the gain has to exceed.
        verdict: Follows from interval and threshold.
        note: What a reader must know to weigh the row.
    """

    name: str
    method: tuple[float, ...]
    baseline: tuple[float, ...]
    unit: str
    more_is_better: bool
    gain: float
    low: float
    high: float
    confidence: float
    interval: IntervalKind
    threshold: float
    verdict: Verdict
    note: str = ""


def _quiet(_: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimOptions:
    """How the experiment behind a claim is run.

    Attributes:
        seeds: How many runs a comparison has; at least 2.
        fast: Whether to run at a size that only shows that the experiment works: its verdicts are
            worth nothing.
        data_root: Folder with real data sets, each a folder named after it; procedural data when
            None.
        out: Folder for results, plots and finished runs, from which a stopped experiment goes on;
            nothing is written when None.
        say: Told about progress.
    """

    seeds: int = 3
    fast: bool = False
    data_root: Path | None = None
    out: Path | None = None
    say: Callable[[str], None] = _quiet

    def folder(self, name: str) -> Path | None:
        """The folder of a real data set, when there is one below `data_root`.

        Args:
            name: Of the data set, such as `flickr8k`.
        """
        if self.data_root is None:
            return None
        # The folder of the data set itself will do, too.
        candidates = (self.data_root / name, self.data_root)
        found = next((each for each in candidates if (each / "train.jsonl").is_file()), None)
        if found is None:
            self.say(f"{self.data_root} has no {name}/train.jsonl: without it, on made-up data")
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimTable:
    """All comparisons that belong to one claim.

    Attributes:
        title: The claim as a sentence.
        rows: Its comparisons.
        settings: What else fixes the experiment (data hash, steps, seeds, versions), as text.
    """

    title: str
    rows: tuple[ClaimRow, ...]
    settings: Mapping[str, str]


def compare_seeds(
    name: str,
    method: Sequence[float],
    baseline: Sequence[float],
    *,
    more_is_better: bool = True,
    threshold: float = 0.0,
    confidence: float = 0.95,
    interval: IntervalKind = "t",
    unit: str = "",
) -> ClaimRow:
    """Compare paired values, one pair a seed (or a query, with `bootstrap`).

    Args:
        name: What is compared.
        method: Values of the method, at least 2.
        baseline: Values of the baseline with the same seeds, in the same order.
        more_is_better: False where a smaller value is a gain.
        threshold: What the gain has to exceed; negative for "costs at most this much".
        confidence: Of the interval, above 0 and below 1.
        interval: `t` for a few seeds; `bootstrap` for tens of pairs or more.
        unit: Of the values.

    Returns:
        The row with its verdict.

    Raises:
        ConfigError: When the confidence or the kind of interval is not usable.
        DataError: When the two differ in length or have fewer than 2 values.
        NumericalError: When a value is not finite.

    Example:
        >>> compare_seeds("hit@1", [30.0, 31.0, 32.0], [20.0, 21.5, 21.0]).verdict
        'shown'
        >>> compare_seeds("hit@1", [30.0, 10.0, 32.0], [20.0, 21.5, 21.0]).verdict
        'not shown'
    """
    if len(method) != len(baseline):
        raise DataError(
            f"{name!r} has {len(method)} values of the method and {len(baseline)} of the baseline",
            hint="run both with the same seeds",
        )
    difference = np.asarray(method, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    if not more_is_better:
        difference = -difference
    if interval not in get_args(IntervalKind):
        raise ConfigError(f"interval is {interval!r}, expected 't' or 'bootstrap'")
    compute = t_interval if interval == "t" else bootstrap_interval
    low, high = compute(difference, confidence)
    alike = len(set(zip(method, baseline, strict=True))) == 1
    return ClaimRow(
        name=name,
        method=tuple(float(value) for value in method),
        baseline=tuple(float(value) for value in baseline),
        unit=unit,
        more_is_better=more_is_better,
        gain=float(difference.mean()),
        low=low,
        high=high,
        confidence=confidence,
        interval=interval,
        threshold=threshold,
        verdict=judge(low, high, threshold),
        # Identical runs are no evidence of spread: most often the seed was not used.
        note="every pair is the same: check that the seeds differ" if alike else "",
    )


def judge(low: float, high: float, threshold: float = 0.0) -> Verdict:
    """The verdict that follows from an interval.

    Args:
        low: Lower end.
        high: Upper end.
        threshold: What the gain has to exceed.

    Returns:
        `shown`, `not shown` or `contradicted`.

    Example:
        >>> judge(0.5, 2.0), judge(-1.0, 2.0), judge(-2.0, -1.0)
        ('shown', 'not shown', 'contradicted')
    """
    if low > threshold:
        return "shown"
    return "contradicted" if high < threshold else "not shown"


def t_interval(
    differences: Sequence[float] | NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float]:
    """Student's interval for the mean of a few differences.

    Args:
        differences: At least 2.
        confidence: Above 0 and below 1.

    Returns:
        Lower and upper end.

    Raises:
        ConfigError: When the confidence is not between 0 and 1.
        DataError: When there are fewer than 2 differences.
        NumericalError: When one is not finite.

    Example:
        >>> low, high = t_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    values = _check_differences(differences, confidence)
    reach = _t_quantile(confidence, len(values) - 1)
    half = reach * float(values.std(ddof=1)) / math.sqrt(len(values))
    middle = float(values.mean())
    return middle - half, middle + half


def bootstrap_interval(
    differences: Sequence[float] | NDArray[np.float64],
    confidence: float = 0.95,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile bootstrap interval for the mean of many differences.

    With a handful of values it is far too narrow: use `t_interval` there.

    Args:
        differences: At least 2.
        confidence: Above 0 and below 1.
        seed: Of the resampling.
        resamples: How often to draw, at least 1.

    Returns:
        Lower and upper end.

    Raises:
        ConfigError: When the confidence is not between 0 and 1, or `resamples` is below 1.
        DataError: When there are fewer than 2 differences.
        NumericalError: When one is not finite.

    Example:
        >>> bootstrap_interval([1.0] * 50)
        (1.0, 1.0)
    """
    values = _check_differences(differences, confidence)
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}, expected at least 1", hint="try 10000")
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    at_once = max(1, _DRAWS_AT_ONCE // len(values))
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), len(values))
        means.append(values[rng.integers(0, len(values), shape)].mean(axis=1))
    outside = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(low), float(high)


def runs_to_show(row: ClaimRow) -> int | None:
    """About how many runs would show the measured gain, if it and its spread are the true ones.

    Args:
        row: A comparison of seeds.

    Returns:
        At most 100; None when the gain is no larger than the threshold, or more would be needed.

    Example:
        >>> runs_to_show(compare_seeds("hit@1", [3.0, 3.5, 4.5], [2.0, 3.0, 2.5]))
        5
    """
    differences = np.subtract(row.method, row.baseline)
    spread = float(differences.std(ddof=1))
    over = row.gain - row.threshold
    if over <= 0:
        return None
    for count in range(2, _MOST_RUNS + 1):
        if _t_quantile(row.confidence, count - 1) * spread / math.sqrt(count) < over:
            return count
    return None


def render_claim(table: ClaimTable, form: Form = "text") -> str:
    """The table for people.

    Args:
        table: Any claim.
        form: `text` for a terminal or `markdown` for documentation.

    Returns:
        Lines joined by newlines, without one at the end.

    Raises:
        ConfigError: When the form is unknown.

    Example:
        >>> row = compare_seeds("hit@1", [3.0, 3.1], [1.0, 1.0], unit="%")
        >>> print(render_claim(ClaimTable(title="It helps", rows=(row,), settings={})))
        It helps
        <BLANKLINE>
        comparison  method           baseline         gain                          verdict
        hit@1       3.05 % (2 runs)  1.00 % (2 runs)  2.05 [1.41, 2.69] at 95 %, t  shown
    """
    if form not in get_args(Form):
        raise ConfigError(f"form is {form!r}, expected 'text' or 'markdown'")
    header = ("comparison", "method", "baseline", "gain", "verdict")
    cells = [header, *(_cells(row) for row in table.rows)]
    settings = [f"{name}: {value}" for name, value in table.settings.items()]
    if form == "markdown":
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
        lines = [f"| {' | '.join(row)} |" for row in escaped]
        lines.insert(1, "|" + " --- |" * len(header))
        settings = [f"- {line}" for line in settings]
        return "\n".join([f"**{table.title}**", "", *lines, *([""] if settings else []), *settings])
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([table.title, "", *lines, *([""] if settings else []), *settings])


def claim_to_json(table: ClaimTable) -> dict[str, Any]:
    """The table as plain values.

    Args:
        table: Any claim.

    Returns:
        What `json.dumps` takes.
    """
    rows = [asdict(row) for row in table.rows]
    for row in rows:
        row["method"], row["baseline"] = list(row["method"]), list(row["baseline"])
    return {"title": table.title, "settings": dict(table.settings), "rows": rows}


def claim_from_json(values: Mapping[str, Any]) -> ClaimTable:
    """The table that `claim_to_json` made these values of.

    The verdict is computed again, so that an edited file cannot claim what its numbers do not show.

    Args:
        values: As decoded from JSON.

    Returns:
        The table.

    Raises:
        DataError: When a part is absent or unknown, or the verdict does not follow from the
            numbers.
    """
    rows = []
    known = {each.name for each in fields(ClaimRow)}
    for row in values.get("rows", ()):
        if set(row) != known:
            wrong = sorted(set(row) ^ known)
            raise DataError(
                f"a row of the claim has absent or unknown parts: {', '.join(wrong)}",
                hint="write it again with claim_to_json",
            )
        again = compare_seeds(
            row["name"],
            row["method"],
            row["baseline"],
            more_is_better=row["more_is_better"],
            threshold=row["threshold"],
            confidence=row["confidence"],
            interval=row["interval"],
            unit=row["unit"],
        )
        if again.verdict != row["verdict"]:
            raise DataError(
                f"{row['name']!r} says {row['verdict']!r}, its numbers say {again.verdict!r}",
                hint="run the claim again",
            )
        stored = row | {"method": tuple(row["method"]), "baseline": tuple(row["baseline"])}
        rows.append(ClaimRow(**stored))
    if "title" not in values or "settings" not in values:
        raise DataError("the claim lacks 'title' or 'settings'", hint="write it with claim_to_json")
    return ClaimTable(title=values["title"], rows=tuple(rows), settings=dict(values["settings"]))


def _cells(row: ClaimRow) -> tuple[str, ...]:
    over = f", above {row.threshold:g}" if row.threshold else ""
    gain, low, high = (in_digits(value) for value in (row.gain, row.low, row.high))
    found = f"{gain} [{low}, {high}] at {100 * row.confidence:g} %, {row.interval}{over}"
    said = "; ".join(notes(row))
    verdict = f"{row.verdict} ({said})" if said else str(row.verdict)
    return row.name, mean_of(row, row.method), mean_of(row, row.baseline), found, verdict


def mean_of(row: ClaimRow, values: Sequence[float]) -> str:
    """The mean of a row's values in words, with their number and what they are.

    Example:
        >>> row = compare_seeds("hit@1", [3.0, 3.5], [2.0, 3.0], unit="%")
        >>> mean_of(row, row.method)
        '3.25 % (2 runs)'
    """
    # So many values that they can be drawn from are those of single queries.
    what = "queries" if row.interval == "bootstrap" else "runs"
    mean = f"{in_digits(sum(values) / len(values))} {row.unit}".rstrip()
    return f"{mean} ({len(values)} {what})"


def in_digits(value: float) -> str:
    """A number with two digits; none is a zero with a minus.

    Example:
        >>> in_digits(-0.001), in_digits(-0.01)
        ('0.00', '-0.01')
    """
    return f"{round(value, 2) + 0.0:.2f}"


def notes(row: ClaimRow) -> list[str]:
    """What stands beside a verdict: what a reader must know, and how far it is from being shown.

    Args:
        row: Any comparison.

    Returns:
        Phrases; none for most rows.

    Example:
        >>> notes(compare_seeds("hit@1", [3.0, 3.5, 4.5], [2.0, 3.0, 2.5]))
        ['5 runs may show it']
    """
    found = [row.note] if row.note else []
    if row.verdict == "not shown" and row.interval == "t":
        runs = runs_to_show(row)
        if runs is not None:
            found.append(f"{runs} runs may show it")
    return found


def _check_differences(
    differences: Sequence[float] | NDArray[np.float64], confidence: float
) -> NDArray[np.float64]:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, expected above 0 and below 1", hint="0.95")
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise DataError(
            f"got {values.size} differences, expected at least 2",
            hint="one run has no spread: use more seeds",
        )
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise NumericalError(f"difference {first} is {values[first]}, expected a finite number")
    return values


def _t_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = confidence, by bisection on the exact distribution."""
    # |T| is within tan(angle) * sqrt(freedom), so the angle has a bounded range to bisect.
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _t_within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _t_within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
