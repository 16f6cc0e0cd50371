"""Laws of the metrics: hand-computed values, chance, and what sets hit@k and recall@k apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costream.errors import ConfigError, DataError
from costream.evaluate import (
    Ranks,
    Truth,
    hit_at_k,
    mean_reciprocal_rank,
    median_rank,
    rank_of_truth,
    ranks_by_chance,
    recall_at_k,
)
from costream.evaluate.metrics import (
    define_hit_at_k,
    define_mean_reciprocal_rank,
    define_median_rank,
    define_recall_at_k,
)


def ranks_at(*places: list[int], num_items: int = 100) -> Ranks:
    """Ranks of queries whose relevant items stand at these places (from 1), without ties."""
    scores = -np.arange(1, num_items + 1, dtype=np.float64)
    relevant = [np.array(each, dtype=np.int64) - 1 for each in places]
    truth = Truth(relevant=relevant, num_items=num_items)
    return rank_of_truth(np.tile(scores, (len(places), 1)), truth)


def test_five_captions_a_picture_hit_and_recall_are_different_numbers() -> None:
    ranks = ranks_at([1, 2, 8, 30, 99], [6, 7, 8, 9, 10])
    assert hit_at_k(ranks, 1) == 50.0
    assert hit_at_k(ranks, 5) == 50.0
    assert hit_at_k(ranks, 10) == 100.0
    assert recall_at_k(ranks, 1) == pytest.approx(10.0)  # 1/5 and 0/5
    assert recall_at_k(ranks, 5) == pytest.approx(20.0)  # 2/5 and 0/5
    assert recall_at_k(ranks, 10) == pytest.approx(80.0)  # 3/5 and 5/5


def test_median_and_reciprocal_rank_by_hand() -> None:
    ranks = ranks_at([3], [1], [4, 50], [10])
    assert median_rank(ranks) == 3.5
    assert median_rank(ranks_at([3], [1], [4])) == 3.0
    assert mean_reciprocal_rank(ranks) == pytest.approx(100 * np.mean([1 / 3, 1, 1 / 4, 1 / 10]))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_without_ties_the_median_is_the_usual_one(places: list[int]) -> None:
    assert median_rank(ranks_at(*[[place] for place in places])) == np.median(places)


@pytest.mark.parametrize(("num_items", "num_relevant"), [(1, 1), (8, 1), (1000, 1), (5000, 5)])
def test_a_constant_scorer_scores_chance(num_items: int, num_relevant: int) -> None:
    """Chance: the mean over random scorers, simulated here without any of our code."""
    truth = Truth(relevant=[np.arange(num_relevant)], num_items=num_items)
    ranks = ranks_by_chance(truth)
    rng = np.random.default_rng(7)
    places = np.stack([rng.permutation(num_items)[:num_relevant] + 1 for _ in range(4000)])
    firsts = places.min(axis=1)
    close = {"abs": 100 * 4 * 0.5 / np.sqrt(4000)}
    for k in (1, 5, 10, 100):
        assert hit_at_k(ranks, k) == pytest.approx(100 * np.mean(firsts <= k), **close)
        assert recall_at_k(ranks, k) == pytest.approx(100 * min(k, num_items) / num_items)
    assert mean_reciprocal_rank(ranks) == pytest.approx(100 * np.mean(1 / firsts), **close)
    assert median_rank(ranks) == pytest.approx(np.median(firsts), rel=0.08, abs=0.5)


def test_chance_has_closed_forms() -> None:
    ranks = ranks_by_chance(Truth(relevant=[np.array([3])], num_items=1000))
    assert hit_at_k(ranks, 10) == pytest.approx(1.0)
    assert median_rank(ranks) == 500.5
    harmonic = sum(1 / place for place in range(1, 1001))
    assert mean_reciprocal_rank(ranks) == pytest.approx(100 * harmonic / 1000)


def test_tie_rules_of_a_constant_scorer() -> None:
    truth = Truth(relevant=[np.array([0, 1])], num_items=10)
    best = ranks_by_chance(truth, tie_rule="optimistic")
    worst = ranks_by_chance(truth, tie_rule="pessimistic")
    assert (hit_at_k(best, 1), hit_at_k(worst, 8), hit_at_k(worst, 9)) == (100.0, 0.0, 100.0)
    assert (recall_at_k(best, 2), recall_at_k(worst, 9)) == (100.0, 50.0)
    assert (median_rank(best), median_rank(worst)) == (1.0, 9.0)
    assert mean_reciprocal_rank(worst) == pytest.approx(100 / 9)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12))
def test_bounds_and_monotony(seed: int, queries: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=(queries, items))
    relevant = [rng.permutation(items)[: rng.integers(1, items + 1)] for _ in range(queries)]
    truth = Truth(relevant=relevant, num_items=items)
    low, middle, high = (
        rank_of_truth(scores, truth, tie_rule=rule)  # type: ignore[arg-type]
        for rule in ("pessimistic", "expected", "optimistic")
    )
    near = 1e-9
    for metric in (hit_at_k, recall_at_k):
        values = [metric(middle, k) for k in range(1, items + 1)]
        assert all(a <= b + near for a, b in pairwise(values))
        assert values[-1] == pytest.approx(100.0)
        for k in range(1, items + 1):
            assert metric(low, k) - near <= metric(middle, k) <= metric(high, k) + near
    assert all(recall_at_k(middle, k) <= hit_at_k(middle, k) + near for k in range(1, items + 1))
    assert median_rank(high) <= median_rank(middle) <= median_rank(low)
    assert mean_reciprocal_rank(low) - near <= mean_reciprocal_rank(middle)
    assert hit_at_k(middle, 1) <= mean_reciprocal_rank(middle) + near
    assert hit_at_k(middle, items + 5) == pytest.approx(100.0)


def test_with_one_relevant_item_hit_and_recall_agree() -> None:
    ranks = ranks_at([3], [11], [5])
    for k in (1, 3, 5, 11):
        assert hit_at_k(ranks, k) == pytest.approx(recall_at_k(ranks, k))


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "5", None])
def test_a_cutoff_that_is_no_cutoff_is_refused(k: object) -> None:
    ranks = ranks_at([1])
    for call in (
        lambda: hit_at_k(ranks, k),  # type: ignore[arg-type]
        lambda: recall_at_k(ranks, k),  # type: ignore[arg-type]
        lambda: define_hit_at_k(k),  # type: ignore[arg-type]
        lambda: define_recall_at_k(k),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match="at least 1"):
            call()


def test_no_query_is_no_zero() -> None:
    none = rank_of_truth(np.zeros((0, 3)), Truth(relevant=[], num_items=3))
    for call in (
        lambda: hit_at_k(none, 1),
        lambda: recall_at_k(none, 1),
        lambda: median_rank(none),
        lambda: mean_reciprocal_rank(none),
    ):
        with pytest.raises(DataError, match="0 queries"):
            call()


def test_definitions_name_the_competing_ones_and_the_tie_rule() -> None:
    assert "call this recall@k" in define_hit_at_k(5)
    assert "hit@k here" in define_recall_at_k(5)
    assert "MRR@10" in define_mean_reciprocal_rank()
    assert "all relevant items" in define_median_rank()
    for define in (define_median_rank, define_mean_reciprocal_rank):
        assert len({define(rule) for rule in ("expected", "optimistic", "pessimistic")}) == 3
