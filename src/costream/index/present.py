"""What an open index keeps at hand of the active space, brought up to each change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from costream.index import check, codes, loading, schema
from costream.index.held import LostRowsError
from costream.index.resident import Resident
from costream.index.schema import SpaceRow, State
from costream.index.session import Session
from costream.index.writing import Change
from costream.records import Space
from costream.scoring.kernels import Kernel

Answer = TypeVar("Answer")


class Present:
    """The vectors of one session's active space, loaded when they are first searched.

    Args:
        session: Whose.
        kernel: Name of the kernel that is wanted; None to go by size.

    Attributes:
        resident: What is at hand; None when nothing is.
    """

    def __init__(self, session: Session, kernel: str | None) -> None:
        self.resident: Resident | None = None
        self._session = session
        self._kernel = kernel
        self._use_files = True

    def of(self, connection: sqlite3.Connection, state: State, space: Space) -> Resident:
        """The vectors of a state.

        Args:
            connection: In the transaction that `state` was read in.
            state: The present state.
            space: Must be the active one.

        Raises:
            SpaceMismatch: It is another one.
            DamageError: A row of the database is not what was written.
        """
        entry = active(connection)
        if state.num_items:
            stored = None if entry is None else entry.space
            check.check_same(stored, space, str(self._session.directory))
        if entry is None or entry.space != space:
            return loading.nothing(space)
        if self.resident is None or not self.resident.catch_up(connection, state, entry):
            self.resident = None  # its memory first
            self.resident = loading.load(
                connection,
                state,
                entry,
                self._session.directory,
                read_only=self._session.read_only,
                kernel=self._kernel,
                use_files=self._use_files,
            )
        return self.resident

    def ask(self, ask: Callable[[], Answer]) -> Answer:
        """Ask, and again with vectors of the database if a derived file was found damaged."""
        try:
            return ask()
        except LostRowsError:
            with self._session.lock:
                self.resident = None
                try:
                    codes.remove_all(self._session.directory)
                except OSError:
                    self._use_files = False
            return ask()

    def kernel(self) -> Kernel | None:
        """What answers at present, without waiting; None before the first search."""
        loaded = self.resident
        return None if loaded is None else loaded.present_kernel

    def begin(self, change: Change) -> None:
        """Keep what is added to an empty index, to be searched without reading it."""
        if change.active is not None and not self._session.read_only:
            with self._session.lock:
                self.resident = loading.begun(
                    self._session.directory, change.active, change.before, self._kernel
                )

    def take_in(self, *changes: Change) -> None:
        """Bring what is at hand up to changes that are durable."""
        for change in changes:
            with self._session.lock:
                kept = self.resident
                if kept is not None and (
                    not _taken_in(kept, change) or (not kept.is_used and kept.is_large)
                ):
                    self.resident = None

    def close(self) -> None:
        """Write what is worth it to the derived files, and give the memory back."""
        if self.resident is not None and self._session.is_open:
            self.resident.save()
        self.resident = None


def active(connection: sqlite3.Connection) -> SpaceRow | None:
    """The active space; None before the first item."""
    entries = schema.read_spaces(connection)
    return entries[0] if entries else None


def _taken_in(kept: Resident, change: Change) -> bool:
    try:
        return kept.take_in(change)
    except LostRowsError:  # the change is durable all the same; who searches reads anew
        return False
