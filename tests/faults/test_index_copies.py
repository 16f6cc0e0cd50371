"""Laws of copies: a backup is one state of the index and whole, or it is no index at all."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from index_worker import DIM, WIDE, ColourHistogram, unit
from test_index_faults import state_after, worker

from costream.errors import DataError
from costream.index import Index, Item, database, update_index
from costream.index.backup import backup_index, restore_index
from costream.index.copy import copy_index

SPACE = ColourHistogram.space
NUM_ITEMS = 6000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that takes a while to copy."""
    directory = tmp_path_factory.mktemp("large")
    with Index.open(directory, create=True) as index:
        items = [Item(id=f"{number:06d}", caption=f"n{number}") for number in range(NUM_ITEMS)]
        index.add(items, unit(np.random.default_rng(0), NUM_ITEMS, WIDE.dim), WIDE)
    return directory


def held(directory: Path) -> dict[str, bytes]:
    """Id to vector, of an index that is whole."""
    with Index.open(directory) as index:
        assert index.check() == ()
        ids = index.ids()
        return dict(zip(ids, map(bytes, index.vectors(ids).astype("<f2")), strict=True))


# --- backups ---


def test_a_backup_takes_the_place_of_an_emptied_index_that_others_have_open(
    tmp_path: Path,
) -> None:
    """SQLite would wait for ever for whoever read it when it was whole."""
    index_dir, backup = tmp_path / "index", tmp_path / "backup"
    with Index.open(index_dir, create=True) as index:
        index.add([Item(id="a")], unit(np.random.default_rng(0), 1, DIM), SPACE)
        backup_index(index_dir, backup)
        (index_dir / database.FILE_NAME).write_bytes(b"")
        assert restore_index(backup, index_dir, replace=True) == 1
    assert list(held(index_dir)) == ["a"]


def test_whoever_waits_for_an_index_to_be_replaced_is_told_who_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.5)
    backup = tmp_path / "backup"
    with Index.open(backup, create=True) as index:
        index.add([Item(id="a")], unit(np.random.default_rng(0), 1, DIM), SPACE)
    (tmp_path / "index").mkdir()
    with sqlite3.connect(tmp_path / "index" / database.FILE_NAME) as other:
        other.execute("CREATE TABLE something (a)")
        other.commit()
        other.execute("BEGIN")
        other.execute("SELECT * FROM something").fetchall()
        with pytest.raises(DataError, match=r"kept it locked.*end the processes"):
            restore_index(backup, tmp_path / "index", replace=True)
    other.close()


def test_backups_made_while_another_process_writes_are_states_that_there_were(
    tmp_path: Path,
) -> None:
    counts = []
    with worker("churn", tmp_path / "index", 11) as process:
        assert process.stdout is not None
        for number in range(4):
            before = int(process.stdout.readline())
            assert backup_index(tmp_path / "index", tmp_path / f"backup{number}") >= 0
            counts.append(before)
        process.send_signal(signal.SIGKILL)
        last = int(process.stdout.read().split()[-1])
    for number, before in enumerate(counts):
        found = held(tmp_path / f"backup{number}")
        assert any(found == state_after(11, steps) for steps in range(before, last + 2))


def rounds_of_killed_backups(large: Path, tmp_path: Path, rounds: int) -> None:
    chance = random.Random(3)
    want = held(large)
    start = time.monotonic()
    backup_index(large, tmp_path / "timed")
    needed_s = time.monotonic() - start
    killed = 0
    for number in range(rounds):
        target = tmp_path / f"backup{number}"
        with worker("backup", large, target) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, needed_s))
            process.send_signal(signal.SIGKILL)
            killed += "end" not in process.stdout.read()
        if not (target / database.FILE_NAME).exists():
            with pytest.raises(DataError, match="no index in"):
                Index.open(target)
            assert backup_index(large, target) == NUM_ITEMS
            assert [path.name for path in target.iterdir()] == [database.FILE_NAME]
        assert held(target) == want
        shutil.rmtree(target)
    assert killed >= rounds // 8  # how fast the machine is changes


def test_a_killed_backup_is_whole_or_none(large: Path, tmp_path: Path) -> None:
    rounds_of_killed_backups(large, tmp_path, 4)


@pytest.mark.soak
def test_fifty_killed_backups(large: Path, tmp_path: Path) -> None:
    rounds_of_killed_backups(large, tmp_path, 50)


def test_a_backup_never_replaces_an_index(large: Path, tmp_path: Path) -> None:
    backup_index(large, tmp_path / "backup")
    before = (tmp_path / "backup" / database.FILE_NAME).read_bytes()
    with pytest.raises(DataError, match=r"there is an index in .*name a new folder"):
        backup_index(large, tmp_path / "backup")
    assert (tmp_path / "backup" / database.FILE_NAME).read_bytes() == before


def test_a_damaged_index_is_not_backed_up(large: Path, tmp_path: Path) -> None:
    shutil.copytree(large, tmp_path / "index")
    file = tmp_path / "index" / database.FILE_NAME
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged: .*costream index repair"):
        backup_index(tmp_path / "index", tmp_path / "backup")
    assert list((tmp_path / "backup").iterdir()) == []


# --- restoring ---


def small(directory: Path, numbers: range) -> Path:
    with Index.open(directory, create=True) as index:
        rng = np.random.default_rng(numbers.start)
        items = [Item(id=f"item{number}") for number in numbers]
        index.add(items, unit(rng, len(items), DIM), SPACE)
        index.load()
    return directory


def test_an_index_in_use_becomes_the_restored_one_for_everybody(tmp_path: Path) -> None:
    directory = small(tmp_path / "index", range(30))
    backup_index(directory, tmp_path / "backup")
    want = held(directory)
    with Index.open(directory) as reader:
        query = unit(np.random.default_rng(5), 1, DIM)
        before = reader.search(query, SPACE, 99).ids
        reader.add([Item(id="late")], query, SPACE)
        with pytest.raises(DataError, match=r"there is an index in .*--replace"):
            restore_index(tmp_path / "backup", directory)
        assert "late" in reader.ids()
        late = reader.token()
        assert restore_index(tmp_path / "backup", directory, replace=True) == 30
        assert reader.search(query, SPACE, 99).ids == before
        assert reader.token() != late
        reader.add([Item(id="later")], query, SPACE)
        assert reader.search(query, SPACE, 1).ids == (("later",),)
    assert held(directory) == want | {"later": query.astype("<f2").tobytes()}
    assert held(tmp_path / "backup") == want


@pytest.mark.parametrize("damage", ["header", "truncated", "zeroed", "absent", "only a log"])
def test_whatever_is_left_of_an_index_a_backup_takes_its_place(damage: str, tmp_path: Path) -> None:
    directory = small(tmp_path / "index", range(30))
    backup_index(directory, tmp_path / "backup")
    want = held(directory)
    file = directory / database.FILE_NAME
    whole = file.read_bytes()
    log = directory / f"{database.FILE_NAME}-wal"
    {
        "header": lambda: file.write_bytes(b"x" * 4096 + whole[4096:]),
        "truncated": lambda: file.write_bytes(whole[:5000]),
        "zeroed": lambda: file.write_bytes(bytes(len(whole))),
        "absent": lambda: shutil.rmtree(directory),
        "only a log": lambda: file.rename(log),
    }[damage]()
    if damage != "absent":
        with pytest.raises(DataError, match="is damaged"):
            Index.open(directory)
    assert restore_index(tmp_path / "backup", directory, replace=True) == 30
    assert held(directory) == want


def test_a_killed_restoring_leaves_the_index_or_the_backup(large: Path, tmp_path: Path) -> None:
    chance = random.Random(4)
    old = held(small(tmp_path / "index", range(5)))
    new = held(large)
    for _ in range(4):
        with worker("restore", large, tmp_path / "index") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        assert held(tmp_path / "index") in (old, new)
    restore_index(large, tmp_path / "index", replace=True)
    assert held(tmp_path / "index") == new
    assert [path.name for path in (tmp_path / "index").iterdir() if path.is_dir()] == []


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    directory = small(tmp_path / "index", range(30))
    backup_index(directory, tmp_path / "backup")
    want = held(directory)
    file = tmp_path / "backup" / database.FILE_NAME
    content = bytearray(file.read_bytes())
    vector = next(iter(want.values()))
    content[content.index(vector)] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"backup is damaged"):
        restore_index(tmp_path / "backup", directory, replace=True)
    assert held(directory) == want


def test_an_index_of_an_earlier_page_size_is_replaced_too(tmp_path: Path) -> None:
    directory = small(tmp_path / "index", range(30))
    backup_index(directory, tmp_path / "backup")
    want = held(directory)
    connection = sqlite3.connect(directory / database.FILE_NAME, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("VACUUM")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert restore_index(tmp_path / "backup", directory, replace=True) == 30
    assert held(directory) == want


# --- copies ---


def test_a_killed_copy_goes_on_where_it_was(tmp_path: Path) -> None:
    source = small(tmp_path / "source", range(600))
    done = 0
    for steps in (4, 11, 19):
        with worker("copy", source, tmp_path / "target") as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(steps):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        with Index.open(tmp_path / "target") as target:
            assert target.check() == ()
            assert len(target) >= 20 * steps
            done = len(target)
    with Index.open(source) as index, Index.open(tmp_path / "target") as target:
        report = copy_index(index, target)
        assert (report.copied, report.kept) == (600 - done, done)
    assert held(tmp_path / "target") == held(source)


def test_a_vector_that_differs_after_copying_is_noticed(tmp_path: Path) -> None:
    source = small(tmp_path / "source", range(40))

    with Index.open(source) as index, Index.open(tmp_path / "target", create=True) as target:

        def meddle(_: int) -> None:
            target.add(target.get(["item3"]), -target.vectors(["item3"]), SPACE)

        with pytest.raises(DataError, match="hold different items after copying"):
            copy_index(index, target, progress=meddle)


# --- links, and a clock ---


def test_an_index_that_is_reached_by_a_link_is_backed_up_and_restored(tmp_path: Path) -> None:
    directory = small(tmp_path / "real", range(7))
    (tmp_path / "link").symlink_to(directory)
    backup_index(tmp_path / "link", tmp_path / "backup")
    assert restore_index(tmp_path / "backup", tmp_path / "link", replace=True) == 7
    assert (tmp_path / "link").is_symlink()
    assert held(directory) == held(tmp_path / "backup")


def test_pictures_are_not_embedded_again_after_restoring(tmp_path: Path) -> None:
    from test_index_faults import draw_pictures

    pictures = draw_pictures(tmp_path / "pictures", 6)
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, ColourHistogram(), pictures)
    backup_index(tmp_path / "index", tmp_path / "backup")
    (pictures / "000.png").unlink()
    with Index.open(tmp_path / "index") as index:
        update_index(index, ColourHistogram(), pictures, prune=True)
        assert len(index) == 5
    restore_index(tmp_path / "backup", tmp_path / "index", replace=True)
    with Index.open(tmp_path / "index") as index:
        report = update_index(index, ColourHistogram(), pictures, prune=True)
        assert (report.removed, report.unchanged, report.embedded) == (1, 5, 0)
