"""The SQLite file behind an index: made, opened, checked, and its errors put into words.

SQLite runs with a write-ahead log and `synchronous=FULL`: what was committed survives a kill of the
process and a loss of power.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from costream.errors import CostreamError, DataError
from costream.index import rows
from costream.index.rows import DamageError

FILE_NAME = "index.sqlite"
FORMAT = 1
# How long one process waits for another that is writing.
BUSY_TIMEOUT_S = 60.0
# Marks an SQLite file as an index ("cost" in ASCII).
_APPLICATION_ID = 0x636F7374
_MAGIC = b"SQLite format 3\x00"
_REBUILD = "restore it from a backup, or delete the directory and index the files again"

# `vectors` is apart from `items` so that looking through names and dates does not read vectors.
# Ids are the UTF-8 bytes of the string, with undecodable bytes of file names as they were; paths
# are the bytes of the file system. SQLite does not notice a flipped bit within a value, so every
# row has a checksum. `state.token` is new after every change of ids or vectors.
_SCHEMA = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    token BLOB NOT NULL,
    num_items INTEGER NOT NULL,
    space TEXT,
    crc INTEGER NOT NULL
);
CREATE TABLE items (
    key INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    path BLOB,
    content_hash TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    meta TEXT NOT NULL,
    crc INTEGER NOT NULL
);
CREATE INDEX items_by_content ON items (content_hash);
CREATE TABLE vectors (
    key INTEGER PRIMARY KEY REFERENCES items (key) ON DELETE CASCADE,
    vector BLOB NOT NULL,
    crc INTEGER NOT NULL
);
"""


def open_database(directory: Path, *, create: bool) -> tuple[sqlite3.Connection, bool]:
    """Open the database of an index.

    Args:
        directory: Folder of the index.
        create: Whether to make the folder and an empty database when there is none.

    Returns:
        The connection, in autocommit mode, and whether it can only be read.

    Raises:
        DataError: There is no index, it is damaged, made by a newer version or no index at all,
            or it cannot be read or made.
    """
    path = directory / FILE_NAME
    if not os.path.lexists(path):
        _refuse_orphaned_log(path)
        if not create:
            raise DataError(
                f"no index in {_name(directory)} (no {FILE_NAME} there)",
                hint=f"make one: costream index PICTURES --index {_name(directory)}",
            )
        _create(directory, path)
    with explained(path, "open"):
        _check_whole(path)
        connection, read_only = _connect(path)
        try:
            _check_format(connection, path)
            _configure(connection, read_only)
        except BaseException:
            connection.close()
            raise
    return connection, read_only


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into ours.

    Args:
        path: The database.
        doing: Verb for the message ("open", "write").

    Raises:
        DataError: With the reason and what to do.
    """
    try:
        yield
    except DamageError as error:
        raise damaged(path, str(error)) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes a damaged name
        raise damaged(path, "its table of contents is not what was written") from error
    except sqlite3.Error as error:
        raise _in_words(error, path, doing) from error
    except OSError as error:
        raise DataError(
            f"cannot {doing} {_name(path)}: {error.strerror or error}",
            hint="check the directory, its permissions and the free space",
        ) from error


def _in_words(error: sqlite3.Error, path: Path, doing: str) -> CostreamError:
    # The extended code's low byte is the kind of the error.
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    got = f"cannot {doing} {_name(path)}: {error}"
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        hint = "free some space on that disk or check it; everything stored before is intact"
        return DataError(got, hint=hint)
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        waited = f"another process kept writing to it for {BUSY_TIMEOUT_S:g} s"
        return DataError(f"{got}; {waited}", hint="wait for that process and try again")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        hint = "check that you may write to the directory and its files, or name another index"
        return DataError(got, hint=hint)
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    return DataError(got, hint="run `costream doctor` and check the index directory")


def damaged(path: Path, what: str) -> DataError:
    """The error for an index whose files are not as they were written."""
    return DataError(f"the index {_name(path)} is damaged: {what}", hint=_REBUILD)


def _refuse_orphaned_log(path: Path) -> None:
    """A log without its database would be replayed into the next database of that name."""
    for suffix in ("-wal", "-journal"):
        log = path.with_name(path.name + suffix)
        if log.exists() and log.stat().st_size:
            raise damaged(path, f"{log.name} is there and {path.name} is not")


def _create(directory: Path, path: Path) -> None:
    """Make an empty database that appears under its name only when it is complete.

    A process killed meanwhile leaves no half-made index, and of two processes one wins.
    """
    with explained(path, "make"):
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f"{FILE_NAME}.{os.getpid()}-{os.urandom(4).hex()}.new"
        try:
            connection = sqlite3.connect(draft, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
                rows.write_state(connection, rows.State(num_items=0, space=None))
            finally:
                connection.close()
            _publish(draft, path)
        finally:
            for suffix in ("", "-wal", "-shm"):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)
        _sync_directory(directory)


def _publish(draft: Path, path: Path) -> None:
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return  # another process made the index meanwhile
    except OSError:
        # A file system without hard links. Two processes that make the same new index within the
        # same instant could here replace each other's, still empty, database.
        if not path.exists():
            draft.replace(path)


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_whole(path: Path) -> None:
    """Refuse an empty, foreign or truncated file; SQLite takes an empty one for a new database."""
    for attempt in range(4):
        with path.open("rb") as stream:
            header = stream.read(100)
            size = os.fstat(stream.fileno()).st_size
        if not size:
            raise damaged(path, "the file is empty (0 bytes)")
        if not header.startswith(_MAGIC) or size < 512:
            raise damaged(path, "the file is not an SQLite database")
        # Byte 16: page size, 1 standing for 65,536. Byte 28: number of pages.
        page_bytes = int.from_bytes(header[16:18], "big")
        wanted = int.from_bytes(header[28:32], "big") * (65536 if page_bytes == 1 else page_bytes)
        log = path.with_name(path.name + "-wal")
        if size >= wanted or (log.exists() and log.stat().st_size):
            return  # with a log present SQLite itself knows which pages there must be
        if attempt < 3:
            time.sleep(0.05)  # another process may be writing its log back right now
    raise damaged(path, f"the file has {size:,} bytes, expected {wanted:,}")


def _connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    if writable:
        mode = "mode=rw"
    elif path.with_name(path.name + "-wal").exists():
        mode = "mode=ro"
    else:
        # Without a log nobody is writing now, and in a read-only directory SQLite could not make
        # the files that it shares with writers.
        mode = "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,  # `Index` holds a lock
    )
    return connection, not writable


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise DataError(
            f"{_name(path)} is an SQLite database but not an index of costream",
            hint="name another directory with --index",
        )
    if version > FORMAT:
        raise DataError(
            f"{_name(path)} has format {version}, this version of costream reads up to {FORMAT}",
            hint="pip install --upgrade costream",
        )
    if version < 1:
        raise damaged(path, f"it says that its format is {version}")
    rows.read_state(connection)


def _configure(connection: sqlite3.Connection, read_only: bool) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    if read_only:
        return
    connection.execute("PRAGMA synchronous = FULL")
    # On macOS fsync does not reach the disk without these; elsewhere they do nothing.
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA checkpoint_fullfsync = ON")


def _name(path: Path) -> str:
    """A path as it can be printed on one line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\n").replace("\r", "\\r")
