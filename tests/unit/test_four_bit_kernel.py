"""Laws of the 4-bit kernel beyond the contract: what it reads, and when it looks further."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import ConfigError
from costream.scoring.dot import pair_scores

four_bit = pytest.importorskip("costream.scoring.kernels.four_bit")


def unit(seed: int, rows: int, dim: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def recall(
    kernel: object, vectors: NDArray[np.float16], queries: NDArray[np.float32], top: int
) -> float:
    rows, _ = kernel.top(queries, top)  # type: ignore[attr-defined]
    hits = 0
    for query, found in zip(queries, rows, strict=True):
        true = np.argsort(-pair_scores(query, vectors), kind="stable")[:top]
        hits += len(set(found.tolist()) & set(true.tolist()))
    return hits / (top * len(queries))


@pytest.mark.parametrize("dim", [1, 7, 12, 64])
def test_any_number_of_dimensions(dim: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6000, dim)).astype(np.float16)
    queries = rng.standard_normal((20, dim)).astype(np.float32)
    kernel = four_bit.FourBitKernel(vectors, "dot")
    rows, scores = kernel.top(queries, 10)
    for query, found, got in zip(queries, rows, scores, strict=True):
        assert got.tolist() == pair_scores(query, vectors)[found].tolist()
    assert recall(kernel, vectors, queries, 10) >= 0.99


def test_too_many_dimensions_for_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="16392 dimensions"):
        four_bit.FourBitKernel(np.ones((2, 16392), np.float16))


def test_the_cone_that_all_vectors_lie_in_costs_no_precision() -> None:
    """Without taking the mean off, codes of vectors in a narrow cone could not tell them apart."""
    cone = 6 * unit(0, 1, 64)
    vectors = (cone + unit(1, 20_000, 64)).astype(np.float16)
    vectors /= np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
    kernel = four_bit.FourBitKernel(vectors)
    assert recall(kernel, vectors, unit(2, 30, 64), 10) >= 0.99
    # About the error of codes of what is left, a seventh of the length.
    assert kernel._state[1].error < 0.0975 / 8 / 3


def test_more_is_proposed_when_scores_are_too_close_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of rows within the error of a code: those proposed at first are not enough."""
    rng = np.random.default_rng(3)
    centre = unit(4, 1, 64)
    near = centre + 0.01 * unit(5, 3000, 64)
    vectors = np.concatenate([near, unit(6, 5000, 64)]).astype(np.float16)
    queries = (centre + 0.3 * rng.standard_normal((20, 64)) / 8).astype(np.float32)
    kernel = four_bit.FourBitKernel(vectors)
    patient = recall(kernel, vectors, queries, 10)
    monkeypatch.setattr(four_bit, "MOST_ROUNDS", 1)
    hasty = recall(kernel, vectors, queries, 10)
    assert patient >= 0.99 > hasty


def test_only_a_few_rows_of_the_truth_are_read(tmp_path: Path) -> None:
    """A truth in a file may be larger than memory, so a search must not pass over it."""
    vectors = unit(7, 40_000, 32).astype(np.float16)
    kernel = four_bit.FourBitKernel(vectors)
    queries = unit(8, 5, 32)
    before = [rows.tolist() for rows in kernel.top(queries, 10)[0]]
    touched = np.zeros(40_000, dtype=bool)
    num = math.ceil(four_bit.num_proposals(10, 40_000, 5))
    near = kernel._state[1].near(kernel.rows, queries, 10, num, None, 40_000)
    for rows in near:
        touched[rows] = True
    assert touched.sum() < 2000
    spoilt = vectors.copy()
    spoilt[~touched] = np.nan
    path = tmp_path / "truth.f16"
    spoilt.tofile(path)
    kernel._state = (
        type(kernel.rows)(vectors_ND=np.memmap(path, np.float16, "r", shape=vectors.shape)),
        kernel._state[1],
    )
    assert [rows.tolist() for rows in kernel.top(queries, 10)[0]] == before


def test_codes_take_half_a_byte_a_dimension() -> None:
    vectors = unit(9, 5000, 64).astype(np.float16)
    assert four_bit.FourBitKernel(vectors).memory_bytes == 5000 * (64 // 2 + 4)


def test_the_mean_is_taken_anew_while_a_collection_is_young() -> None:
    cone = 6 * unit(0, 1, 32)
    vectors = (cone + unit(1, 9000, 32)).astype(np.float16)
    vectors[:3] = unit(2, 3, 32)  # the first ones are not like those that follow
    kernel = four_bit.FourBitKernel(vectors[:3])
    for stop in (100, 1000, 9000):
        kernel.grow(vectors[:stop])
    fresh = four_bit.FourBitKernel(vectors)
    assert np.linalg.norm(kernel._state[1].mean_W - fresh._state[1].mean_W) < 0.2
    assert recall(kernel, vectors, unit(3, 20, 32), 10) >= 0.99
