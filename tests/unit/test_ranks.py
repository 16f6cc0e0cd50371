"""Laws of the one ranking function: what it returns equals counting by hand, whatever the ties."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costream.errors import ConfigError, DataError, NumericalError
from costream.evaluate import (
    DotScores,
    Truth,
    rank_of_truth,
    ranks_by_chance,
    truth_from_groups,
    truth_from_qrels,
)
from costream.evaluate.ranks import chance_of_none
from costream.evaluate.scores import _to_grid
from costream.records import Qrels


def positions(*each: list[int]) -> list[np.ndarray]:
    return [np.array(one, dtype=np.int64) for one in each]


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    """Scores with many ties (three different values) and any relevance."""
    queries, items = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=items, max_size=items)
    scores = np.array([draw(values) for _ in range(queries)], dtype=np.float32)
    some = st.sets(st.integers(0, items - 1), min_size=1)
    return scores, [sorted(draw(some)) for _ in range(queries)]


def every_order(row: np.ndarray) -> list[list[int]]:
    """All rankings (best first) that the scores of one query allow."""
    orders = itertools.permutations(range(len(row)))
    return [list(o) for o in orders if all(row[a] >= row[b] for a, b in itertools.pairwise(o))]


def first_rank(order: list[int], relevant: list[int]) -> int:
    return 1 + min(order.index(item) for item in relevant)


@settings(deadline=None, max_examples=60)
@given(small_problems(), st.integers(1, 6))
def test_expected_rule_is_the_mean_over_all_orders_of_tied_items(
    problem: tuple[np.ndarray, list[list[int]]], k: int
) -> None:
    scores, relevant = problem
    ranks = rank_of_truth(scores, Truth(relevant=positions(*relevant), num_items=scores.shape[1]))
    for query, row in enumerate(scores):
        orders = every_order(row)
        firsts = [first_rank(order, relevant[query]) for order in orders]
        assert ranks.first_within(k)[query] == pytest.approx(np.mean([f <= k for f in firsts]))
        assert ranks.first_rank()[query] == pytest.approx(np.mean(firsts))
        pairs = slice(ranks.offsets[query], ranks.offsets[query + 1])
        within = [np.mean([o.index(i) < k for o in orders]) for i in relevant[query]]
        np.testing.assert_allclose(ranks.each_within(k)[pairs], within)


@settings(deadline=None, max_examples=60)
@given(small_problems(), st.integers(1, 6))
def test_optimistic_and_pessimistic_are_the_best_and_the_worst_order(
    problem: tuple[np.ndarray, list[list[int]]], k: int
) -> None:
    scores, relevant = problem
    truth = Truth(relevant=positions(*relevant), num_items=scores.shape[1])
    best = rank_of_truth(scores, truth, tie_rule="optimistic")
    worst = rank_of_truth(scores, truth, tie_rule="pessimistic")
    for query, row in enumerate(scores):
        firsts = [first_rank(order, relevant[query]) for order in every_order(row)]
        assert best.first_rank()[query] == min(firsts)
        assert worst.first_rank()[query] == max(firsts)
        found = [sum(order.index(i) < k for i in relevant[query]) for order in every_order(row)]
        pairs = slice(best.offsets[query], best.offsets[query + 1])
        assert best.each_within(k)[pairs].sum() == pytest.approx(max(found))
        assert worst.each_within(k)[pairs].sum() == pytest.approx(min(found))


@given(st.data())
def test_chance_of_none_is_hypergeometric(data: st.DataObject) -> None:
    tied = data.draw(st.integers(1, 200))
    relevant, drawn = data.draw(st.integers(0, tied)), data.draw(st.integers(0, tied))
    exact = Fraction(comb(tied - relevant, drawn), comb(tied, drawn))
    got = chance_of_none(np.array([tied]), np.array([relevant]), np.array([drawn]))
    assert got[0] == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def test_chance_of_none_at_extremes_neither_overflows_nor_warns() -> None:
    tied = np.array([10**9, 10**9, 1, 5])
    got = chance_of_none(tied, np.array([1, 10**6, 1, 0]), np.array([5 * 10**8, 10**6, 0, 5]))
    np.testing.assert_allclose(got, [0.5, 0.0, 1.0, 1.0], atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(small_problems(), st.integers(1, 4))
def test_result_does_not_depend_on_rows_at_once(
    problem: tuple[np.ndarray, list[list[int]]], rows: int
) -> None:
    scores, relevant = problem
    truth = Truth(relevant=positions(*relevant), num_items=scores.shape[1])
    whole, parts = rank_of_truth(scores, truth), rank_of_truth(scores, truth, rows_at_once=rows)
    for name in ("offsets", "above", "tied", "tied_relevant", "num_ranked"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 7, 64])
)
def test_dot_scores_are_bit_equal_in_any_block_and_any_order(
    seed: int, rows: int, items: int, dim: int
) -> None:
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(rows, dim)).astype(np.float32)
    gallery = rng.normal(size=(items, dim)).astype(np.float32) * rng.choice([1e-6, 1, 1e6])
    scores = DotScores(queries, gallery)
    whole = scores.rows(0, rows)
    for start in range(rows):
        assert (scores.rows(start, start + 1) == whole[start]).all()
    order = rng.permutation(items)
    assert (DotScores(queries, gallery[order]).rows(0, rows) == whole[:, order]).all()
    turned = DotScores(gallery, queries).rows(0, items)
    assert (turned.T == whole).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 64, 512]), st.booleans())
def test_on_the_grid_float64_sums_are_exact(seed: int, dim: int, equal: bool) -> None:
    """Against sums of whole numbers: this is why no block size or thread count can matter."""
    rng = np.random.default_rng(seed)
    left, _ = _to_grid(rng.normal(size=(4, dim)) * rng.choice([1e-30, 1.0, 1e30]))
    right = left if equal else _to_grid(rng.uniform(-1, 1, size=(4, dim)))[0]
    assert np.abs(left).max() <= 1.3
    for row, other in zip(left, right, strict=True):
        whole = [int(x * 2**26) * int(y * 2**26) for x, y in zip(row, other, strict=True)]
        assert Fraction(float(row @ other)) == Fraction(sum(whole), 2**52)


def test_dot_scores_are_the_float64_product_to_float32_rounding() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(50, 256)), rng.normal(size=(70, 256))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    got = DotScores(queries, gallery).rows(0, 50)
    assert got.dtype == np.float32
    assert np.abs(got - queries @ gallery.T).max() < 4e-8


def test_equal_vectors_tie_exactly_and_a_zero_vector_scores_zero() -> None:
    rng = np.random.default_rng(1)
    vector = rng.normal(size=100)
    gallery = np.concatenate([np.tile(vector, (1001, 1)), np.zeros((1, 100))])
    row = DotScores(rng.normal(size=(1, 100)), gallery).rows(0, 1)[0]
    assert len(set(row[:-1].tolist())) == 1
    assert row[-1] == 0


def test_near_ties_keep_their_float32_order() -> None:
    low, high = np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))
    truth = Truth(relevant=positions([1]), num_items=2)
    assert rank_of_truth([[low, high]], truth).first_rank()[0] == 1
    assert rank_of_truth([[high, low]], truth).first_rank()[0] == 2


def test_differences_below_float32_are_ties() -> None:
    truth = Truth(relevant=positions([0]), num_items=2)
    scores = np.array([[0.3, 0.3 + 1e-12]], dtype=np.float64)
    assert rank_of_truth(scores, truth).first_rank()[0] == 1.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_raises_and_names_query_and_item(value: float) -> None:
    scores = np.zeros((3, 4))
    scores[1, 2] = value
    truth = Truth(relevant=positions([0], [1], [2]), num_items=4)
    with pytest.raises(NumericalError, match=r"query 'q1' and item 'c'.*1 of 4"):
        rank_of_truth(scores, truth, query_ids=["q0", "q1", "q2"], item_ids=list("abcd"))
    with pytest.raises(NumericalError, match="query number 1 and item number 2"):
        rank_of_truth(scores, truth, rows_at_once=1)


def test_a_vector_that_is_not_finite_raises_and_names_its_row() -> None:
    wrong = np.ones((3, 2))
    wrong[2, 0] = np.nan
    with pytest.raises(NumericalError, match="query 2"):
        DotScores(wrong, np.ones((1, 2)))


def test_scores_beyond_float32_raise_instead_of_tying_at_infinity() -> None:
    truth = Truth(relevant=positions([0]), num_items=2)
    with pytest.raises(NumericalError, match="inf"):
        rank_of_truth(DotScores([[1e30]], [[1e30], [1.0]]), truth)


def test_excluded_items_are_not_ranked_and_not_counted() -> None:
    truth = Truth(relevant=positions([2]), num_items=3, excluded=positions([0]))
    ranks = rank_of_truth([[0.9, 0.5, 0.1]], truth)
    assert ranks.first_rank()[0] == 2
    assert ranks.num_ranked.tolist() == [2]
    assert ranks_by_chance(truth).first_rank()[0] == 1.5


def test_ids_equal_on_both_sides_change_nothing() -> None:
    """Integer ids 0..N on both sides: an item with the id of the query is ranked like any other."""
    ids = [str(number) for number in range(4)]
    same = truth_from_qrels(Qrels(grades={name: {name: 1} for name in ids}), ids, ids)
    other = truth_from_qrels(
        Qrels(grades={"q" + n: {n: 1} for n in ids}), ["q" + n for n in ids], ids
    )
    scores = np.eye(4)
    np.testing.assert_array_equal(
        rank_of_truth(scores, same).first_rank(), rank_of_truth(scores, other).first_rank()
    )


def test_qrels_grades_and_exclusions() -> None:
    qrels = Qrels(grades={"q": {"a": 0.0, "b": 2.0}}, exclude={"q": frozenset({"c"})})
    truth = truth_from_qrels(qrels, ["q"], ["c", "b", "a"])
    assert truth.relevant[0].tolist() == [1]
    assert truth.excluded is not None
    assert truth.excluded[0].tolist() == [0]


def test_truth_by_groups_finds_all_members() -> None:
    truth = truth_from_groups(np.array([7, 3]), np.array([3, 7, 7]))
    assert [each.tolist() for each in truth.relevant] == [[1, 2], [0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Truth(relevant=positions([]), num_items=1), "no relevant item"),
        (lambda: Truth(relevant=positions([1]), num_items=1), "outside the gallery"),
        (lambda: Truth(relevant=positions([-1]), num_items=1), "outside the gallery"),
        (lambda: Truth(relevant=positions([0, 0]), num_items=1), "twice"),
        (
            lambda: Truth(relevant=positions([0]), num_items=1, excluded=positions([0])),
            "both relevant and excluded",
        ),
        (lambda: Truth(relevant=positions([0]), num_items=1, excluded=[]), "exclusions for 0"),
        (lambda: truth_from_groups(["a"], ["b"]), "no item of the gallery has"),
        (lambda: truth_from_qrels(Qrels(grades={}), ["q"], ["a"]), "not in the truth"),
        (
            lambda: truth_from_qrels(Qrels(grades={"q": {"1": 1}}), ["q"], ["img_1"]),
            "names item '1'.*like 'img_1'",
        ),
        (lambda: truth_from_qrels(Qrels(grades={"q": {"a": 1}}), ["q"], ["a", "a"]), "different"),
        (
            lambda: rank_of_truth(np.zeros((1, 2)), Truth(relevant=positions([0]), num_items=3)),
            "2 items, the truth of 1 and 3",
        ),
        (
            lambda: rank_of_truth(np.zeros(2), Truth(relevant=positions([0]), num_items=2)),
            "expected .queries, items.",
        ),
        (lambda: DotScores(np.ones((1, 2)), np.ones((1, 3))), "2 dimensions and items 3"),
        (lambda: DotScores(np.ones(2), np.ones((1, 2))), "shape"),
        (lambda: DotScores(np.ones((0, 2)), np.ones((1, 2))), "shape"),
    ],
)
def test_data_that_does_not_fit_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(DataError, match=message):
        make()


def test_options_that_do_not_exist_are_refused() -> None:
    truth = Truth(relevant=positions([0]), num_items=1)
    with pytest.raises(ConfigError, match="tie_rule is 'average'"):
        rank_of_truth([[1.0]], truth, tie_rule="average")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tie_rule"):
        ranks_by_chance(truth, tie_rule="average")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rows_at_once"):
        rank_of_truth([[1.0]], truth, rows_at_once=0)


def test_the_score_matrix_is_never_whole() -> None:
    """Memory: no block holds more than 4 million scores, or one row where a row is longer."""
    asked: list[int] = []

    class Counting:
        num_queries, num_items = 100, 2**17

        def rows(self, start: int, stop: int) -> np.ndarray:
            asked.append(stop - start)
            return np.zeros((stop - start, self.num_items), dtype=np.float32)

    truth = Truth(relevant=positions(*[[q] for q in range(100)]), num_items=2**17)
    rank_of_truth(Counting(), truth)
    assert max(asked) * 2**17 <= 2**22
    assert sum(asked) == 100
