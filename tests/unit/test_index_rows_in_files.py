"""Laws of an index whose vectors stay in files: the same answers, and no trust in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coded_index import (
    DIM,
    NUM_ITEMS,
    QUERIES,
    SPACE,
    code_and_keep_small_ones,
    named,
    unit,
)
from costream.index import Index, codes, resident
from costream.index.held import Held, LostRowsError, RowFile, RowsInFiles


@pytest.fixture(autouse=True)
def _small_ones_are_coded_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    code_and_keep_small_ones(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An index with a file of all and a file of what changed since."""
    place = tmp_path / "index"
    with Index.open(place, create=True, kernel="four_bit") as index:
        index.add(named(*range(NUM_ITEMS)), unit(NUM_ITEMS, 0), SPACE)
    with Index.open(place, kernel="four_bit") as index:
        index.load()
        index.add(named(5, 7000, 7001), unit(3, 1), SPACE)
        index.remove(["00006"])
    assert len(codes.files(place)) == 2
    return place


def answers(index: Index) -> list[list[tuple[str, float]]]:
    found = index.search(QUERIES, SPACE, 10)
    return [
        list(zip(ids, scores.tolist(), strict=True))
        for ids, scores in zip(found.ids, found.scores, strict=True)
    ]


def exact(directory: Path) -> list[list[tuple[str, float]]]:
    with Index.open(directory, kernel="exact") as index:
        return answers(index)


def shares(got: list[list[tuple[str, float]]], want: list[list[tuple[str, float]]]) -> float:
    hits = sum(len(set(some) & set(true)) for some, true in zip(got, want, strict=True))
    return hits / sum(map(len, want))


def held(index: Index) -> Held:
    assert index._present.resident is not None
    return index._present.resident.held


def test_vectors_stay_in_files_and_answers_have_the_scores_of_an_exact_scan(
    directory: Path,
) -> None:
    want = exact(directory)
    with Index.open(directory, kernel="four_bit") as index:
        got = answers(index)
        assert held(index).memory_bytes == 0
        assert len(held(index).files) == 2
    assert shares(got, want) >= 0.97


def test_what_comes_later_is_in_memory_until_it_is_saved(directory: Path) -> None:
    with Index.open(directory, kernel="four_bit") as index:
        index.search(QUERIES, SPACE, 10)
        index.add(named(*range(8000, 8050)), unit(50, 2), SPACE)
        index.add(named(7), unit(1, 3), SPACE)
        assert held(index).num_in_memory == 51
        before = answers(index)
        index.load()
        assert held(index).num_in_memory == 0
        assert answers(index) == before
    assert shares(before, exact(directory)) >= 0.97


def test_a_first_search_puts_the_vectors_of_the_database_into_a_file(directory: Path) -> None:
    with Index.open(directory, kernel="four_bit") as index:
        before = answers(index)
    codes.remove_all(directory)
    with Index.open(directory, kernel="four_bit") as index:
        assert shares(answers(index), before) >= 0.97
        assert held(index).memory_bytes == 0
    (file,) = codes.files(directory)
    assert codes.read_numbers(next(iter(codes.chain(directory, DIM)))) is not None
    assert file.stat().st_size > NUM_ITEMS * DIM * 2


def test_more_than_is_kept_in_memory_goes_into_a_file_while_items_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "KEPT_BYTES", 300 * 2 * DIM)
    with Index.open(tmp_path, create=True, kernel="four_bit") as index:
        index.add(named(*range(200)), unit(200, 0), SPACE)
        index.search(QUERIES, SPACE, 10)
        for start in range(200, 2000, 100):
            index.add(named(*range(start, start + 100)), unit(100, start), SPACE)
            assert held(index).num_in_memory <= 300
        got = answers(index)
    assert shares(got, exact(tmp_path)) >= 0.97


def test_when_a_quarter_is_void_the_files_are_made_anew(directory: Path) -> None:
    with Index.open(directory, kernel="four_bit") as index:
        answers(index)
        index.remove(item.id for item in named(*range(100, 700)))
        got = answers(index)
        assert held(index).num_rows == len(index)
    assert shares(got, exact(directory)) >= 0.97


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", ["flipped", "short", "zeroed"])
def test_a_file_that_is_damaged_while_it_is_open_changes_no_answer(
    directory: Path, which: int, damage: str
) -> None:
    want = exact(directory)
    with Index.open(directory, kernel="four_bit") as index:
        index.load()
        file = codes.files(directory)[which]
        whole = file.read_bytes()
        with file.open("r+b") as stream:
            if damage == "short":
                stream.truncate(100)
            else:
                spoilt = bytes(b ^ 1 for b in whole) if damage == "flipped" else bytes(len(whole))
                stream.write(spoilt)
        assert shares(answers(index), want) >= 0.97
        assert index.sample_vectors(2000, 0, SPACE).shape == (len(index), DIM)
        index.add(named(9000), unit(1, 4), SPACE)
    with Index.open(directory, kernel="four_bit") as index:
        assert shares(answers(index), exact(directory)) >= 0.97
        assert index.check() == ()


def test_every_altered_byte_of_a_vector_is_noticed(directory: Path) -> None:
    header = codes.chain(directory, DIM)[1]
    numbers = codes.read_numbers(header)
    assert numbers is not None
    whole = header.path.read_bytes()
    for at in range(header.vectors_at, header.numbers_at):
        header.path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(LostRowsError, match="not what was written"):
            RowFile(header, numbers.crcs).read(np.arange(header.num_vectors))


def test_rows_of_files_and_memory_are_one_matrix(directory: Path) -> None:
    """As a numpy array of the same rows, for slices and numbers in any order."""
    files, parts = [], []
    for header in codes.chain(directory, DIM):
        vectors = np.empty((header.num_vectors, DIM), np.float16)
        numbers = codes.read_segment(header, vectors)
        assert numbers is not None
        files.append(RowFile(header, numbers.crcs))
        parts.append(vectors)
    rest = unit(5, 8).astype(np.float16)
    matrix, want = RowsInFiles(files, rest), np.concatenate([*parts, rest])
    assert matrix.shape == want.shape
    assert (matrix.dtype, matrix.ndim, matrix.size) == (want.dtype, want.ndim, want.size)
    assert len(matrix) == len(want)
    order = np.random.default_rng(0).permutation(len(want))
    for rows in (slice(None), slice(3, 40), slice(1490, None), order, order[:1], order[:0]):
        assert np.array_equal(matrix[rows], want[rows])


def test_nothing_is_left_in_a_file_of_what_was_forgotten(directory: Path) -> None:
    with Index.open(directory, kernel="four_bit") as index:
        answers(index)
        (vector,) = index.vectors(["00003"]).astype("<f2")
        raw = vector.tobytes()
        assert any(raw in file.read_bytes() for file in directory.rglob("*") if file.is_file())
        index.forget(["00003"])
        answers(index)
    assert not any(raw in file.read_bytes() for file in directory.rglob("*") if file.is_file())
