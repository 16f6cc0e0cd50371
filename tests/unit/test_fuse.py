"""Fusion of a ranking by vectors and one by words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costream.scoring.fuse import FEW, fold, fuse, named_by, telling

ids = st.lists(st.sampled_from([f"i{n}" for n in range(40)]), unique=True, max_size=30)


def order(*args: object, **options: object) -> list[str]:
    return [one.id for one in fuse(*args, **options)]  # type: ignore[arg-type]


# --- fuse ---


@given(by_vectors=ids, by_words=ids, weight=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_every_item_comes_once_and_scores_fall(
    by_vectors: list[str], by_words: list[str], weight: float
) -> None:
    fused = fuse(by_vectors, by_words, words_weight=weight)
    assert sorted(one.id for one in fused) == sorted({*by_vectors, *by_words})
    scores = [one.score for one in fused]
    assert scores == sorted(scores, reverse=True)


def test_the_score_is_the_sum_of_reciprocal_ranks() -> None:
    fused = {one.id: one.score for one in fuse(["a", "b"], ["b", "c"], words_weight=0.5)}
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 0.5 / 61, "c": 0.5 / 62})


@given(by_vectors=ids)
@settings(max_examples=30, deadline=None)
def test_without_a_match_by_words_the_vectors_decide(by_vectors: list[str]) -> None:
    assert order(by_vectors, []) == by_vectors
    assert order(by_vectors, by_vectors[::-1], words_weight=0.0) == by_vectors


@given(by_vectors=ids, by_words=ids, num_more=st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_a_longer_ranking_only_adds_at_the_end(
    by_vectors: list[str], by_words: list[str], num_more: int
) -> None:
    """Otherwise the second page would repeat or miss what the first one showed."""
    depth = 5
    short, words = by_vectors[: depth + num_more], by_words[:depth]
    first = order(short, words, depth=depth)
    assert order(by_vectors, words, depth=depth)[: len(first)] == first


def test_named_items_go_first_in_the_order_of_their_scores() -> None:
    assert order(["a", "b", "c", "d"], ["d"], named={"c", "d"}) == ["d", "c", "a", "b"]


def test_a_word_that_half_of_the_collection_bears_does_not_push_the_best_out() -> None:
    """The matches are those that vectors rank just behind their best, which is the worst case."""
    num_items = 1000
    by_vectors = [f"i{n}" for n in range(num_items)]
    for seed in range(20):
        matches = list(np.random.default_rng(seed).permutation(by_vectors[1 : num_items // 2]))
        weight = telling(len(matches), num_items)
        assert "i0" in order(by_vectors, matches, words_weight=weight)[:10]


# --- telling ---


@given(num_items=st.integers(2, 10**7), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_what_more_items_bear_says_less(num_items: int, share: float) -> None:
    num = max(1, int(share * num_items))
    assert 0 <= telling(num, num_items) <= telling(max(1, num // 2), num_items) <= 1


def test_what_no_item_or_every_item_bears_says_nothing() -> None:
    assert telling(0, 100) == telling(100, 100) == telling(1, 1) == 0


# --- names ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("IMG_1234", ("img", "1234")),
        ("Crème-brûlée (2)", ("creme", "brulee", "2")),
        ("STRASSE", ("strasse",)),
        ("Straße", ("strasse",)),
        ("\uff26\uff35\uff2c\uff2c width", ("full", "width")),
        ("赤い丸", ("赤い丸",)),
        ("'; DROP TABLE --", ("drop", "table")),
        ("...", ()),
        ("", ()),
    ],
)
def test_words_are_folded(text: str, words: tuple[str, ...]) -> None:
    assert fold(text) == words


@pytest.mark.parametrize("asked", ["red car", "Red_Car", "RÉD  CAR!", "red-car"])
def test_a_whole_name_is_a_name_whatever_its_case_and_marks(asked: str) -> None:
    assert named_by(asked, {"a": ["red_car"], "b": ["a red bus"]}) == {"a"}


def test_a_whole_tag_names_every_item_that_has_it() -> None:
    many = {f"i{n}": ["beach", f"photo {n}"] for n in range(50)}
    assert named_by("Beach", many) == set(many)


def test_a_word_of_a_caption_names_the_few_that_have_it() -> None:
    names = {f"i{n}": ["a dog on a beach"] for n in range(10)} | {"z": ["a zebra at the zoo"]}
    assert named_by("zebra", names) == {"z"}
    assert named_by("at the zoo", names) == {"z"}


@pytest.mark.parametrize("asked", ["dog", "a", "on a"])
def test_a_common_word_names_nothing(asked: str) -> None:
    captions = {f"i{n}": [f"a dog on a beach, number {n}"] for n in range(FEW + 1)}
    assert named_by(asked, captions) == frozenset()


def test_a_whole_name_holds_although_many_captions_have_the_word() -> None:
    captions = {f"i{n}": [f"a dog, number {n}"] for n in range(50)} | {"dog": ["dog"]}
    assert named_by("dog", captions) == {"dog"}


def test_words_must_stand_together_and_in_order() -> None:
    names = {"a": ["a car that is red"], "b": ["red car"], "c": ["a red car"]}
    assert named_by("red car", names) == {"b", "c"}


def test_no_words_name_nothing() -> None:
    assert named_by("!?", {"a": ["!?"], "b": [""]}) == frozenset()
