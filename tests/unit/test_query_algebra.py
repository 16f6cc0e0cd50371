"""Terms of a question: what may be asked, and that they add up like vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costream.errors import ConfigError, NumericalError
from costream.search import Like, Picture, Query, Words
from costream.search.algebra import combine

DIM = 32
weights = st.floats(0.1, 10).flatmap(lambda w: st.sampled_from([w, -w]))


def units(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- combination ---


@given(seed=st.integers(0, 2**32 - 1), given_weights=st.lists(weights, min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_law_is_the_sum_of_weight_times_unit_vector(
    seed: int, given_weights: list[float]
) -> None:
    vectors = units(len(given_weights), seed)
    total = (vectors.astype(np.float64) * np.array(given_weights)[:, None]).sum(axis=0)
    expected = total / np.linalg.norm(total)
    got = combine(vectors, given_weights)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    given_weights=st.lists(weights, min_size=2, max_size=6),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_the_order_of_terms_does_not_matter_to_the_last_bit(
    seed: int, given_weights: list[float], order: Any
) -> None:
    vectors = units(len(given_weights), seed)
    rows = list(range(len(given_weights)))
    order.shuffle(rows)
    shuffled = combine(vectors[rows], [given_weights[row] for row in rows])
    assert np.array_equal(combine(vectors, given_weights), shuffled)


def test_one_term_is_its_own_vector_bit_for_bit() -> None:
    vectors = units(20, 0)
    for vector in vectors:
        assert np.array_equal(combine(vector[None], [1.0]), vector)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_what_is_added_and_subtracted_again_leaves_no_trace(weight: float) -> None:
    x, y = units(2, 1)
    assert np.array_equal(combine(np.stack([x, y, y]), [1.0, weight, -weight]), x)


def test_a_common_factor_of_all_weights_does_not_matter() -> None:
    vectors = units(3, 2)
    once, thrice = combine(vectors, [1, -2, 0.5]), combine(vectors, [3, -6, 1.5])
    np.testing.assert_allclose(once, thrice, atol=1e-7)


def test_the_length_of_a_terms_vector_does_not_matter() -> None:
    vectors = units(2, 3)
    stretched = vectors * np.float32([[7], [0.01]])
    np.testing.assert_allclose(combine(stretched, [1, 1]), combine(vectors, [1, 1]), atol=1e-6)


def test_a_subtracted_term_alone_is_the_opposite() -> None:
    (x,) = units(1, 4)
    assert np.array_equal(combine(x[None], [-1.0]), -x)


@pytest.mark.parametrize("terms", [[1.0, -1.0], [0.3, 0.7, -1.0]])
def test_terms_that_cancel_are_refused(terms: list[float]) -> None:
    (x,) = units(1, 5)
    # Not the same to the last bit, as when a batch of another size made it.
    vectors = np.repeat(x[None], len(terms), axis=0) * np.float32(1 + 1e-7)
    with pytest.raises(ConfigError, match="cancel each other"):
        combine(vectors, terms)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_vector_without_direction_is_refused(value: float) -> None:
    with pytest.raises(NumericalError, match="expected a direction"):
        combine(np.full((1, DIM), value, dtype=np.float32), [1.0])


# --- terms and queries ---


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("make", [Words, Picture, Like])
def test_a_weight_must_be_a_number_other_than_zero(make: Any, weight: float) -> None:
    with pytest.raises(ConfigError, match="weight"):
        make("x", weight=weight)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_words_must_not_be_empty(text: str) -> None:
    with pytest.raises(ConfigError, match="empty text"):
        Words(text)


def test_words_are_text_and_nothing_else() -> None:
    with pytest.raises(ConfigError, match="expected a str"):
        Words(b"red")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "region",
    [(0, 0, 0, 1), (0.5, 0, 0.4, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.1), (0, 0, math.nan, 1), (0, 1)],
)
def test_a_region_must_be_a_part_of_the_picture(region: Any) -> None:
    with pytest.raises(ConfigError, match="region"):
        Picture("a.jpg", region=region)


@pytest.mark.parametrize(
    "wrong",
    [
        {"terms": ()},
        {"terms": "a dog"},
        {"terms": ("a dog",)},
        {"top": 0},
        {"offset": -1},
        {"min_relevance": 1.5},
        {"min_relevance": -0.1},
        {"min_relevance": math.nan},
    ],
)
def test_a_query_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Query(**({"terms": (Words("a dog"),)} | wrong))
