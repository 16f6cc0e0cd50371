"""Copies of an index for bad days: made while others write, checked, and put back.

A backup is an index of its own, which can be searched. It appears under its name only when it is
whole; what a killed process leaves is no index and does no harm.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from costream.errors import DataError
from costream.index import codes, database, integrity, schema
from costream.index.database import FILE_NAME
from costream.index.session import Session

_DRAFT = "draft-"


def backup_index(directory: Path, target: Path) -> int:
    """Copy an index as it is at one moment, while others go on reading and writing.

    Args:
        directory: Of the index.
        target: A folder, made if need be, in which there is no index.

    Returns:
        How many items the copy holds.

    Raises:
        DataError: There is an index in the target, the index is absent or damaged, or a file
            cannot be read or written.
    """
    if os.path.lexists(target / FILE_NAME):
        raise DataError(
            f"there is an index in {target} already, expected a folder without one",
            hint="name a new folder for each backup, such as one with the date in its name",
        )
    with copied(directory, target) as draft:
        num_items = check_copy(draft, directory)
        with database.explained(target / FILE_NAME, "write"):
            database.publish(draft / FILE_NAME, target / FILE_NAME)
    return num_items


def restore_index(source: Path, directory: Path, *, replace: bool = False) -> int:
    """Put a backup, or any other index in a folder, in the place of an index.

    Processes that have the index open go on with the restored one.

    Args:
        source: Folder of the backup; it is only read.
        directory: Where to; made if need be.
        replace: Whether an index that is there is given up.

    Returns:
        How many items were restored.

    Raises:
        DataError: There is an index and it is not to be replaced, the backup is absent or damaged,
            or a file cannot be written. What was there is still there then.
    """
    if not replace and os.path.lexists(directory / FILE_NAME):
        raise DataError(
            f"there is an index in {directory}, expected none where a backup is restored",
            hint="--replace gives that one up for the backup; --index names another folder",
        )
    if directory.absolute() == source.absolute():
        raise DataError(f"got {source} as backup and as index, expected two folders")
    with copied(source, directory) as draft:
        num_items = check_copy(draft, source)
        put_in_place(draft / FILE_NAME, directory)
    return num_items


@contextlib.contextmanager
def copied(source: Path, target: Path) -> Iterator[Path]:
    """A copy of an index as it is at one moment, in a folder inside another, for a while.

    Args:
        source: Folder of the index.
        target: A folder, made if need be; what killed processes left there is cleared away.
    """
    connection, _ = database.open_database(source, create=False)
    with contextlib.closing(connection), drafted(target) as draft:
        with (
            database.explained(target / FILE_NAME, "write"),
            contextlib.closing(sqlite3.connect(draft / FILE_NAME)) as fresh,
        ):
            # All pages in one step: a reader of this log keeps no writer waiting.
            connection.backup(fresh)
        yield draft


@contextlib.contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """An empty folder inside another, for a while."""
    draft = target / f"{_DRAFT}{os.getpid()}-{os.urandom(4).hex()}"
    with database.explained(target, "write"):
        clear_drafts(target)
        draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def clear_drafts(target: Path) -> None:
    """Remove what killed processes left in a folder."""
    for left in target.glob(f"{_DRAFT}*"):
        if not _is_running(left):
            shutil.rmtree(left, ignore_errors=True)


def check_copy(draft: Path, source: Path) -> int:
    """Read a whole copy; gives the number of its items.

    Raises:
        DataError: It is not as it was written.
    """
    session = Session(draft, create=False)
    try:
        wrong = integrity.problems(session)
        if wrong:
            raise DataError(
                f"the index {source} is damaged: {wrong[0]}",
                hint=f"costream index repair --index {source} saves what is whole",
            )
        with session.reading() as connection:
            return schema.read_state(connection).num_items
    finally:
        session.close()


def put_in_place(database_file: Path, directory: Path) -> None:
    """Make a whole database that of an index, in one step, whatever was there.

    Raises:
        DataError: It cannot be written; what was there is still there.
    """
    path = directory / FILE_NAME
    with database.explained(path, "replace"):
        if not (os.path.lexists(path) and _overwritten(database_file, path)):
            _set_aside(directory)
            os.replace(database_file, path)  # noqa: PTH105
            database.sync_directory(directory)
        codes.remove_all(directory)


def _overwritten(database_file: Path, path: Path) -> bool:
    """Write over a database through SQLite, so that those who have it open notice.

    Returns:
        Whether that was possible; not when SQLite cannot make out what is there.

    Raises:
        DataError: Another process keeps it from being written.
    """
    if not path.stat().st_size:
        return False  # SQLite would wait for ever for those who had it open when it was whole
    deadline = time.monotonic() + database.BUSY_TIMEOUT_S

    def wait(status: int, _: int, __: int) -> None:
        if status != sqlite3.SQLITE_DONE and time.monotonic() > deadline:
            raise DataError(
                f"cannot replace {path}: another process kept it locked for "
                f"{database.BUSY_TIMEOUT_S:g} s",
                hint="end the processes that use the index and run it again",
            )

    with (
        contextlib.closing(sqlite3.connect(database_file)) as fresh,
        contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)
        ) as there,
    ):
        there.execute(f"PRAGMA busy_timeout = {int(database.BUSY_TIMEOUT_S * 1000)}")
        try:
            fresh.backup(there, progress=wait)
        except sqlite3.DatabaseError as error:
            kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
            # "Read-only" is what SQLite says of pages of another size.
            if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY):
                return False
            raise
        there.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return True


def _set_aside(directory: Path) -> None:
    """Make room for another database; of one that cannot be opened a copy is kept.

    The log goes first: a log beside a database that it does not belong to would spoil it.
    """
    path = directory / FILE_NAME
    files = [path.with_name(f"{FILE_NAME}{suffix}") for suffix in ("-wal", "-shm", "-journal")]
    if not any(os.path.lexists(file) for file in (path, *files)):
        return
    aside = directory / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    aside.mkdir(exist_ok=True)
    for file in files:
        if file.exists():
            file.replace(aside / file.name)
    if path.exists():
        shutil.copy2(path, aside / FILE_NAME)


def _is_running(draft: Path) -> bool:
    """Whether the process that made a folder for its draft is at work still."""
    try:
        os.kill(int(draft.name.removeprefix(_DRAFT).partition("-")[0]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True
