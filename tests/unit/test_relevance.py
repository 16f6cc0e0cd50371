"""What a score means: laws of the judge, and its worth on pictures that are there or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import costream
from costream.records import Space
from costream.search.background import (
    FEWEST,
    WEIGHT,
    Background,
    Prior,
    background_of,
    best_of,
    prior_from,
    read_prior,
    without,
)
from costream.search.query import Like, Picture, Query, Term, Words
from costream.search.relevance import (
    ANY_MODEL,
    MEASURED,
    MOST,
    Judge,
    Unknown,
    judge_of,
    kind_of,
    measured_judge,
    relative_judge,
)

KNOWN = next(iter(MEASURED))
DIM = 256


def space(weights: str) -> Space:
    return Space(encoder="x", weights_hash=weights, preprocessing_hash="", dim=DIM)


def sample(count: int, *, spread: float = 1.0, mean: float = 0.0) -> np.ndarray:
    vectors = np.zeros((count, DIM), dtype=np.float32)
    vectors[:, 0] = np.random.default_rng(0).normal(mean, spread, count)
    return vectors


def judge(vectors: np.ndarray, count: int, weights: str, kind: Any = "words") -> Judge:
    found = judge_of(ASKED, vectors, count, space=space(weights), kind=kind)
    assert isinstance(found, Judge)
    return found


ASKED = np.eye(DIM, dtype=np.float32)[0]
KINDS = ("words", "words less", "pictures", "pictures less")


@pytest.mark.parametrize("count", [1, 2, 20, 100, 1000, 100_000])
def test_the_best_of_many_draws_is_the_median_of_their_maximum(count: int) -> None:
    rng = np.random.default_rng(count)
    maxima = [rng.standard_normal(count).max() for _ in range(400)]
    # The standard error of the median of 400 maxima is below 0.07, of one draw, to 0.03.
    assert best_of(count) == pytest.approx(float(np.median(maxima)), abs=0.2 if count < 20 else 0.1)


@given(
    score=st.floats(-1, 1),
    more=st.floats(1e-3, 1),
    known=st.booleans(),
    kind=st.sampled_from(KINDS),
    count=st.integers(FEWEST, 200),
)
@settings(max_examples=100, deadline=None)
def test_relevance_rises_with_the_score_and_is_a_share(
    score: float, more: float, known: bool, kind: str, count: int
) -> None:
    found = judge(sample(count, spread=0.1), count, KNOWN if known else "", kind)
    low, high = found.relevance(score), found.relevance(score + more)
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
            return measured_judge(background, MEASURED[KNOWN]["words"]).relevance(0.6)
        return relative_judge(background, ANY_MODEL).relevance(0.6)

    falling = [relevance(count) for count in (1, 2, 20, 60, MOST)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > falling[-1]
    if known:
        assert relevance(10**6) == relevance(MOST)


def test_of_an_unmeasured_model_too_few_or_equal_vectors_say_nothing() -> None:
    for vectors, why in ((sample(FEWEST - 1), "20 items"), (np.ones((50, DIM)), "same score")):
        found = judge_of(ASKED, np.float32(vectors), 50, space=space("?"), kind="words")
        assert isinstance(found, Unknown)
        assert why in found.why


@pytest.mark.parametrize("weights", [KNOWN, "?"])
def test_of_no_items_nothing_is_said(weights: str) -> None:
    found = judge_of(ASKED, sample(FEWEST), 0, space=space(weights), kind="words")
    assert isinstance(found, Unknown)


def test_of_vectors_cut_short_the_constants_of_the_whole_ones_are_not_used() -> None:
    short = Space(encoder="x", weights_hash=KNOWN, preprocessing_hash="", dim=64)
    found = judge_of(ASKED[:64], sample(50)[:, :64], 50, space=short, kind="words")
    assert found == judge(sample(50), 50, "?")


def test_unknown_models_are_judged_by_chance_alone_whatever_is_asked() -> None:
    assert len({judge(sample(50), 50, "?", kind) for kind in KINDS}) == 1
    assert len({judge(sample(50), 50, KNOWN, kind) for kind in KINDS}) == len(KINDS)


# --- the background ---


def drawn(count: int, seed: int, dim: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(0.2, 1, (count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(seed=st.integers(0, 1000), terms=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_prior_gives_the_mean_and_spread_of_any_composed_question(
    seed: int, terms: int
) -> None:
    pictures, weights = drawn(300, 1), np.random.default_rng(seed).uniform(-1, 1, terms)
    asked = np.float32(weights @ drawn(terms, seed))
    asked /= np.linalg.norm(asked)
    found = background_of(asked, pictures[:0], 5, prior_from(pictures))
    scores = (pictures @ asked).astype(np.float64)
    assert found is not None
    assert found.mean == pytest.approx(scores.mean(), abs=1e-5)
    assert found.spread == pytest.approx(scores.std(), abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3, 30, 1000])
def test_a_prior_counts_as_so_many_items_of_the_collection(count: int) -> None:
    """The moments are those of a collection to which the prior's pictures were added."""
    before, own, asked = drawn(WEIGHT, 1), drawn(count, 2), drawn(1, 3)[0]
    found = background_of(asked, own, 5, prior_from(before))
    together = background_of(asked, np.concatenate([before, own]), 5)
    assert found is not None
    assert together is not None
    assert found.mean == pytest.approx(together.mean, abs=1e-6)
    assert found.spread == pytest.approx(together.spread, abs=1e-6)


def test_a_question_that_scores_all_alike_has_no_background() -> None:
    same = np.tile(ASKED, (50, 1))
    assert background_of(ASKED, same, 50) is None
    still = Prior(mean_D=ASKED, covariance_DD=np.zeros((DIM, DIM), dtype=np.float32))
    assert background_of(ASKED, same, 50, still) is None


def test_an_example_is_no_chance_find_of_itself() -> None:
    # As stored: rounded to half precision.
    vectors = drawn(30, 4, DIM).astype(np.float16).astype(np.float32)
    kept = without(vectors, drawn(30, 4, DIM)[[3, 7]])
    assert np.array_equal(kept, np.delete(vectors, [3, 7], axis=0))
    assert len(without(vectors[:0], vectors[:1])) == 0


# --- kinds of questions ---


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ([Words("a")], "words"),
        ([Words("a"), Words("b", weight=0.2)], "words"),
        ([Words("a"), Words("b", weight=-0.2)], "words less"),
        ([Words("a"), Picture("p.jpg", weight=-1.0)], "words less"),
        ([Like("1")], "pictures"),
        ([Picture("p.jpg", region=(0, 0, 0.5, 1)), Words("a")], "pictures"),
        ([Picture("p.jpg"), Words("a", weight=-1.0)], "pictures less"),
    ],
)
def test_the_kind_is_told_by_what_is_added(terms: Sequence[Term], kind: str) -> None:
    assert kind_of(Query(terms=tuple(terms))) == kind
    assert kind_of(Query(terms=tuple(reversed(terms)))) == kind


@pytest.mark.parametrize(
    "query",
    [
        Query(terms=(Words("a", weight=-1.0), Picture("p.jpg", weight=-2.0))),
        Query(terms=(Words("a"), Picture("p.jpg")), product=True),
    ],
)
def test_what_was_never_measured_has_no_kind(query: Query) -> None:
    found = kind_of(query)
    assert isinstance(found, Unknown)
    assert found.why


# --- constants ---


def test_the_default_model_has_a_prior_and_constants_for_every_kind() -> None:
    model = costream.load("cots-mini")
    prior = read_prior(model.space.weights_hash)
    assert prior is not None
    assert prior.mean_D.shape == (model.space.dim,)
    assert prior.covariance_DD.shape == (model.space.dim, model.space.dim)
    assert np.array_equal(prior.covariance_DD, prior.covariance_DD.T)
    assert np.linalg.eigvalsh(prior.covariance_DD).min() > -1e-4
    assert set(MEASURED[model.space.weights_hash]) == set(KINDS)


@pytest.mark.parametrize("weights", ["", "?", "../x", "0" * 16])
def test_other_models_have_no_prior(weights: str) -> None:
    assert read_prior(weights) is None


def test_extreme_scores_do_not_overflow() -> None:
    found = relative_judge(Background(mean=0.0, spread=1e-9, num_items=100), ANY_MODEL)
    assert found.relevance(1.0) == 1.0
    assert 0 <= found.relevance(-1.0) < 1e-200
    assert math.isfinite(found.relevance(-1.0))


def test_every_measured_model_has_sound_constants() -> None:
    for model in MEASURED.values():
        for constants in model.values():
            assert constants.score > 0
            assert constants.best < 0
            assert 0 < constants.threshold < 0.5
    assert 0 < ANY_MODEL.threshold < 0.5
