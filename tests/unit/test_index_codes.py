"""Laws of the derived files: they follow small changes by small files, and are never trusted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.index import Index, Item, codes, resident, schema, vector_rows
from costream.records import Space

DIM = 16
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=DIM)
NUM_ITEMS = 400


def unit(rows: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def named(*numbers: int) -> list[Item]:
    return [Item(id=f"{number:05d}") for number in numbers]


@pytest.fixture(autouse=True)
def _every_change_is_worth_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "WORTH_A_FILE_BYTES", 1)


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """An index with four files: all, then added, replaced and removed ones."""
    directory = tmp_path / "index"
    with Index.open(directory, create=True) as index:
        index.add(named(*range(NUM_ITEMS)), unit(NUM_ITEMS), SPACE)
    for change in range(3):
        with Index.open(directory) as index:
            index.load()
            index.add(named(1000 + change), unit(1, seed=change), SPACE)
            index.add(named(3 + change, 4 + change), unit(2, seed=10 + change), SPACE)
            index.remove(item.id for item in named(4 + change, 50 + change))
    assert len(codes.files(directory)) == 4
    return directory


def ranked(directory: Path) -> list[tuple[str, ...]]:
    with Index.open(directory) as index:
        return [tuple(ids) for ids in index.search(unit(4, seed=9), SPACE, NUM_ITEMS).ids]


def truth(directory: Path) -> list[tuple[str, ...]]:
    """The answer without any file."""
    aside = directory.with_name("aside")
    (directory / codes.FOLDER).rename(aside)
    want = ranked(directory)
    shutil.rmtree(directory / codes.FOLDER, ignore_errors=True)
    aside.rename(directory / codes.FOLDER)
    return want


def forbid_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("all vectors were read from the database")

    monkeypatch.setattr(vector_rows, "read_all", forbidden)


def test_a_small_change_adds_a_small_file(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [file.stat().st_size for file in codes.files(grown)]
    assert all(size < sizes[0] / 10 for size in sizes[1:])
    want = truth(grown)
    forbid_the_database(monkeypatch)
    assert ranked(grown) == want


def test_changes_after_the_last_file_are_caught_up_with(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "WORTH_A_FILE_BYTES", 1000)
    with Index.open(grown) as index:
        index.add(named(7, 2000), unit(2, seed=20), SPACE)
        index.touch(named(8))
        index.remove(["00009"])
    before = codes.files(grown)
    want = truth(grown)
    forbid_the_database(monkeypatch)
    assert ranked(grown) == want
    assert codes.files(grown) == before


def test_another_opening_catches_up_without_the_files(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index.open(grown) as reader, Index.open(grown) as writer:
        reader.load()
        forbid_the_database(monkeypatch)
        for seed in range(5):
            writer.add(named(seed, 3000 + seed), unit(2, seed=30 + seed), SPACE)
            writer.remove([f"{100 + seed:05d}"])
            got = reader.search(unit(2, seed=40), SPACE, 20)
            want = writer.search(unit(2, seed=40), SPACE, 20)
            assert got.ids == want.ids
            assert [s.tolist() for s in got.scores] == [s.tolist() for s in want.scores]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("damage", ["absent", "empty", "half", "zeroed", "flipped", "swapped"])
def test_a_damaged_link_of_the_chain_changes_no_answer(
    grown: Path, which: int, damage: str
) -> None:
    want = truth(grown)
    file = codes.files(grown)[which]
    whole = file.read_bytes()
    other = codes.files(grown)[which - 1].read_bytes()
    spoilt = {
        "absent": whole,
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "zeroed": bytes(len(whole)),
        "flipped": whole[:-60] + bytes([whole[-60] ^ 1]) + whole[-59:],
        "swapped": other,
    }[damage]
    file.write_bytes(spoilt)
    if damage == "absent":
        file.unlink()
    for _ in range(2):
        assert ranked(grown) == want


def test_files_of_a_restored_past_are_not_used(grown: Path, tmp_path: Path) -> None:
    """The same number of changes, but other ones: states have names, not only numbers."""
    shutil.copytree(grown, tmp_path / "past")
    for directory, seed in ((grown, 1), (tmp_path / "past", 2)):
        with Index.open(directory) as index:
            index.add(named(5), unit(1, seed=seed + 50), SPACE)
            index.load()
    want = truth(grown)
    shutil.rmtree(grown / codes.FOLDER)
    shutil.copytree(tmp_path / "past" / codes.FOLDER, grown / codes.FOLDER)
    assert ranked(grown) == want


def test_many_files_become_one(grown: Path) -> None:
    for seed in range(40):
        with Index.open(grown) as index:
            index.load()
            index.add(named(seed), unit(1, seed=seed), SPACE)
        assert len(codes.files(grown)) <= 32
    assert ranked(grown) == truth(grown)


def test_files_stay_within_bounds_when_everything_is_replaced_again_and_again(
    grown: Path,
) -> None:
    whole = sum(file.stat().st_size for file in codes.files(grown))
    for seed in range(30):
        with Index.open(grown) as index:
            index.load()
            index.add(named(*range(seed * 50, seed * 50 + 50)), unit(50, seed=seed), SPACE)
            index.remove(index.ids()[: len(index) - NUM_ITEMS])
        assert sum(file.stat().st_size for file in codes.files(grown)) < 2 * whole
    assert ranked(grown) == truth(grown)


def test_a_file_is_written_before_changes_are_forgotten(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "WORTH_A_FILE_BYTES", 600)
    monkeypatch.setattr(resident, "_MOST_BEHIND", 20)
    before = codes.files(grown)
    for round_ in range(2):
        with Index.open(grown) as index:
            for _ in range(12):
                index.touch(named(8))
            index.load()
        assert (len(codes.files(grown)) > len(before)) == bool(round_)


def test_changes_that_are_forgotten_mean_reading_all_again(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "CHANGES_KEPT", 3)
    with Index.open(grown) as reader, Index.open(grown) as writer:
        reader.load()
        for seed in range(6):
            writer.add(named(seed), unit(1, seed=60 + seed), SPACE)
        query = unit(1, seed=61)
        assert reader.search(query, SPACE, 3).ids == writer.search(query, SPACE, 3).ids
        rows = writer._session.connection().execute("SELECT COUNT(*) FROM changes").fetchone()
        assert rows == (3,)


def test_a_folder_that_cannot_be_written_is_no_error(grown: Path) -> None:
    want = truth(grown)
    shutil.rmtree(grown / codes.FOLDER)
    (grown / codes.FOLDER).write_bytes(b"a file where the folder should be")
    for _ in range(2):
        assert ranked(grown) == want
    with Index.open(grown) as index:
        index.load()
        assert index.check() == ()


def test_two_openings_that_write_files_do_each_other_no_harm(grown: Path) -> None:
    with Index.open(grown) as one, Index.open(grown) as two:
        for step in range(12):
            one.load()
            one.add(named(step), unit(1, seed=70 + step), SPACE)
            two.load()
            two.add(named(20 + step), unit(1, seed=90 + step), SPACE)
            if step % 4 == 0:
                os.utime(codes.files(grown)[-1])
    assert ranked(grown) == truth(grown)


def test_zeroed_padding_of_a_header_is_not_a_chain(tmp_path: Path) -> None:
    assert codes.chain(tmp_path, DIM) == []
    (tmp_path / codes.FOLDER).mkdir()
    (tmp_path / codes.FOLDER / "0000000000000001-0000000000000000.f16").write_bytes(bytes(500))
    assert codes.chain(tmp_path, DIM) == []
