"""Laws: a kill at any statement of any change leaves the state before it or after it; an error of
the disk is told and costs nothing that was stored."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_worker import DIM, ColourHistogram, unit
from numpy.typing import NDArray

from costream.errors import DataError
from costream.index import Index, Item, database
from costream.records import Space

SPACE = ColourHistogram.space
OTHER = Space(encoder="other", weights_hash="w", preprocessing_hash="p", dim=DIM)
VECTORS: NDArray[np.float32] = unit(np.random.default_rng(0), 30, DIM)
ITEMS = [Item(id=f"item{n}", content_hash=f"hash{n}", caption=f"word{n}") for n in range(30)]


def state(index: Index) -> tuple[Any, ...]:
    ids = index.ids()
    stored = index.all_vectors(ids).tobytes() if ids else b""
    words = [index.search_text(item.caption, 99).ids for item in ITEMS]
    return index.items(), stored, index.spaces(), words


def grown(directory: Path) -> Path:
    with Index.open(directory, create=True) as index:
        index.add(ITEMS[:20], VECTORS[:20], SPACE)
        index.begin_space(OTHER)
        index.fill_space(ITEMS[:15], VECTORS[:15], OTHER)
    return directory


CHANGES: dict[str, Callable[[Index], Any]] = {
    "add": lambda index: index.add(ITEMS[15:25], -VECTORS[15:25], SPACE),
    "remove": lambda index: index.remove([item.id for item in ITEMS[:7]]),
    "reuse": lambda index: index.reuse(
        [replace(ITEMS[1], id="moved")], remove=[ITEMS[1].id, ITEMS[2].id]
    ),
    "touch": lambda index: index.touch([replace(item, mtime_ns=9) for item in ITEMS[:5]]),
    "fill_space": lambda index: index.fill_space(ITEMS[15:20], VECTORS[15:20], OTHER),
    "switch_space": lambda index: index.switch_space(OTHER, allow_missing=True),
    "drop_space": lambda index: index.drop_space(OTHER),
    "forget": lambda index: index.forget([ITEMS[3].id]),
}


def killed_at(directory: Path, change: Callable[[Index], Any], statement: int) -> bool:
    """Make a change in a process of its own that is killed before a statement.

    Returns:
        Whether it was; not when the change has fewer statements.
    """
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            index = Index.open(directory)
            left = statement

            def count(_: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            index._session.connection().set_trace_callback(count)
            change(index)
            index._session.connection().set_trace_callback(None)
            index.close()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_at_statements(change: str, tmp_path: Path, step: int) -> None:
    sound = grown(tmp_path / "sound")
    shutil.copytree(sound, tmp_path / "after")
    with Index.open(sound) as index:
        before = state(index)
    with Index.open(tmp_path / "after") as index:
        CHANGES[change](index)
        after = state(index)
    assert before != after
    seen = set()
    statement = 0
    while True:
        directory = tmp_path / "killed"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(sound, directory)
        if not killed_at(directory, CHANGES[change], statement):
            break
        with Index.open(directory) as index:
            assert index.check() == ()
            got = state(index)
            assert got in (before, after), statement
            seen.add(got == after)
            if got == before:
                CHANGES[change](index)  # run again, it ends as if nothing had been
                assert state(index) == after
        statement += step
    assert statement > 3
    assert False in seen


@pytest.mark.parametrize("change", ["add", "reuse", "forget"])
def test_a_kill_at_some_statements_of_a_change(change: str, tmp_path: Path) -> None:
    kill_at_statements(change, tmp_path, step=7)


@pytest.mark.soak
@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_every_statement_of_a_change(change: str, tmp_path: Path) -> None:
    kill_at_statements(change, tmp_path, step=1)


# --- locks and forks ---


def test_the_lock_of_a_killed_writer_is_gone_with_it(tmp_path: Path) -> None:
    directory = grown(tmp_path / "index")
    child = os.fork()
    if child == 0:
        hog = sqlite3.connect(directory / database.FILE_NAME, isolation_level=None)
        hog.execute("BEGIN IMMEDIATE")
        hog.execute("DELETE FROM items")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    start = time.monotonic()
    with Index.open(directory) as index:
        index.add(ITEMS[20:], VECTORS[20:], SPACE)
        assert len(index) == 30
    assert time.monotonic() - start < database.BUSY_TIMEOUT_S / 2


def test_a_real_fork_is_told_to_open_its_own_and_the_parent_goes_on(tmp_path: Path) -> None:
    with Index.open(grown(tmp_path / "index")) as index:
        child = os.fork()
        if child == 0:
            try:
                len(index)
            except DataError as error:
                os._exit(7 if "open the index again in this process" in str(error) else 8)
            os._exit(9)
        _, status = os.waitpid(child, 0)
        assert os.WEXITSTATUS(status) == 7
        index.add(ITEMS[20:], VECTORS[20:], SPACE)
        assert len(index) == 30
        assert index.check() == ()


# --- a failing disk ---


@contextlib.contextmanager
def failing(path: Path, flags: int) -> Any:
    """The open file fails: what it leads to can be opened, but not be read, or not be written."""
    wanted = path.stat()
    hit = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found = os.fstat(int(entry.name))
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                hit.append(int(entry.name))
    assert hit
    kept = [(number, os.dup(number)) for number in hit]
    other = os.open(path, flags)
    try:
        for number in hit:
            os.dup2(other, number)
        yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(other)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the list of open files")
def test_a_disk_that_fails_while_writing_is_told_and_nothing_stored_is_lost(
    tmp_path: Path,
) -> None:
    directory = grown(tmp_path / "index")
    with Index.open(directory) as index:
        index.add(ITEMS[20:21], VECTORS[20:21], SPACE)
        with (
            failing(directory / f"{database.FILE_NAME}-wal", os.O_RDONLY),
            pytest.raises(DataError, match=r"cannot write .*disk I/O error.*stored before is int"),
        ):
            index.add(ITEMS[21:], VECTORS[21:], SPACE)
    with Index.open(directory) as index:
        assert len(index) == 21
        assert index.check() == ()
        index.add(ITEMS[21:], VECTORS[21:], SPACE)
        assert len(index) == 30


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the list of open files")
def test_a_disk_that_fails_while_reading_is_told(tmp_path: Path) -> None:
    directory = grown(tmp_path / "index")
    with Index.open(directory) as index:
        index._session.connection().execute("PRAGMA cache_size = 1")
        with (
            failing(directory / database.FILE_NAME, os.O_WRONLY),
            pytest.raises(DataError, match=r"cannot read .*disk I/O error"),
        ):
            for _ in range(3):
                index.items()
                index.all_vectors(index.ids())
    with Index.open(directory) as index:
        assert len(index) == 20
        assert index.check() == ()


# --- odd ids ---


def test_ids_of_every_kind_and_length(tmp_path: Path) -> None:
    ids = ["x" * 1_000_000, "\0", "a\nb", "é", "e\u0301", "\udcff", "🐕" * 500, " ", "'; DROP--"]
    items = [Item(id=item_id, caption=item_id[:10].replace("\udcff", "?")) for item_id in ids]
    with Index.open(tmp_path, create=True) as index:
        index.add(items, VECTORS[: len(ids)], SPACE)
        assert set(index.ids()) == set(ids)
        assert index.get(ids) == items
        for row, item_id in enumerate(ids):
            assert index.search(VECTORS[row][None], SPACE, 1).ids == ((item_id,),)
        assert index.remove(ids[:3]) == 3
        assert index.check() == ()


# --- a loss of power while the log is written back ---


def test_any_part_of_a_log_may_have_been_written_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sectors reach the disk in any order; the log is on it whole before the first of them."""
    monkeypatch.setattr(database, "_LOG_BYTES", (2**26, 2**26))
    live = tmp_path / "live"
    with Index.open(live, create=True) as index:
        index.add(ITEMS[:10], VECTORS[:10], SPACE)
        index._session.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        old = (live / database.FILE_NAME).read_bytes()
        index.add(ITEMS, -VECTORS, SPACE)
        index.remove([ITEMS[0].id])
        log = (live / f"{database.FILE_NAME}-wal").read_bytes()
        want = state(index)
    new = (live / database.FILE_NAME).read_bytes()
    assert old != new
    rng = np.random.default_rng(2)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0, *rng.random(10)):
        size = int(rng.integers(len(old), len(new) + 1)) // 512 * 512
        mixed = bytearray(new[:size])
        for start in range(0, size, 512):
            if rng.random() > share:
                mixed[start : start + 512] = old[start : start + 512].ljust(512, b"\0")
        cut = tmp_path / "cut"
        shutil.rmtree(cut, ignore_errors=True)
        cut.mkdir()
        (cut / database.FILE_NAME).write_bytes(mixed)
        (cut / f"{database.FILE_NAME}-wal").write_bytes(log)
        with Index.open(cut) as index:
            assert index.check() == ()
            assert state(index) == want
