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
from costream.index import migration, schema
from costream.index.schema import FORMAT, DamageError

FILE_NAME = "index.sqlite"
# How long one process waits for another that is writing.
BUSY_TIMEOUT_S = 60.0
# Marks an SQLite file as an index ("cost" in ASCII).
_APPLICATION_ID = 0x636F7374
_MAGIC = b"SQLite format 3\x00"
_REBUILD = (
    "restore it from a backup, or delete the directory and index the files again; costream index "
    "repair saves what is whole"
)

# Pages held in memory: ids arrive in any order, and each is looked up in the tree of ids.
_CACHE_KIB = 64 * 1024
# The log is written back when it has this share of the database, within bounds.
_LOG_SHARE = 4
_LOG_BYTES = (2**20, 2**26)
# Unused pages are returned when they are more than this share of all, except for so many.
_FREE_SHARE = 4
_FREE_PAGES = 16
_SIZES = (
    "SELECT freelist_count, page_count, page_size "
    "FROM pragma_freelist_count, pragma_page_count, pragma_page_size"
)


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
            version = _check_format(connection, path)
            _configure(connection, path, read_only)
            if version < FORMAT:
                _bring_up(connection, path, read_only)
            schema.read_state(connection)
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
    if directory.is_file():
        raise DataError(
            f"{_name(directory)} is a file, expected the folder of an index",
            hint="give an index a name of its own",
        )
    with explained(path, "make"):
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f"{FILE_NAME}.{os.getpid()}-{os.urandom(4).hex()}.new"
        try:
            connection = sqlite3.connect(draft, isolation_level=None)
            try:
                make_tables(connection)
            finally:
                connection.close()
            publish(draft, path)
        finally:
            for suffix in ("", "-wal", "-shm"):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def make_tables(connection: sqlite3.Connection) -> None:
    """Turn an empty database into an empty index."""
    # Both before the first table, after which they cannot change.
    connection.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.executescript(f"BEGIN; {schema.SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
    schema.begin_history(connection, schema.State())


def publish(draft: Path, path: Path) -> None:
    """Give a whole database its name, unless there is one of that name."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return  # another process made the index meanwhile
    except OSError:
        # A file system without hard links. Two processes that make the same new index within the
        # same instant could here replace each other's, still empty, database.
        if not path.exists():
            draft.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make durable which files there are in a directory."""
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


def _check_format(connection: sqlite3.Connection, path: Path) -> int:
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
    return int(version)


def _bring_up(connection: sqlite3.Connection, path: Path, read_only: bool) -> None:
    """Convert an index of an earlier format."""
    if read_only:
        raise DataError(
            f"{_name(path)} has an earlier format, which has to be converted to format {FORMAT}, "
            "and you may not write to it",
            hint="open it once with write permission, or copy it and open the copy",
        )
    migration.migrate(connection)


def _configure(connection: sqlite3.Connection, path: Path, read_only: bool) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    if read_only:
        return
    connection.execute("PRAGMA synchronous = FULL")
    # On macOS fsync does not reach the disk without these; elsewhere they do nothing.
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    # What is removed is overwritten, not only given up.
    connection.execute("PRAGMA secure_delete = ON")
    keep_small(connection, path)


def keep_small(connection: sqlite3.Connection, path: Path, bound: int = 0) -> int:
    """Keep the log small beside the database, and return unused pages when they are many.

    To be called after each change, outside of transactions.

    Args:
        connection: To an index that can be written.
        path: The database.
        bound: What the last call gave.

    Returns:
        Pages that the log may have.
    """
    num_free, num_pages, page_bytes = connection.execute(_SIZES).fetchone()
    if num_free > max(num_pages // _FREE_SHARE, _FREE_PAGES):
        # `execute` would return after the first page. An index of an earlier format keeps them.
        connection.executescript(f"PRAGMA incremental_vacuum({num_free - _FREE_PAGES})")
        num_pages -= num_free - _FREE_PAGES
    least, most = (size // page_bytes for size in _LOG_BYTES)
    wanted = int(min(max(num_pages // _LOG_SHARE, least), most))
    if wanted != bound:
        connection.execute(f"PRAGMA wal_autocheckpoint = {wanted}")
    # A change can be larger than that; its log stays until there is a next one, or is cut off here.
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size > 2 * wanted * page_bytes:
        connection.execute("PRAGMA busy_timeout = 0")  # readers may need it still: another time
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    return wanted


def _name(path: Path) -> str:
    """A path as it can be printed on one line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\n").replace("\r", "\\r")
