"""Verdicts follow from intervals, and intervals hold what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costream.errors import ConfigError, DataError, NumericalError
from costream.evaluate import (
    ClaimTable,
    bootstrap_interval,
    claim_from_json,
    claim_to_json,
    compare_seeds,
    render_claim,
    t_interval,
)
from costream.evaluate.claims import _t_quantile, judge


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    # Printed tables of Student's distribution, two-sided.
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 9, 2.262),
        (0.99, 2, 9.925),
        (0.90, 5, 2.015),
        (0.95, 30, 2.042),
        (0.95, 1000, 1.962),
    ],
)
def test_t_quantiles_are_those_of_printed_tables(
    confidence: float, freedom: int, expected: float
) -> None:
    assert _t_quantile(confidence, freedom) == pytest.approx(expected, abs=6e-4)


def test_t_interval_is_the_formula() -> None:
    values = np.array([1.0, 2.5, 2.0])
    half = 4.30265273 * values.std(ddof=1) / np.sqrt(3)
    assert t_interval(values) == pytest.approx((values.mean() - half, values.mean() + half))


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_intervals_cover_the_truth_as_often_as_they_say(interval: object) -> None:
    assert callable(interval)
    rng = np.random.default_rng(0)
    size = 4 if interval is t_interval else 60
    options = {} if interval is t_interval else {"resamples": 300}
    covered = []
    for _ in range(400):
        low, high = interval(rng.normal(1.0, 2.0, size), 0.9, **options)
        covered.append(low <= 1.0 <= high)
    assert 0.84 < np.mean(covered) < 0.95


def test_a_method_that_changes_nothing_is_rarely_shown() -> None:
    """The check can fail: of 400 comparisons of equals about 1 in 40 is shown by chance."""
    rng = np.random.default_rng(1)
    verdicts = [
        compare_seeds("x", rng.normal(size=3).tolist(), rng.normal(size=3).tolist()).verdict
        for _ in range(400)
    ]
    assert verdicts.count("shown") < 25
    assert verdicts.count("contradicted") < 25


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(-5, 5))
def test_verdict_follows_from_the_interval(low: float, width: float, threshold: float) -> None:
    high = low + width
    verdict = judge(low, high, threshold)
    assert (verdict == "shown") == (low > threshold)
    assert (verdict == "not shown") == (low <= threshold <= high)


def test_where_less_is_better_the_sign_turns() -> None:
    slow, fast = [9.0, 10.0, 11.0], [1.0, 1.5, 1.0]
    assert compare_seeds("time", fast, slow, more_is_better=False).verdict == "shown"
    assert compare_seeds("time", slow, fast, more_is_better=False).verdict == "contradicted"


def test_a_negative_threshold_shows_that_a_cost_is_bounded() -> None:
    row = compare_seeds("hit@1", [20.0, 21.0, 20.6], [20.1, 21.0, 20.7], threshold=-1.0)
    assert row.verdict == "shown"
    assert row.gain < 0


def test_seeds_are_paired() -> None:
    """Seeds differ by tens, method and baseline by one: only the pairing shows it."""
    base = [10.0, 40.0, 70.0, 90.0]
    assert compare_seeds("x", [11.0, 41.1, 71.0, 90.9], base).verdict == "shown"


def test_identical_runs_are_noted() -> None:
    assert "seeds differ" in compare_seeds("x", [2.0, 2.0], [1.0, 1.0]).note
    assert compare_seeds("x", [2.0, 2.1], [1.0, 1.0]).note == ""


def test_bootstrap_is_repeatable() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)


def test_too_little_or_wrong_input_is_refused() -> None:
    with pytest.raises(DataError, match="1 differences, expected at least 2"):
        compare_seeds("x", [1.0], [0.0])
    with pytest.raises(DataError, match="3 values of the method and 2"):
        compare_seeds("x", [1.0, 2.0, 3.0], [0.0, 1.0])
    with pytest.raises(NumericalError, match="difference 1 is nan"):
        t_interval([1.0, float("nan")])
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError, match="confidence"):
            t_interval([1.0, 2.0], confidence)
    with pytest.raises(ConfigError, match="interval is 'z'"):
        compare_seeds("x", [1.0, 2.0], [0.0, 1.0], interval="z")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="resamples"):
        bootstrap_interval([1.0, 2.0], resamples=0)


def table() -> ClaimTable:
    rows = (
        compare_seeds("hit@1 | text", [30.0, 31.0, 32.5], [20.0, 21.0, 22.0], unit="%"),
        compare_seeds("time", [1.0, 2.0], [1.5, 1.0], unit="s", more_is_better=False),
    )
    return ClaimTable(title="It helps", rows=rows, settings={"steps": "400", "data": "abc"})


def test_there_and_back_through_json_is_the_same_table() -> None:
    assert claim_from_json(json.loads(json.dumps(claim_to_json(table())))) == table()


def test_an_edited_verdict_is_refused() -> None:
    values = claim_to_json(table())
    values["rows"][1]["verdict"] = "shown"
    with pytest.raises(DataError, match="its numbers say 'not shown'"):
        claim_from_json(values)


def test_absent_and_unknown_parts_are_refused() -> None:
    values = claim_to_json(table())
    del values["rows"][0]["threshold"]
    with pytest.raises(DataError, match="threshold"):
        claim_from_json(values)
    with pytest.raises(DataError, match="title"):
        claim_from_json({"rows": []})


def test_rendered_tables_hold_numbers_verdicts_and_settings() -> None:
    text, markdown = render_claim(table()), render_claim(table(), "markdown")
    for part in ("31.17 %", "21.00 %", "(3 runs)", "at 95 %", "not shown", "steps: 400"):
        assert part in text
        assert part in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert all(line.replace("\\|", "").count("|") == 6 for line in lines)
    with pytest.raises(ConfigError, match="form is 'html'"):
        render_claim(table(), "html")  # type: ignore[arg-type]
