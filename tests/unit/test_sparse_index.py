"""The inverted index: the answers of dense products, with reasons that add up, and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError, SpaceMismatch
from costream.index.sparse import SparseIndex
from costream.records import Space

DIM = 7
SPACE = Space(encoder="toy", weights_hash="0", preprocessing_hash="0", dim=DIM, kind="sparse")

Array = NDArray[np.float32]


def sparse(count: int, rng: np.random.Generator) -> Array:
    """Rows of small whole numbers, of which many are 0 and none only 0: ties on purpose."""
    rows = rng.integers(-1, 3, (count, DIM)) * rng.integers(0, 2, (count, DIM))
    rows[:, 0] += ~rows.any(axis=1)
    return rows.astype(np.float32)


def filled(vectors: Array) -> SparseIndex:
    index = SparseIndex(SPACE)
    index.add([f"i{number:02}" for number in range(len(vectors))], vectors, SPACE)
    return index


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), top=st.integers(1, 14))
def test_answers_are_those_of_dense_products(seed: int, count: int, top: int) -> None:
    """Of all items that share a word with the query; equal scores in the order of ids."""
    rng = np.random.default_rng(seed)
    vectors, asked = sparse(count, rng), sparse(3, rng)
    found = filled(vectors).search(asked, SPACE, top)
    for query, ids, scores in zip(asked, found.ids, found.scores, strict=True):
        shares = ((vectors != 0) & (query != 0)).any(axis=1)
        dense = vectors @ query
        order = [n for n in np.argsort(-dense, kind="stable") if shares[n]][:top]
        assert ids == tuple(f"i{number:02}" for number in order)
        assert scores.tolist() == dense[order].tolist()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_reasons_add_up_to_the_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, (asked,) = sparse(5, rng), sparse(1, rng)
    index = filled(vectors)
    for number, vector in enumerate(vectors):
        reasons = index.explain(asked, f"i{number:02}")
        assert sum(value for _, value in reasons) == pytest.approx(float(vector @ asked))
        values = [value for _, value in reasons]
        assert values == sorted(values, reverse=True)
        assert 0 not in values


def test_added_again_an_item_is_replaced_and_removed_it_is_gone() -> None:
    eye = np.eye(DIM, dtype=np.float32)
    index = filled(eye[:3])
    index.add(["i01"], eye[4:5], SPACE)
    assert index.search(eye[[1, 4]], SPACE, 5).ids == ((), ("i01",))
    assert index.remove(["i01", "absent", "i01"]) == 1
    assert index.ids() == ["i00", "i02"]
    assert index.search(eye[4:5], SPACE, 5).ids == ((),)
    stats = index.stats()
    assert (len(index), stats.num_items, stats.num_entries, stats.num_words) == (2, 2, 2, 2)


def test_an_empty_index_answers() -> None:
    index = SparseIndex(SPACE)
    assert index.search(np.ones((2, DIM), np.float32), SPACE, 3).ids == ((), ())
    assert index.stats().num_entries == 0


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    index = SparseIndex(SPACE, words=tuple("abcdefg"))
    index.add(["ä", "i1", "i2"], sparse(3, rng), SPACE)
    index.save(tmp_path / "new")
    index.save(tmp_path / "new")
    again = SparseIndex.load(tmp_path / "new")
    assert (again.space, again.words, again.ids()) == (SPACE, index.words, index.ids())
    asked = sparse(4, rng)
    one, other = (each.search(asked, SPACE, 3) for each in (index, again))
    assert one.ids == other.ids
    assert all(np.array_equal(*pair) for pair in zip(one.scores, other.scores, strict=True))
    assert again.explain(asked[0], "i1") == index.explain(asked[0], "i1")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sparse.npz"]


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = filled(np.eye(DIM, dtype=np.float32)).save(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="damaged"):
        SparseIndex.load(tmp_path)


def test_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*sparse\.npz"):
        SparseIndex.load(tmp_path)


def test_what_does_not_fit_is_refused_and_leaves_all_as_it_was() -> None:
    index = filled(np.eye(DIM, dtype=np.float32)[:2])
    other = Space(encoder="x", weights_hash="0", preprocessing_hash="0", dim=DIM, kind="sparse")
    one = np.ones((1, DIM), np.float32)
    with pytest.raises(SpaceMismatch):
        index.add(["a"], one, other)
    with pytest.raises(SpaceMismatch):
        index.search(one, other, 1)
    with pytest.raises(DataError, match="shape"):
        index.add(["a", "b"], one, SPACE)
    with pytest.raises(DataError, match="shape"):
        index.search(one[:, 1:], SPACE, 1)
    with pytest.raises(DataError, match="twice"):
        index.add(["a", "a"], np.repeat(one, 2, axis=0), SPACE)
    with pytest.raises(NumericalError, match="not finite"):
        index.add(["a"], one * np.nan, SPACE)
    with pytest.raises(NumericalError, match="'b' has no word"):
        index.add(["a", "b"], np.concatenate([one, 0 * one]), SPACE)
    with pytest.raises(ConfigError, match="top=0"):
        index.search(one, SPACE, 0)
    with pytest.raises(DataError, match="'absent'"):
        index.explain(one[0], "absent")
    with pytest.raises(ConfigError, match="expected sparse"):
        SparseIndex(Space(encoder="x", weights_hash="", preprocessing_hash="", dim=2))
    with pytest.raises(ConfigError, match="2 words"):
        SparseIndex(SPACE, words=("a", "b"))
    assert index.ids() == ["i00", "i01"]
