"""Law: the bfloat16 pass proposes every row that may be among the best, and its bound holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from costream.scoring.dot import ExactScan, pair_scores, unit_queries
from costream.scoring.kernels import bfloat16, exact
from costream.scoring.kernels.bfloat16 import Bfloat16Pass, pays
from costream.scoring.kernels.exact import ExactKernel
from costream.scoring.kernels.rows import Rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "BLOCK_SCORES", 2**12)
    monkeypatch.setattr(bfloat16, "ROUNDED_ROWS", 300)


def vectors_of(seed: int, rows: int, dim: int) -> NDArray[np.float16]:
    values = np.random.default_rng(seed).standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def true_best(vectors: NDArray[np.float16], query: NDArray[np.float32], top: int) -> list[int]:
    scores = pair_scores(query, vectors)
    return np.lexsort((np.arange(len(scores)), -scores))[:top].tolist()


def proposals(
    vectors: NDArray[np.float16], queries: NDArray[np.float32], top: int
) -> list[NDArray[np.int64]]:
    found = Bfloat16Pass.of(Rows(vectors_ND=vectors)).candidates(
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
        assert len(rows) < 1000
        assert np.all(np.diff(rows) > 0)


def test_rows_that_bfloat16_cannot_tell_apart_are_all_proposed() -> None:
    """True scores that differ by less than the rounding of what is multiplied, and of the sum."""
    rng = np.random.default_rng(2)
    vectors = np.tile(vectors_of(3, 1, 64), (4000, 1))
    vectors[np.arange(4000), rng.integers(64, size=4000)] *= np.float16(1.003)
    query = vectors_of(4, 1, 64).astype(np.float32)
    rounded = torch.from_numpy(vectors).bfloat16() @ torch.from_numpy(query[0]).bfloat16()
    by_bfloat16 = torch.argsort(rounded, descending=True, stable=True)[:20].tolist()
    want = true_best(vectors, query[0], 20)
    assert set(by_bfloat16) != set(want)  # the fast scores alone would have been wrong
    found = Bfloat16Pass.of(Rows(vectors_ND=vectors)).candidates(unit_queries(query, 64, 20), 20)
    assert found is None or set(want) <= set(found[0].tolist())


@pytest.mark.parametrize("dim", [2, 3, 64, 700])
@pytest.mark.parametrize("positive", [True, False])
def test_the_bound_holds(dim: int, positive: bool) -> None:
    """|bfloat16 score - true| <= bound + rounding, also where all products have one sign."""
    vectors, queries = vectors_of(5, 3000, dim), vectors_of(6, 30, dim)
    if positive:
        vectors, queries = np.abs(vectors), np.abs(queries)
    unit = unit_queries(queries.astype(np.float32), dim, 1)
    made = Bfloat16Pass.of(Rows(vectors_ND=vectors))
    wide = torch.from_numpy(unit)
    scores = torch.mm(wide.bfloat16(), made._rounded(0, 3000).t()).double()
    true = wide.double() @ torch.from_numpy(vectors.astype(np.float64)).t()
    room = made._bounds(wide, wide.bfloat16()).double() + scores.abs() * bfloat16._ROUNDING
    assert bool(((scores - true).abs() <= room).all())
    # A bound that always holds because it is huge would not show anything.
    assert float(room.max()) < 0.02


def test_too_many_near_ties_are_left_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "LARGE", 0)
    monkeypatch.setattr(bfloat16, "HOPELESS", 2)
    monkeypatch.setattr(bfloat16, "pays", lambda dim: True)
    vectors = np.tile(vectors_of(7, 1, 32), (3000, 1))
    vectors[::2] *= np.float16(1.001)
    query = vectors[:1].astype(np.float32)
    low = Bfloat16Pass.of(Rows(vectors_ND=vectors))
    assert low.candidates(unit_queries(query, 32, 5), 5) is None
    kernel = ExactKernel(vectors)
    kernel.top(query, 5)
    (rows,), _ = kernel.top(query, 5)
    assert kernel._state.low is not None
    assert rows.tolist() == true_best(vectors, query[0], 5)


def test_what_does_not_fit_in_memory_is_rounded_anew_in_each_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = vectors_of(8, 2000, 40)
    queries = vectors_of(9, 20, 40).astype(np.float32)
    kept = Bfloat16Pass.of(Rows(vectors_ND=vectors))
    monkeypatch.setattr(bfloat16, "MEMORY_SHARE", 0.0)
    unkept = Bfloat16Pass.of(Rows(vectors_ND=vectors))
    assert (kept.memory_bytes, unkept.memory_bytes) == (2 * 2000 * 40, 0)
    unit = unit_queries(queries, 40, 10)
    for mine, other in zip(kept.candidates(unit, 10), unkept.candidates(unit, 10), strict=True):
        assert mine.tolist() == other.tolist()


def test_the_kernel_uses_the_pass_only_for_large_collections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bfloat16, "pays", lambda dim: True)
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


def test_float32_and_bfloat16_agree_to_the_last_bit() -> None:
    vectors = vectors_of(11, 4000, 128)
    queries = vectors_of(12, 70, 128).astype(np.float32)
    rows, scores = ExactScan(vectors).top(queries, 10)
    kernel = ExactKernel(vectors)
    low = Bfloat16Pass.of(Rows(vectors_ND=vectors))
    kernel._state = type(kernel._state)(rows=low.rows, scan=kernel._state.scan, low=low)
    got_rows, got_scores = kernel.top(queries, 10)
    assert [found.tolist() for found in got_rows] == [found.tolist() for found in rows]
    assert [found.tobytes() for found in got_scores] == [found.tobytes() for found in scores]


def test_whether_it_pays_is_measured_once() -> None:
    assert pays(64) is pays(64)
