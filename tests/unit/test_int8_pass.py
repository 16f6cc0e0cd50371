"""Law: the pass over integers proposes every row that may be among the best; its bound holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from costream.scoring.dot import ExactScan, pair_scores, unit_queries
from costream.scoring.kernels import exact, int8
from costream.scoring.kernels.exact import ExactKernel
from costream.scoring.kernels.int8 import GROUP_ROWS, Int8Pass, _Queries, pays
from costream.scoring.kernels.rows import Rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "BLOCK_ROWS", 600)
    monkeypatch.setattr(int8, "LAST_ROWS", 100)
    monkeypatch.setattr(int8, "CODED_ROWS", 64)
    monkeypatch.setattr(int8, "BATCH_QUERIES", 16)


def vectors_of(seed: int, rows: int, dim: int) -> NDArray[np.float16]:
    values = np.random.default_rng(seed).standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def true_best(vectors: NDArray[np.float16], query: NDArray[np.float32], top: int) -> list[int]:
    scores = pair_scores(query, vectors)
    return np.lexsort((np.arange(len(scores)), -scores))[:top].tolist()


def proposals(
    vectors: NDArray[np.float16], queries: NDArray[np.float32], top: int
) -> list[NDArray[np.int64]]:
    found = Int8Pass.of(Rows(vectors_ND=vectors)).candidates(
        unit_queries(queries, vectors.shape[1], top), top
    )
    assert found is not None
    return found


@pytest.mark.parametrize("top", [1, 10, 200])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_best_row_is_proposed_and_few_others(top: int, sign: int) -> None:
    """With all scores negative, too, where the rounding goes the other way."""
    vectors = vectors_of(0, 5000, 48)
    vectors[:, 0] = 3
    queries = vectors_of(1, 40, 48).astype(np.float32)
    queries[:, 0] = sign
    for query, rows in zip(queries, proposals(vectors, queries, top), strict=True):
        assert set(true_best(vectors, query, top)) <= set(rows.tolist())
        assert len(rows) < 2 * top + 10
        assert np.all(np.diff(rows) > 0)


def test_rows_that_integers_cannot_tell_apart_are_all_proposed() -> None:
    """True scores that differ by less than the rounding of what is multiplied."""
    rng = np.random.default_rng(2)
    vectors = np.tile(vectors_of(3, 1, 64), (4000, 1))
    vectors[np.arange(4000), rng.integers(64, size=4000)] *= np.float16(1.003)
    query = vectors_of(4, 1, 64).astype(np.float32)
    want = true_best(vectors, query[0], 20)
    low = Int8Pass.of(Rows(vectors_ND=vectors))
    by_codes = torch.argsort(fast_scores(low, query)[0], descending=True, stable=True)[:20]
    assert set(by_codes.tolist()) != set(want)  # the fast scores alone would have been wrong
    found = low.candidates(unit_queries(query, 64, 20), 20)
    assert found is None or set(want) <= set(found[0].tolist())


def fast_scores(low: Int8Pass, queries: NDArray[np.float32]) -> torch.Tensor:
    """What the codes say, by row, float64 (Q, N)."""
    coded = _Queries.of(queries)
    scores = torch.empty((len(queries), len(low.rows)), dtype=torch.float64)
    for block in low._blocks:
        real = block.rows_B >= 0
        products = coded.codes_QD.double() @ block.codes_BD.double().t()
        scales = block.scales_G.double().repeat_interleave(GROUP_ROWS)
        scores[:, block.rows_B[real]] = (products * coded.scales_Q1.double() * scales)[:, real]
    return scores


@pytest.mark.parametrize("dim", [1, 2, 3, 64, 700])
@pytest.mark.parametrize("positive", [True, False])
def test_the_bound_holds(dim: int, positive: bool) -> None:
    """|score of codes - true| <= bound, also where all products have one sign."""
    vectors, queries = vectors_of(5, 3000, dim), vectors_of(6, 30, dim)
    if positive:
        vectors, queries = np.abs(vectors), np.abs(queries)
    unit = unit_queries(queries.astype(np.float32), dim, 1)
    low = Int8Pass.of(Rows(vectors_ND=vectors))
    true = torch.from_numpy(unit).double() @ torch.from_numpy(vectors.astype(np.float64)).t()
    room = torch.empty_like(true)
    for block in low._blocks:
        real = block.rows_B >= 0
        errors = _Queries.of(unit).errors(block).double().repeat_interleave(GROUP_ROWS, dim=1)
        room[:, block.rows_B[real]] = errors[:, real]
    assert bool(((fast_scores(low, unit) - true).abs() <= room).all())
    # A bound that always holds because it is huge would not show anything.
    assert float(room.max()) < 0.03


def test_every_row_has_one_code_and_rows_of_a_group_are_of_one_size() -> None:
    """Whatever their lengths: a short row loses nothing to a long one far away."""
    rng = np.random.default_rng(13)
    vectors = (vectors_of(14, 5000, 32) * np.exp(rng.normal(0, 2, (5000, 1)))).astype(np.float16)
    low = Int8Pass.of(Rows(vectors_ND=vectors))
    rows = torch.cat([block.rows_B for block in low._blocks])
    assert sorted(rows[rows >= 0].tolist()) == list(range(5000))
    for block in low._blocks:
        assert bool((block.lengths_G[1:] >= block.lengths_G[:-1] / 6).all())


def test_a_coordinate_that_is_large_in_all_rows_costs_little() -> None:
    """As models have them: without turning, its scale would leave few steps to the others."""
    vectors = vectors_of(16, 4000, 256)
    vectors[:, 7] = np.float16(0.8)
    unit = unit_queries(vectors[:20].astype(np.float32), 256, 5)
    low = Int8Pass.of(Rows(vectors_ND=vectors))
    errors = torch.cat([_Queries.of(unit).errors(block) for block in low._blocks], dim=1)
    assert float(errors.max()) < 0.035


def test_what_was_added_is_found_and_what_was_known_is_not_coded_again() -> None:
    vectors = vectors_of(15, 1500, 32)
    first = Int8Pass.of(Rows(vectors_ND=vectors[:1350]))
    grown = Int8Pass.of(Rows(vectors_ND=vectors), first)
    whole = Int8Pass.of(Rows(vectors_ND=vectors))
    # Two whole blocks and a whole one of the last; the one of 50 rows has 100 now.
    assert grown._blocks[:3] == first._blocks[:3]
    assert len(grown._blocks) == 5
    unit = unit_queries(vectors[1000:].astype(np.float32), 32, 3)
    got, want = grown.candidates(unit, 3), whole.candidates(unit, 3)
    assert got is not None
    assert want is not None
    assert [rows.tolist() for rows in got] == [rows.tolist() for rows in want]
    assert all(1000 + place in rows for place, rows in enumerate(got))


def test_rows_that_may_not_be_found_raise_no_floor() -> None:
    """The only findable row is the worst of all, in a block of much better ones."""
    vectors = np.tile(np.array([[1, 0.1]], np.float16), (700, 1))
    vectors[650] = [-1, 0.1]
    findable = np.zeros(700, dtype=bool)
    findable[650] = True
    low = Int8Pass.of(Rows(vectors_ND=vectors))
    found = low.candidates(unit_queries(np.array([[1, 0]], np.float32), 2, 1), 1, findable)
    assert found is not None
    assert found[0].tolist() == [650]
    nothing = low.candidates(
        unit_queries(np.array([[1, 0]], np.float32), 2, 1), 1, np.zeros(700, dtype=bool)
    )
    assert nothing is not None
    assert nothing[0].tolist() == []


def test_too_many_near_ties_are_left_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "LARGE", 0)
    monkeypatch.setattr(int8, "HOPELESS", 2)
    monkeypatch.setattr(int8, "pays", lambda dim: True)
    vectors = np.tile(vectors_of(7, 1, 32), (3000, 1))
    vectors[::2] *= np.float16(1.001)
    query = vectors[:1].astype(np.float32)
    low = Int8Pass.of(Rows(vectors_ND=vectors))
    assert low.candidates(unit_queries(query, 32, 5), 5) is None
    kernel = ExactKernel(vectors)
    kernel.top(query, 5)
    (rows,), _ = kernel.top(query, 5)
    assert kernel._state.low is not None
    assert rows.tolist() == true_best(vectors, query[0], 5)


def test_codes_that_do_not_fit_in_memory_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "LARGE", 0)
    monkeypatch.setattr(int8, "pays", lambda dim: True)
    monkeypatch.setattr(int8, "MEMORY_SHARE", 0.0)
    vectors = vectors_of(8, 2000, 40)
    kernel = ExactKernel(vectors)
    for _ in range(3):
        (rows,), _ = kernel.top(vectors[:1].astype(np.float32), 10)
    assert kernel._state.low is None
    assert rows.tolist() == true_best(vectors, vectors[0].astype(np.float32), 10)


def test_the_kernel_uses_the_pass_only_for_large_collections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8, "pays", lambda dim: True)
    vectors = vectors_of(10, 1000, 32)
    query = vectors[:1].astype(np.float32)
    small, large = ExactKernel(vectors), ExactKernel(vectors)
    for _ in range(3):
        small.top(query, 3)
    monkeypatch.setattr(exact, "LARGE", vectors.size)
    for _ in range(3):
        large.top(query, 3)
    assert small._state.low is None
    assert large._state.low is not None


def test_float32_and_integers_agree_to_the_last_bit() -> None:
    vectors = vectors_of(11, 4000, 128)
    queries = vectors_of(12, 70, 128).astype(np.float32)
    rows, scores = ExactScan(vectors).top(queries, 10)
    kernel = ExactKernel(vectors)
    low = Int8Pass.of(Rows(vectors_ND=vectors))
    kernel._state = type(kernel._state)(rows=low.rows, scan=kernel._state.scan, low=low)
    got_rows, got_scores = kernel.top(queries, 10)
    assert [found.tolist() for found in got_rows] == [found.tolist() for found in rows]
    assert [found.tobytes() for found in got_scores] == [found.tobytes() for found in scores]


def test_whether_it_pays_is_measured_once() -> None:
    assert pays(64) is pays(64)
