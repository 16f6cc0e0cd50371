"""Law: the scan answers as a brute-force scan does, bit for bit, ties in row order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError
from costream.scoring import dot
from costream.scoring.dot import ExactScan, error_bound, longest_vector, pair_scores, widen


def unit(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    values = rng.standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def brute_force(
    vectors: NDArray[np.float16], query: NDArray[np.float32], top: int
) -> tuple[list[int], list[float]]:
    """score = float32(sum_d float64(x_d) * float64(q_d)); order by (-score, row)."""
    scores = [
        np.float32((row.astype(np.float64) * query.astype(np.float64)).sum()) for row in vectors
    ]
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:top]
    return order, [float(scores[row]) for row in order]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("rows", "dim", "top"), [(1, 1, 1), (7, 3, 20), (900, 16, 10), (2500, 64, 3)]
)
def test_equals_brute_force(
    monkeypatch: pytest.MonkeyPatch, seed: int, rows: int, dim: int, top: int
) -> None:
    monkeypatch.setattr(dot, "BLOCK_ROWS", 256)
    rng = np.random.default_rng(seed)
    vectors = unit(rng, rows, dim).astype(np.float16)
    queries = unit(rng, 5, dim) * np.float32(10.0 ** rng.integers(-3, 4))
    scan = ExactScan(vectors)
    for _ in range(3):  # the second pass keeps a float32 copy, the third uses it
        found_rows, found_scores = scan.top(queries, top)
        for query, got_rows, got_scores in zip(queries, found_rows, found_scores, strict=True):
            want_rows, want_scores = brute_force(vectors, query, top)
            assert got_rows.tolist() == want_rows
            assert got_scores.tolist() == want_scores
            assert got_scores.dtype == np.float32


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.001, 0.0])
def test_only_allowed_rows_are_found_and_all_of_their_best(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(dot, "BLOCK_ROWS", 256)
    rng = np.random.default_rng(3)
    vectors = unit(rng, 3000, 16).astype(np.float16)
    vectors[::5] = vectors[0]  # ties across the border of what is allowed
    queries = unit(rng, 4, 16)
    allowed = rng.random(3000) < share
    (rows,) = np.nonzero(allowed)
    found_rows, found_scores = ExactScan(vectors).top(queries, 12, allowed)
    for query, got_rows, got_scores in zip(queries, found_rows, found_scores, strict=True):
        want_rows, want_scores = brute_force(vectors[rows], query, 12)
        assert got_rows.tolist() == rows[want_rows].tolist()
        assert got_scores.tolist() == want_scores
        assert len(got_rows) == min(12, len(rows))


def test_a_mask_of_another_form_is_refused() -> None:
    scan = ExactScan(np.eye(3, dtype=np.float16))
    for mask in (np.ones(2, bool), np.ones(3, np.int64)):
        with pytest.raises(DataError, match=r"expected bool \(3,\)"):
            scan.top(np.ones((1, 3), np.float32), 1, mask)


def test_near_ties_keep_the_order_of_their_true_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """True scores that are equal or differ by less than the fast pass's rounding."""
    monkeypatch.setattr(dot, "BLOCK_ROWS", 512)
    rng = np.random.default_rng(0)
    query = np.full(250, 250**-0.5, dtype=np.float32)
    # Permutations of the same numbers have the same true score, and float32 sums that differ by the
    # order of rounding; every third row is off by one unit in the last place of one number.
    base = (unit(rng, 1, 250)[0] + np.float32(0.1)).astype(np.float16)
    vectors = np.stack([rng.permutation(base) for _ in range(3000)])
    for row in range(0, len(vectors), 3):
        column = int(rng.integers(250))
        vectors[row, column] = np.nextafter(vectors[row, column], np.float16(rng.choice([-9, 9])))
    fast = vectors.astype(np.float32) @ query
    is_hard = False
    for top in (1, 50, 500, 2000):
        want_rows, want_scores = brute_force(vectors, query, top)
        is_hard |= np.argsort(-fast, kind="stable")[:top].tolist() != want_rows
        rows, scores = ExactScan(vectors).top(query[None], top)
        assert rows[0].tolist() == want_rows
        assert scores[0].tolist() == want_scores
    assert is_hard  # the fast pass alone would have been wrong


def test_equal_scores_come_in_row_order() -> None:
    vectors = np.tile(np.float16([0.6, 0.8]), (10_000, 1))
    rows, scores = ExactScan(vectors).top(np.float32([[0.6, 0.8]]), 25)
    assert rows[0].tolist() == list(range(25))
    assert len(set(scores[0].tolist())) == 1


def test_a_query_alone_scores_as_in_any_batch() -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng, 5000, 96).astype(np.float16)
    queries = unit(rng, 130, 96)  # more than two chunks of queries
    scan = ExactScan(vectors)
    rows, scores = scan.top(queries, 7)
    for number in (0, 1, 63, 64, 129):
        alone_rows, alone_scores = scan.top(queries[number : number + 1], 7)
        assert alone_rows[0].tolist() == rows[number].tolist()
        assert alone_scores[0].tobytes() == scores[number].tobytes()


def test_pair_scores_do_not_depend_on_their_neighbours() -> None:
    rng = np.random.default_rng(4)
    vectors = unit(rng, 3000, 300).astype(np.float16)
    query = unit(rng, 1, 300)[0]
    together = pair_scores(query, vectors)
    alone = np.concatenate([pair_scores(query, vectors[row : row + 1]) for row in range(3000)])
    assert together.tobytes() == alone.tobytes()


def test_the_bound_holds_for_the_matrix_library() -> None:
    """|float32 product - true| <= bound, for vectors all of one sign (the worst for rounding)."""
    rng = np.random.default_rng(5)
    for dim in (2, 64, 1024):
        values = np.abs(unit(rng, 4000, dim)).astype(np.float16)
        query = np.abs(unit(rng, 1, dim))[0]
        query = (query / np.linalg.norm(query.astype(np.float64))).astype(np.float32)
        true = values.astype(np.float64) @ query.astype(np.float64)
        worst = np.abs((values.astype(np.float32) @ query).astype(np.float64) - true).max()
        assert worst <= error_bound(dim, longest_vector(values))


def test_widen_is_exact_for_every_finite_float16() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    wide = widen(finite, np.empty(len(finite), np.float32))
    assert wide.tobytes() == finite.astype(np.float32).tobytes()  # -0.0 too


def test_nothing_stored_and_nothing_asked() -> None:
    empty = ExactScan(np.empty((0, 4), np.float16))
    rows, scores = empty.top(np.ones((2, 4), np.float32), 3)
    assert [len(found) for found in rows] == [len(found) for found in scores] == [0, 0]
    full = ExactScan(np.ones((2, 4), np.float16))
    assert full.top(np.empty((0, 4), np.float32), 3) == ([], [])


def test_extreme_lengths_keep_the_order() -> None:
    rng = np.random.default_rng(6)
    vectors = (unit(rng, 500, 8) * rng.choice([1e-3, 1, 6e4], (500, 1))).astype(np.float16)
    direction = unit(rng, 1, 8)
    for length in (2e-20, 1, 5e19):
        query = direction * np.float32(length)
        rows, scores = ExactScan(vectors).top(query, 20)
        assert (rows[0].tolist(), scores[0].tolist()) == brute_force(vectors, query[0], 20)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (np.float32([[np.nan, 0]]), NumericalError, "query 0 has a value that is not finite"),
        (np.float32([[1, 0], [np.inf, 0]]), NumericalError, "query 1"),
        (np.float32([[0, 0]]), NumericalError, "length 0"),
        (np.float32([[1e30, 0]]), NumericalError, "length 1e\\+30"),
        (np.float32([1, 0]), DataError, r"expected float32 \(Q, 2\)"),
        (np.array([[1, 0]]), DataError, "int64"),
        (np.float32([[1, 0, 0]]), DataError, "3 dimensions, expected 2"),
    ],
)
def test_queries_without_a_direction_are_refused(
    query: NDArray[np.float32], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ExactScan(np.ones((3, 2), np.float16)).top(query, 1)


def test_top_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="top=0"):
        ExactScan(np.ones((3, 2), np.float16)).top(np.ones((1, 2), np.float32), 0)
