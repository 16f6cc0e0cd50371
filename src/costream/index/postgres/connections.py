"""Connections to one database for many threads: each has one to itself while it needs it.

A connection that the server has ended is replaced when something is begun on it, in the thread that
needs it: so an error comes at once, and in the words of the server.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final, LiteralString

import psycopg
from pgvector.psycopg import register_vector
from psycopg.pq import TransactionStatus

from costream.errors import DataError
from costream.index.postgres.schema import Connection

MOST: Final = 8
"""A server takes 100 by default, each a process there: more would only wait for its cores."""

_CONNECT_S = 10
_WAIT_S = 60.0
_READ: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Connections:
    """At most `MOST` connections, made when all others are in use, and kept.

    Args:
        url: Of the database.
        location: The same for messages, without a password.
        first: A connection that is open already and knows the type of vectors.
    """

    def __init__(self, url: str, location: str, first: Connection) -> None:
        self._url, self._location = url, location
        self._idle = [first]
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MOST)
        self._closed = False

    def close(self) -> None:
        """End those that nobody uses now; the others when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """One state of the database, whatever others write meanwhile."""
        with self.after(_READ) as connection:
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A change: made wholly at the end, or, when an error is raised, not at all."""
        with self.after("BEGIN") as connection:
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def after(self, begin: LiteralString) -> Iterator[Connection]:
        """A connection on which a statement was made; what is not committed at the end is undone.

        Raises:
            DataError: The index is closed, or all connections are in use for a minute.
            psycopg.OperationalError: The server does not answer.
        """
        if not self._free.acquire(timeout=_WAIT_S):
            raise DataError(
                f"all {MOST} connections to {self._location} have been in use for {_WAIT_S:g} s",
                hint="the server answers slowly or hangs; see its log and pg_stat_activity",
            )
        try:
            connection = self._begun(begin)
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._free.release()

    def _begun(self, begin: LiteralString) -> Connection:
        while (connection := self._idle_one()) is not None:
            try:
                connection.execute(begin)
            except psycopg.OperationalError:
                if connection.closed:
                    continue  # the server ended it; it may take another one
                self._give_back(connection)
                raise
            return connection
        connection = connect(self._url)
        try:
            register_vector(connection)
            connection.execute(begin)
        except BaseException:
            connection.close()
            raise
        return connection

    def _idle_one(self) -> Connection | None:
        with self._lock:
            if self._closed:
                raise DataError(f"the index {self._location} is closed", hint="open it again")
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: Connection) -> None:
        if connection.info.transaction_status == TransactionStatus.ACTIVE:
            connection.close()  # somebody was interrupted, and the answer is still to come
        with contextlib.suppress(psycopg.Error):
            connection.rollback()
        with self._lock:
            if not self._closed and not connection.closed:
                self._idle.append(connection)
                return
        connection.close()


def connect(url: str) -> Connection:
    """A connection of its own, outside of transactions.

    Raises:
        psycopg.OperationalError: The server does not answer.
    """
    return psycopg.connect(url, autocommit=True, connect_timeout=_CONNECT_S)
