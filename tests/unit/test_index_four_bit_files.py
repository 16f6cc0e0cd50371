"""Laws of 4-bit codes on disk: used when they fit, made anew when not, never trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coded_index import (
    DIM,
    NUM_ITEMS,
    QUERIES,
    SPACE,
    code_and_keep_small_ones,
    four_bit,
    named,
    unit,
)
from costream.index import Index, codes, resident


@pytest.fixture(autouse=True)
def _small_ones_are_coded_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    code_and_keep_small_ones(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "index"
    with Index.open(place, create=True, kernel="four_bit") as index:
        index.add(named(*range(NUM_ITEMS)), unit(NUM_ITEMS, 0), SPACE)
        index.load()
    return place


def derived(directory: Path, suffix: str) -> Path:
    (found,) = (directory / codes.FOLDER).glob(f"*{suffix}")
    return found


def ranked(directory: Path, kernel: str) -> list[tuple[str, ...]]:
    with Index.open(directory, kernel=kernel) as index:
        found = index.search(QUERIES, SPACE, 10)
        assert found.kernel == kernel
        return [tuple(ids) for ids in found.ids]


def forbid_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("everything was coded again")

    monkeypatch.setattr(four_bit.Codes, "of", forbidden)


def assert_nearly_all_are_found(directory: Path) -> None:
    got, want = ranked(directory, "four_bit"), ranked(directory, "exact")
    hits = sum(len(set(some) & set(true)) for some, true in zip(got, want, strict=True))
    assert hits >= 0.97 * 10 * len(QUERIES)


def test_an_index_that_is_opened_again_uses_its_codes(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = ranked(directory, "four_bit")
    forbid_coding(monkeypatch)
    assert ranked(directory, "four_bit") == want


def test_codes_serve_what_was_added_replaced_and_removed_since(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_coding(monkeypatch)
    for step in range(4):
        with Index.open(directory, kernel="four_bit") as index:
            gone = {ids[0] for ids in index.search(QUERIES, SPACE, 1).ids}
            index.remove(gone)
            index.add(named(2000 + step, 10 + step), unit(2, 10 + step), SPACE)
            index.load()
        found = ranked(directory, "four_bit")
        assert not gone & {one for ids in found for one in ids}
        assert_nearly_all_are_found(directory)


@pytest.mark.parametrize("suffix", [codes.CODES, codes.SEAL])
@pytest.mark.parametrize("damage", ["absent", "empty", "half", "zeroed", "flipped", "swapped"])
def test_damaged_codes_change_no_answer_and_are_made_anew(
    directory: Path, tmp_path: Path, suffix: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = ranked(directory, "four_bit")
    file = derived(directory, suffix)
    whole = file.read_bytes()
    with Index.open(tmp_path / "other", create=True, kernel="four_bit") as other:
        other.add(named(*range(NUM_ITEMS)), unit(NUM_ITEMS, 1), SPACE)
        other.load()
    spoilt = {
        "absent": b"",
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "zeroed": bytes(len(whole)),
        "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "swapped": derived(tmp_path / "other", suffix).read_bytes(),
    }[damage]
    file.write_bytes(spoilt)
    if damage == "absent":
        file.unlink()
    assert ranked(directory, "four_bit") == want
    forbid_coding(monkeypatch)
    assert ranked(directory, "four_bit") == want


def test_codes_and_seal_of_another_index_are_not_used(directory: Path, tmp_path: Path) -> None:
    """Each fits the other, but neither fits the vectors."""
    want = ranked(directory, "four_bit")
    with Index.open(tmp_path / "other", create=True, kernel="four_bit") as other:
        other.add(named(*range(NUM_ITEMS)), unit(NUM_ITEMS, 1), SPACE)
        other.load()
    for suffix in (codes.CODES, codes.SEAL):
        shutil.copyfile(derived(tmp_path / "other", suffix), derived(directory, suffix))
    assert ranked(directory, "four_bit") == want


def test_codes_of_rows_that_were_moved_up_are_not_used(directory: Path) -> None:
    """With half of the items gone, rows are moved up in memory; the file holds the old ones."""
    with Index.open(directory, kernel="four_bit") as index:
        index.search(QUERIES, SPACE, 10)
        index.remove(item.id for item in named(*range(0, NUM_ITEMS, 2)))
        got = index.search(QUERIES, SPACE, 10).ids
    with Index.open(directory, kernel="exact") as index:
        want = index.search(QUERIES, SPACE, 10).ids
    assert sum(len(set(a) & set(b)) for a, b in zip(got, want, strict=True)) >= 0.97 * 80
    assert_nearly_all_are_found(directory)


def test_no_codes_are_left_of_earlier_states(directory: Path) -> None:
    for step in range(5):
        with Index.open(directory, kernel="four_bit") as index:
            index.add(named(*range(NUM_ITEMS)), unit(NUM_ITEMS, 20 + step), SPACE)
            index.load()
    names = {path.suffix for path in (directory / codes.FOLDER).iterdir()}
    assert names == {".f16", codes.CODES, codes.SEAL}
    assert len(list((directory / codes.FOLDER).iterdir())) == 3


def test_a_folder_that_cannot_be_written_is_no_error(directory: Path) -> None:
    shutil.rmtree(directory / codes.FOLDER)
    (directory / codes.FOLDER).write_bytes(b"a file where the folder should be")
    assert_nearly_all_are_found(directory)


def test_what_is_added_to_an_empty_index_is_searched_without_reading_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("all vectors were read from the database")

    with Index.open(tmp_path, create=True) as index:
        for start in range(0, 300, 100):
            index.add(named(*range(start, start + 100)), unit(100, start), SPACE)
        monkeypatch.setattr(resident.vector_rows, "read_all", forbidden)
        assert len(index.search(QUERIES, SPACE, 300).ids[0]) == 300


def test_more_than_is_kept_in_memory_is_read_when_it_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "KEPT_BYTES", 150 * 2 * DIM)
    with Index.open(tmp_path, create=True) as index:
        for start in range(0, 300, 100):
            index.add(named(*range(start, start + 100)), unit(100, start), SPACE)
        assert index._present.resident is None
        assert len(index.search(QUERIES, SPACE, 300).ids[0]) == 300
