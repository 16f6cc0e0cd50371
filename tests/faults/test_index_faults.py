"""Laws: what was acknowledged is there; what is damaged is told; no answer is ever wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_worker import DIM, WIDE, ColourHistogram, steps, unit
from numpy.typing import NDArray
from PIL import Image

from costream.errors import CostreamError, DataError
from costream.index import Filter, Index, Item, codes, database, resident, update_index
from costream.index.schema import PAGE_BYTES

WORKER = Path(__file__).with_name("index_worker.py")
SPACE = ColourHistogram.space
PATIENCE_S = 600


@contextmanager
def worker(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A real process of its own, killed at the end whatever happens."""
    import costream.errors

    source = str(Path(costream.errors.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def run_worker(*arguments: object) -> Any:
    """Run to the end; the last line that it said, as JSON."""
    with worker(*arguments) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])


def draw_pictures(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(number):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:03d}.png")
        os.utime(folder / f"{seed:03d}.png", ns=(10**18, 10**18))
    return folder


def assert_complete(directory: Path, pictures: Path) -> None:
    """The index holds every picture with the vector that the encoder gives for it."""
    paths = sorted(pictures.glob("*.png"))
    want = ColourHistogram().encode_images([Image.open(path) for path in paths])
    with Index.open(directory) as index:
        assert index.ids() == [str(path) for path in paths]
        assert (index.vectors(index.ids()) == want.astype(np.float16)).all()
        assert index.check() == ()


# --- killed ---


def state_after(seed: int, number: int) -> dict[str, bytes]:
    """What an index holds after so many steps: id to float16 vector."""
    held: dict[str, bytes] = {}
    for verb, ids, vectors in islice(steps(seed), number):
        if verb == "add":
            held.update((i, v.astype("<f2").tobytes()) for i, v in zip(ids, vectors, strict=True))
        else:
            for item_id in ids:
                held.pop(item_id, None)
    return held


def kill_while_changing(directory: Path, seed: int, delay_s: float) -> int:
    """Kill the worker; returns how many steps it had acknowledged."""
    with worker("churn", directory, seed) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # it is at work now
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        # Not communicate(): it would pass over what readline() has buffered.
        rest = process.stdout.read()
    return int((first + rest).split()[-1])


def check_after_kill(directory: Path, seed: int, acknowledged: int) -> None:
    with Index.open(directory) as index:
        assert index.check() == ()
        ids = index.ids()
        held = dict(zip(ids, map(bytes, index.vectors(ids).astype("<f2")), strict=True))
        # The step in the making may have become durable before it could be acknowledged.
        assert held in (state_after(seed, acknowledged), state_after(seed, acknowledged + 1))
        if ids:
            query = index.vectors([ids[0]])
            assert ids[0] in index.search(query, SPACE, len(ids)).ids[0]


def rounds_of_killed_changes(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(1)
    for seed in range(rounds):
        directory = tmp_path / f"index{seed}"
        acknowledged = kill_while_changing(directory, seed, chance.uniform(0, 0.3))
        check_after_kill(directory, seed, acknowledged)
        shutil.rmtree(directory)


def test_a_kill_loses_no_acknowledged_change(tmp_path: Path) -> None:
    rounds_of_killed_changes(tmp_path, 5)


@pytest.mark.soak
def test_a_hundred_kills_lose_no_acknowledged_change(tmp_path: Path) -> None:
    rounds_of_killed_changes(tmp_path, 100)


def stop_while_indexing(
    directory: Path, pictures: Path, log: Path, delay_s: float, how: signal.Signals
) -> int:
    """Stop the worker; returns the number of files that it had said to be dealt with."""
    with worker("update", directory, pictures, log, 0.01) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(delay_s)
        process.send_signal(how)
        rest = process.stdout.read()
    done = [int(line) for line in rest.split() if line.isdigit()]
    return done[-1] if done else 0


def rounds_of_stopped_indexing(
    tmp_path: Path, rounds: int, how: signal.Signals = signal.SIGKILL
) -> None:
    pictures = draw_pictures(tmp_path / "pictures", 60)
    chance = random.Random(2)
    directory, log = tmp_path / "index", tmp_path / "log"
    log.touch()
    for _ in range(rounds):
        stored = 0
        if (directory / "index.sqlite").exists():
            with Index.open(directory) as index:
                stored = len(index)
            if stored == 60:
                shutil.rmtree(directory)
                stored = 0
        seen = len(log.read_text())
        delay_s = chance.uniform(0, 0.12)
        done = stop_while_indexing(directory, pictures, log, delay_s, how)
        embedded = len(log.read_text()) - seen
        with Index.open(directory) as index:
            assert len(index) >= done
            # Embedded and not stored: no more than the batch in the making.
            assert len(index) - stored <= embedded <= len(index) - stored + 4
            assert index.check() == ()
            missing = 60 - len(index)
    with Index.open(directory) as index:
        model = ColourHistogram()
        assert update_index(index, model, pictures).added == missing
        assert model.num_seen == missing
    assert_complete(directory, pictures)


def test_a_kill_while_indexing_costs_one_batch_at_most(tmp_path: Path) -> None:
    rounds_of_stopped_indexing(tmp_path, 5)


@pytest.mark.soak
def test_a_hundred_kills_while_indexing(tmp_path: Path) -> None:
    rounds_of_stopped_indexing(tmp_path, 100)


def test_an_interrupt_while_indexing_ends_cleanly(tmp_path: Path) -> None:
    rounds_of_stopped_indexing(tmp_path, 2, signal.SIGINT)


def test_leftovers_of_a_killed_creation_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite.77-00ff00ff.new").write_bytes(b"SQLite format 3\0 half")
    (tmp_path / "index.sqlite.77-00ff00ff.new-wal").write_bytes(b"half")
    with Index.open(tmp_path, create=True) as index:
        assert len(index) == 0


# --- several processes ---


def test_two_processes_index_the_same_pictures_at_once(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures", 40)
    arguments = ("update", tmp_path / "index", pictures, tmp_path / "log", 0)
    with worker(*arguments) as first, worker(*arguments) as second:
        for process in (first, second):
            out, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, err
            assert out.endswith("end\n")
    assert_complete(tmp_path / "index", pictures)


def test_a_reader_sees_whole_states_while_another_process_writes(tmp_path: Path) -> None:
    with worker("churn", tmp_path, 5) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Index.open(tmp_path) as index:
            query = unit(np.random.default_rng(0), 1, DIM)
            for _ in range(50):
                (found,) = index.search(query, SPACE, 1000).ids
                assert len(set(found)) == len(found)


def test_a_writer_that_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Index.open(tmp_path, create=True).close()
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    hog = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    with Index.open(tmp_path) as index:
        with pytest.raises(DataError, match="another process kept writing"):
            index.add([Item(id="a")], unit(np.random.default_rng(0), 1, DIM), SPACE)
        assert len(index) == 0  # reading goes on
        hog.execute("ROLLBACK")
        index.add([Item(id="a")], unit(np.random.default_rng(0), 1, DIM), SPACE)
    hog.close()


# --- no space, no permission ---


def refused_for_space(answer: list[Any]) -> None:
    added, kind, message, num_items, num_found = answer
    assert kind == "DataError"
    assert "free some space" in message
    assert num_items == added > 0
    assert num_found == 3


def test_a_file_size_limit_is_told_and_the_store_opens_afterwards(tmp_path: Path) -> None:
    answer = run_worker("fill", tmp_path, 300_000)
    refused_for_space(answer)
    with Index.open(tmp_path) as index:
        assert len(index) == answer[0]
        assert index.check() == ()
        index.add([Item(id="more")], unit(np.random.default_rng(1), 1, WIDE.dim), WIDE)


def test_a_full_disk_is_told_and_the_store_opens_afterwards(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may not mount a small disk")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(300_000))
        answer = run_worker("fill", disk / "index", 0)
        refused_for_space(answer)
        ballast.unlink()
        with Index.open(disk / "index") as index:
            assert len(index) == answer[0]
            assert index.check() == ()
            index.add([Item(id="more")], unit(np.random.default_rng(1), 1, WIDE.dim), WIDE)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o777)
        yield folder
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if stat.S_ISDIR(path.lstat().st_mode) else 0o666)


def test_pictures_without_permission_are_listed(open_folder: Path) -> None:
    pictures = draw_pictures(open_folder / "pictures", 3)
    (pictures / "001.png").chmod(0)
    (pictures / "closed").mkdir(mode=0)
    added, failures = run_worker("as_nobody", open_folder / "index", pictures, "index")
    assert added == 2
    assert sorted(path for path, _ in failures) == [
        str(pictures / "001.png"),
        str(pictures / "closed"),
    ]
    assert all("ermission" in reason for _, reason in failures)


def test_a_read_only_index_can_be_searched_and_says_that_it_cannot_be_written(
    open_folder: Path,
) -> None:
    pictures = draw_pictures(open_folder / "pictures", 3)
    directory = open_folder / "index"
    with Index.open(directory, create=True) as index:
        update_index(index, ColourHistogram(), pictures)
    (directory / "index.sqlite").chmod(0o444)
    directory.chmod(0o555)
    found, kind, message = run_worker("as_nobody", directory, pictures, "search")
    assert (found, kind) == (3, "DataError")
    assert "you have no permission; check that you may write" in message


def test_no_index_can_be_made_in_a_read_only_folder(open_folder: Path) -> None:
    (open_folder / "closed").mkdir()
    (open_folder / "closed").chmod(0o555)
    kind, message = run_worker("as_nobody", open_folder / "closed" / "index", open_folder, "index")
    assert kind == "DataError"
    assert "cannot make" in message
    assert "check the directory" in message


# --- damaged ---

NUM_ITEMS = 120


def stored_items() -> tuple[list[Item], NDArray[np.float32]]:
    items = [
        Item(
            id=f"/pictures/{number:04d}.jpg",
            path=f"/pictures/{number:04d}.jpg",
            content_hash=f"{number:064x}",
            size=number,
            mtime_ns=number,
            meta={"number": number},
        )
        for number in range(NUM_ITEMS)
    ]
    return items, unit(np.random.default_rng(3), NUM_ITEMS, DIM)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with its derived file, closed."""
    directory = tmp_path_factory.mktemp("sound")
    patch = pytest.MonkeyPatch()
    patch.setattr(resident, "WORTH_A_FILE_BYTES", 1)
    with Index.open(directory, create=True) as index:
        items, vectors = stored_items()
        index.add(items, vectors, SPACE)
        index.load()
    patch.undo()
    return directory


def everything(directory: Path) -> tuple[Any, ...]:
    """All that an index can be asked."""
    with Index.open(directory, create=True) as index:
        query = unit(np.random.default_rng(4), 1, DIM)
        some = [f"/pictures/{number:04d}.jpg" for number in (0, 50, 119)]
        return (
            len(index),
            index.items(),
            index.get(some),
            index.vectors(index.ids()).tobytes(),
            index.search(query, SPACE, 5).ids,
            index.search(query, SPACE, 500).ids,
        )


def words_and_filters(directory: Path) -> None:
    """What is compared with no checksum: an answer or an error, but no crash."""
    with Index.open(directory, create=True) as index:
        index.search_text("0050 jpg", 500)
        index.matches(Filter(fields={"number": 50}))
        index.count(Filter(after=1.0))


def outcome(directory: Path) -> tuple[Any, ...] | DataError:
    """Everything, or the error; any other exception than ours fails the test."""
    try:
        words_and_filters(directory)
        return everything(directory)
    except DataError as error:
        return error


def spoilt(sound: Path, tmp_path: Path, content: bytes) -> Path:
    directory = tmp_path / "spoilt"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(sound, directory)
    (directory / "index.sqlite").write_bytes(content)
    return directory


@pytest.mark.parametrize("derived", [True, False])
def test_a_truncated_database_is_an_error_never_an_empty_index(
    sound: Path, tmp_path: Path, derived: bool
) -> None:
    whole = (sound / "index.sqlite").read_bytes()
    sizes = {0, 1, 16, 99, 100, 511, 512, len(whole) // 2, len(whole) - 1}
    for size in sorted(sizes | set(range(4096, len(whole), 4096))):
        directory = spoilt(sound, tmp_path, whole[:size])
        if not derived:
            shutil.rmtree(directory / codes.FOLDER)
        with pytest.raises(DataError, match=r"is damaged: .*restore it from a backup, or delete"):
            Index.open(directory, create=True)
        assert (directory / "index.sqlite").stat().st_size == size, "it was written over"


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8192, b"not a database " * 1000, b"SQLite format 3\0" + b"\0" * 8000]
)
def test_a_file_that_is_no_database_is_an_error(
    sound: Path, tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(DataError, match=r"is damaged: .*restore it from a backup"):
        Index.open(spoilt(sound, tmp_path, content), create=True)


def test_zeroed_pages_give_the_right_answer_or_an_error(sound: Path, tmp_path: Path) -> None:
    whole = (sound / "index.sqlite").read_bytes()
    want = everything(sound)
    num_errors = 0
    for start in range(0, len(whole), 4096):
        content = whole[:start] + bytes(4096) + whole[start + 4096 :]
        got = outcome(spoilt(sound, tmp_path, content))
        num_errors += isinstance(got, DataError)
        assert isinstance(got, DataError) or got == want
    assert num_errors > 15  # every tree has a page of its own, most of it free


def flipped_bits(sound: Path, tmp_path: Path, places: Iterator[int]) -> tuple[int, int]:
    whole = (sound / "index.sqlite").read_bytes()
    want = everything(sound)
    chance = random.Random(7)
    num_flips = num_errors = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << chance.randrange(8)
        got = outcome(spoilt(sound, tmp_path, bytes(content)))
        assert isinstance(got, DataError) or got == want, f"byte {place}"
        num_flips += 1
        num_errors += isinstance(got, DataError)
    return num_flips, num_errors


def test_a_flipped_bit_gives_the_right_answer_or_an_error(sound: Path, tmp_path: Path) -> None:
    size = (sound / "index.sqlite").stat().st_size
    chance = random.Random(8)
    places = [*range(0, 100, 3), *(chance.randrange(size) for _ in range(150))]
    num_flips, num_errors = flipped_bits(sound, tmp_path, iter(places))
    assert num_errors > num_flips / 12  # much of the file is free space


def test_a_flipped_bit_in_the_tree_of_ids_is_found(sound: Path, tmp_path: Path) -> None:
    """SQLite believes what its trees say: that an id leads to another item, or to none."""
    whole = (sound / "index.sqlite").read_bytes()
    connection = sqlite3.connect(sound / "index.sqlite")
    query = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_items_1'"
    ((page,),) = connection.execute(query).fetchall()
    connection.close()
    start, end = (page - 1) * PAGE_BYTES, page * PAGE_BYTES
    held = [place for place in range(start, end) if whole[place]]
    _, num_errors = flipped_bits(sound, tmp_path, iter(held[-200:] + held[::20]))
    assert num_errors > 10


def test_scores_of_words_that_are_no_numbers_are_found(sound: Path, tmp_path: Path) -> None:
    directory = tmp_path / "spoilt"
    shutil.copytree(sound, directory)
    connection = sqlite3.connect(directory / "index.sqlite")
    with connection:  # each item has no word, nor have they on average: 0 / 0
        connection.execute("UPDATE words_data SET block = x'7800000000' WHERE id = 1")
        connection.execute("UPDATE words_docsize SET sz = x'00000000'")
    connection.close()
    with Index.open(directory) as index, pytest.raises(DataError, match="lists of words"):
        index.search_text("0050 jpg", 10)


@pytest.mark.soak
def test_every_bytes_flipped_bit(sound: Path, tmp_path: Path) -> None:
    """Each byte that holds anything or lies beside one that does, and some of the free space."""
    whole = (sound / "index.sqlite").read_bytes()
    held = [n for n in range(len(whole)) if whole[max(n - 8, 0) : n + 9].strip(b"\0")]
    num_flips, _ = flipped_bits(sound, tmp_path, iter(sorted({*held, *range(0, len(whole), 64)})))
    assert num_flips > 40_000


def test_a_half_written_log_leaves_whole_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log cut at any byte, as by a loss of power: the batches before the cut, no half one."""
    monkeypatch.setattr(database, "_LOG_BYTES", (2**26, 2**26))  # all batches in one log
    live = tmp_path / "live"
    index = Index.open(live, create=True)
    items, vectors = stored_items()
    for start in range(0, NUM_ITEMS, 10):
        index.add(items[start : start + 10], vectors[start : start + 10], SPACE)
    database_bytes = (live / "index.sqlite").read_bytes()
    log = (live / "index.sqlite-wal").read_bytes()
    index.close()
    counts = []
    for size in [0, 10, 32, *range(56, len(log), max(len(log) // 40, 1)), len(log)]:
        cut = tmp_path / "cut"
        shutil.rmtree(cut, ignore_errors=True)
        cut.mkdir()
        (cut / "index.sqlite").write_bytes(database_bytes)
        (cut / "index.sqlite-wal").write_bytes(log[:size])
        with Index.open(cut) as again:
            assert again.check() == ()
            counts.append(len(again))
            assert again.items() == items[: len(again)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == NUM_ITEMS
    assert all(count % 10 == 0 for count in counts)


def test_a_log_without_its_database_is_not_replayed_into_a_new_one(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "live", create=True)
    items, vectors = stored_items()
    index.add(items, vectors, SPACE)
    (tmp_path / "orphan").mkdir()
    shutil.copy(tmp_path / "live" / "index.sqlite-wal", tmp_path / "orphan")
    index.close()
    with pytest.raises(DataError, match=r"index.sqlite-wal is there and index.sqlite is not"):
        Index.open(tmp_path / "orphan", create=True)


def test_every_error_of_this_page_says_what_to_do(sound: Path, tmp_path: Path) -> None:
    whole = (sound / "index.sqlite").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"text" * 500):
        with pytest.raises(CostreamError) as caught:
            Index.open(spoilt(sound, tmp_path, content))
        assert caught.value.hint
        assert str(tmp_path) in caught.value.message
