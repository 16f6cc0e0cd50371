"""What a score means: laws of the judge, and its worth on pictures that are there or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costream.records import Space
from costream.search.relevance import (
    ANY_MODEL,
    FEWEST,
    MEASURED,
    MOST,
    Background,
    best_of,
    judge_of,
    measured_judge,
    relative_judge,
)

KNOWN = next(iter(MEASURED))


def space(weights: str) -> Space:
    return Space(encoder="x", weights_hash=weights, preprocessing_hash="", dim=16)


def sample(count: int, *, spread: float = 1.0, mean: float = 0.0) -> np.ndarray:
    vectors = np.zeros((count, 16), dtype=np.float32)
    vectors[:, 0] = np.random.default_rng(0).normal(mean, spread, count)
    return vectors


ASKED = np.eye(16, dtype=np.float32)[0]


@pytest.mark.parametrize("count", [20, 100, 1000, 100_000])
def test_the_best_of_many_draws_is_the_median_of_their_maximum(count: int) -> None:
    rng = np.random.default_rng(count)
    maxima = [rng.standard_normal(count).max() for _ in range(400)]
    # The standard error of the median of 400 maxima is below 0.03.
    assert best_of(count) == pytest.approx(float(np.median(maxima)), abs=0.12)


@given(score=st.floats(-1, 1), more=st.floats(1e-3, 1), known=st.booleans(), text=st.booleans())
@settings(max_examples=100, deadline=None)
def test_relevance_rises_with_the_score_and_is_a_share(
    score: float, more: float, known: bool, text: bool
) -> None:
    judge = judge_of(
        ASKED, sample(100, spread=0.1), 100, space=space(KNOWN if known else ""), is_text=text
    )
    assert judge is not None
    low, high = judge.relevance(score), judge.relevance(score + more)
    assert 0 <= low <= high <= 1


@given(shift=st.floats(-0.5, 0.5), scale=st.floats(0.1, 10), count=st.integers(20, 10**6))
@settings(max_examples=50, deadline=None)
def test_for_an_unknown_model_neither_zero_nor_unit_of_the_scores_matters(
    shift: float, scale: float, count: int
) -> None:
    plain = relative_judge(Background(mean=0.1, spread=0.05, num_items=count), ANY_MODEL)
    moved = relative_judge(
        Background(mean=0.1 * scale + shift, spread=0.05 * scale, num_items=count), ANY_MODEL
    )
    assert moved.relevance(0.3 * scale + shift) == pytest.approx(plain.relevance(0.3), abs=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_in_a_larger_collection_the_same_score_is_less_surprising(known: bool) -> None:
    def relevance(count: int) -> float:
        background = Background(mean=0.0, spread=0.17, num_items=count)
        if known:
            return measured_judge(background, MEASURED[KNOWN]).relevance(0.6)
        return relative_judge(background, ANY_MODEL).relevance(0.6)

    falling = [relevance(count) for count in (20, 60, MOST)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > falling[-1]
    if known:
        assert relevance(10**6) == relevance(MOST)


def test_too_few_or_equal_vectors_say_nothing() -> None:
    for vectors in (sample(FEWEST - 1), np.ones((50, 16), dtype=np.float32)):
        assert judge_of(ASKED, vectors, 50, space=space(KNOWN), is_text=True) is None
    assert judge_of(ASKED, sample(FEWEST), 0, space=space(KNOWN), is_text=True) is None


def test_pictures_and_unknown_models_are_judged_by_chance_alone() -> None:
    known = judge_of(ASKED, sample(50), 50, space=space(KNOWN), is_text=True)
    picture = judge_of(ASKED, sample(50), 50, space=space(KNOWN), is_text=False)
    unknown = judge_of(ASKED, sample(50), 50, space=space("?"), is_text=True)
    assert picture == unknown
    assert known != unknown


def test_extreme_scores_do_not_overflow() -> None:
    judge = relative_judge(Background(mean=0.0, spread=1e-9, num_items=100), ANY_MODEL)
    assert judge.relevance(1.0) == 1.0
    assert 0 <= judge.relevance(-1.0) < 1e-200
    assert math.isfinite(judge.relevance(-1.0))


def test_every_measured_model_has_sound_constants() -> None:
    for constants in MEASURED.values():
        assert constants.score > 0
        assert constants.best < 0
        assert 0 < constants.threshold < 0.5
    assert 0 < ANY_MODEL.threshold < 0.5
