"""Laws of repair: what is whole is kept as it was, what is not goes, and nothing is made up."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from index_worker import DIM, ColourHistogram, unit
from test_index_faults import assert_complete, draw_pictures, worker

from costream.errors import DataError
from costream.index import Index, Item, database, update_index
from costream.index.repair import RepairReport, repair_index

SPACE = ColourHistogram.space
NUM_ITEMS = 300


def item(number: int) -> Item:
    return Item(
        id=f"/pictures/{number:04d}.jpg",
        path=f"/pictures/{number:04d}.jpg",
        content_hash=f"{number:064x}",
        size=number,
        mtime_ns=number + 1,
        date=float(number) if number % 2 else None,
        tags=("even",) if number % 2 == 0 else (),
        caption=f"caption {number} " * (2000 if number == 7 else 1),  # on pages of its own
        meta={"number": number},
    )


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an index in use: the last changes are in its log only."""
    directory = tmp_path_factory.mktemp("live")
    with Index.open(directory / "index", create=True) as index:
        vectors = unit(np.random.default_rng(3), NUM_ITEMS, DIM)
        spans = np.stack([np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) + 0.5], axis=1)
        spans[::3] = np.nan
        items = [item(number) for number in range(NUM_ITEMS)]
        half = NUM_ITEMS // 2
        for rows in (range(half), range(half, NUM_ITEMS)):
            some = slice(rows.start, rows.stop)
            index.add_moments(items[some], vectors[some], np.arange(len(rows)), spans[some], SPACE)
            if rows.start == 0:
                index._session.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        index.remove([item(5).id])
        shutil.copytree(directory / "index", directory / "copy")
    assert (directory / "copy" / f"{database.FILE_NAME}-wal").stat().st_size > 10_000
    return directory / "copy"


@pytest.fixture(scope="module")
def closed(live: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, closed."""
    directory = tmp_path_factory.mktemp("closed") / "index"
    shutil.copytree(live, directory)
    Index.open(directory).close()
    assert [file.name for file in directory.iterdir()] == [database.FILE_NAME]
    return directory


def held(directory: Path) -> dict[str, tuple[object, ...]]:
    with Index.open(directory) as index:
        ids = index.ids()
        vectors = [index.all_vectors([item_id]).tobytes() for item_id in ids]
        return {
            i.id: (i, vector, moments)
            for i, vector, moments in zip(index.items(), vectors, index.moments(ids), strict=True)
        }


def repaired(sound: Path, directory: Path, spoilt: dict[str, bytes]) -> RepairReport:
    """Spoil files of an index, repair it, and hold what is there now against what was."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(sound, directory)
    for name, content in spoilt.items():
        (directory / name).write_bytes(content)
    report = repair_index(directory)
    want, got = held(sound), held(directory)
    assert len(got) == report.kept
    lacking = 0
    for item_id, (found, vector, moments) in got.items():
        if moments:
            assert (found, vector, moments) == want[item_id]
        else:
            lacking += 1
            assert (found.caption, found.meta) == (want[item_id][0].caption, want[item_id][0].meta)
            assert (found.content_hash, found.mtime_ns) == ("", 0)
    assert lacking == report.without_vector
    assert report.lost in (None, len(want) - len(got))
    with Index.open(directory) as index:
        assert index.check() == ()
    return report


def flips(content: bytes, places: Iterable[int]) -> bytes:
    spoilt = bytearray(content)
    for place in places:
        spoilt[place] ^= 1 << place % 8
    return bytes(spoilt)


def test_all_is_saved_when_only_what_leads_to_the_rows_is_lost(
    closed: Path, tmp_path: Path
) -> None:
    whole = (closed / database.FILE_NAME).read_bytes()
    report = repaired(closed, tmp_path / "a", {database.FILE_NAME: bytes(100) + whole[100:]})
    assert (report.kept, report.lost, report.without_vector) == (NUM_ITEMS - 1, 0, 0)
    assert report.aside is not None
    assert (report.aside / database.FILE_NAME).read_bytes()[100:] == whole[100:]


def test_what_is_in_the_log_only_is_saved_too(live: Path, tmp_path: Path) -> None:
    whole = (live / database.FILE_NAME).read_bytes()
    log = (live / f"{database.FILE_NAME}-wal").read_bytes()
    for number, spoilt in enumerate(
        (
            {database.FILE_NAME: b"x" * 4096 + whole[4096:]},
            {database.FILE_NAME: b""},
            {
                database.FILE_NAME: whole[: len(whole) // 2],
                f"{database.FILE_NAME}-wal": log + b"half",
            },
        )
    ):
        shutil.copytree(live, tmp_path / f"want{number}")
        report = repaired(tmp_path / f"want{number}", tmp_path / "a", spoilt)
        assert report.kept >= NUM_ITEMS // 2 - 1
        assert item(NUM_ITEMS - 1).id in held(tmp_path / "a")


def test_a_lost_page_costs_what_was_on_it(closed: Path, tmp_path: Path) -> None:
    whole = (closed / database.FILE_NAME).read_bytes()
    most = 0
    for start in range(0, len(whole), 16384):
        spoilt = whole[:start] + bytes(16384) + whole[start + 16384 :]
        report = repaired(closed, tmp_path / "a", {database.FILE_NAME: spoilt})
        most = max(most, report.lost or 0)
    assert 0 < most < NUM_ITEMS


def rounds_of_flipped_bits(closed: Path, tmp_path: Path, rounds: int) -> None:
    whole = (closed / database.FILE_NAME).read_bytes()
    chance = random.Random(5)
    damaged = 0
    for _ in range(rounds):
        places = [chance.randrange(len(whole)) for _ in range(6)]
        spoilt = {database.FILE_NAME: flips(whole, places)}
        report = repaired(closed, tmp_path / "a", spoilt)
        damaged += report.was_damaged
        assert report.kept > NUM_ITEMS // 3
    assert damaged > rounds // 4


def test_flipped_bits_cost_the_rows_that_they_hit(closed: Path, tmp_path: Path) -> None:
    rounds_of_flipped_bits(closed, tmp_path, 8)


@pytest.mark.soak
def test_many_flipped_bits(closed: Path, tmp_path: Path) -> None:
    rounds_of_flipped_bits(closed, tmp_path, 300)


def test_a_sound_index_is_left_alone(closed: Path, tmp_path: Path) -> None:
    shutil.copytree(closed, tmp_path / "a")
    before = (tmp_path / "a" / database.FILE_NAME).read_bytes()
    report = repair_index(tmp_path / "a")
    assert (report.was_damaged, report.kept) == (False, NUM_ITEMS - 1)
    assert (tmp_path / "a" / database.FILE_NAME).read_bytes() == before


def test_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index in"):
        repair_index(tmp_path)
    (tmp_path / database.FILE_NAME).write_bytes(b"no database " * 5000)
    with pytest.raises(DataError, match=r"nothing of the index .* is whole"):
        repair_index(tmp_path)
    assert (tmp_path / database.FILE_NAME).read_bytes() == b"no database " * 5000


def test_indexing_the_files_again_makes_a_repaired_index_complete(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures", 40)
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, ColourHistogram(), pictures)
        vectors = index.vectors(index.ids()[3:5]).astype("<f2")
        hashes = [one.content_hash for one in index.items()]
    file = tmp_path / "index" / database.FILE_NAME
    content = bytearray(file.read_bytes())
    for trace in (vectors[0].tobytes(), vectors[1].tobytes(), hashes[20].encode()):
        content[content.index(trace) + 5] ^= 1
    file.write_bytes(content)
    report = repair_index(tmp_path / "index")
    assert (report.kept, report.lost, report.without_vector) == (39, 1, 2)
    with Index.open(tmp_path / "index") as index:
        update = update_index(index, ColourHistogram(), pictures)
        assert (update.added, update.changed, update.unchanged) == (1, 2, 37)
    assert_complete(tmp_path / "index", pictures)


def test_a_killed_repair_is_run_again(closed: Path, tmp_path: Path) -> None:
    whole = (closed / database.FILE_NAME).read_bytes()
    chance = random.Random(6)
    for _ in range(4):
        directory = tmp_path / "a"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(closed, directory)
        (directory / database.FILE_NAME).write_bytes(bytes(100) + whole[100:])
        with worker("repair", directory) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        assert repair_index(directory).kept == NUM_ITEMS - 1
        assert held(directory) == held(closed)
        names = [path.name for path in directory.iterdir() if path.is_dir()]
        assert all(name.startswith("damaged-") for name in names)
