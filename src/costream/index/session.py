"""One opening of an index's database: its connection, its lock, its transactions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from costream.errors import DataError
from costream.index import database


class Session:
    """A connection that threads share, one at a time, and a fork may not use.

    Attributes:
        directory: Folder of the index.
        read_only: Whether it cannot be written.
        lock: Held during transactions; to be held by who needs several to belong together.
    """

    def __init__(self, directory: Path, *, create: bool) -> None:
        self.directory = directory
        self.lock = threading.RLock()
        self._process = os.getpid()
        self._log_pages = 0
        self._connection: sqlite3.Connection | None
        self._connection, self.read_only = database.open_database(directory, create=create)

    @property
    def path(self) -> Path:
        """The database."""
        return self.directory / database.FILE_NAME

    @property
    def is_open(self) -> bool:
        """Whether this process can still use it."""
        return self._connection is not None and self._process == os.getpid()

    def close(self) -> None:
        """Close the connection; again is no error, and in a fork nothing happens."""
        if self._connection is not None and self._process == os.getpid():
            with database.explained(self.path, "close"):
                self._connection.close()
        self._connection = None

    def connection(self) -> sqlite3.Connection:
        """The connection, in autocommit mode.

        Raises:
            DataError: It is closed, or another process opened it.
        """
        if self._connection is None:
            raise DataError(f"the index {self.directory} is closed", hint="open it again")
        if self._process != os.getpid():
            raise DataError(
                f"the index {self.directory} was opened by process {self._process}, this is its "
                f"fork {os.getpid()}",
                hint="open the index again in this process",
            )
        return self._connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A view of one state, whatever other processes write meanwhile."""
        with self.lock, database.explained(self.path, "read"):
            connection = self.connection()
            with _transaction(connection, "BEGIN"):
                yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A change: made wholly and durably at the end, or, when an error is raised, not at all."""
        with self.lock, database.explained(self.path, "write"):
            connection = self.connection()
            self.refuse_read_only()
            with _transaction(connection, "BEGIN IMMEDIATE"):
                yield connection
            # The change is made; if this fails, the next one makes up for it.
            with contextlib.suppress(sqlite3.Error, OSError):
                self._log_pages = database.keep_small(connection, self.path, self._log_pages)

    def refuse_read_only(self) -> None:
        """Refuse what needs to write.

        Raises:
            DataError: The index cannot be written.
        """
        if self.read_only:
            raise DataError(
                f"cannot write {self.path}: you have no permission",
                hint="check that you may write to the directory, or name another index",
            )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back already.
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
