"""Spaces of an index: a second one filled beside the active one, switched to, dropped."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from costream.errors import ConfigError, DataError, SpaceMismatch
from costream.index import check, rows, schema, vector_rows, writing
from costream.index.check import Batch
from costream.index.records import Item, Role
from costream.index.schema import SpaceRow, State
from costream.records import Space


def begin(connection: sqlite3.Connection, space: Space) -> None:
    """Make room for vectors of a space, unless there is.

    Raises:
        ConfigError: The index holds vectors of too many spaces, or the space is not dense.
    """
    check.refuse_other_kinds(space)
    entries = schema.read_spaces(connection)
    if all(entry.space != space for entry in entries):
        number = _free_number(entries)
        role: Role = "building" if entries else "active"
        schema.write_space(connection, SpaceRow(number=number, space=space, role=role))
        schema.advance(connection, schema.read_state(connection), [])


def find(connection: sqlite3.Connection, space: Space, where: str) -> SpaceRow:
    """The row of a space.

    Raises:
        SpaceMismatch: The index holds no vectors of it.
    """
    entries = schema.read_spaces(connection)
    for entry in entries:
        if entry.space == space:
            return entry
    held = "; ".join(check.in_words(entry.space) for entry in entries) or "no space"
    raise SpaceMismatch(
        f"the index {where} holds vectors of {held}, got {check.in_words(space)}",
        hint="begin_space() makes room for another one",
    )


def missing(connection: sqlite3.Connection, entry: SpaceRow, count: int, after: str) -> list[Item]:
    """Items without a vector in a space, in the order of their ids."""
    condition = (
        "id > ? AND NOT EXISTS (SELECT 1 FROM vectors "
        "WHERE place BETWEEN ? + key * ? AND ? + key * ?) ORDER BY id LIMIT ?"
    )
    first = vector_rows.place_of(entry.number, 0)
    last = first + vector_rows.MAX_PARTS - 1
    step = vector_rows.MAX_PARTS
    values = [check.encoded_id(after), first, step, last, step, count]
    return [item for _, item in rows.select_after(connection, condition, values)]


def fill(
    connection: sqlite3.Connection, entry: SpaceRow, items: Sequence[Item], batch: Batch
) -> int:
    """Store vectors in a space that is not active; gives the number of items that got theirs.

    Raises:
        ConfigError: It is the active one.
    """
    if entry.role == "active":
        raise ConfigError(
            f"{check.in_words(entry.space)} is the active space, expected another one",
            hint="add() stores vectors of the active space",
        )
    count = writing.fill(connection, entry, items, batch)
    schema.advance(connection, schema.read_state(connection), [])
    return count


def switch(
    connection: sqlite3.Connection, state: State, entry: SpaceRow, *, allow_missing: bool
) -> None:
    """Make a space the active one; the one before becomes retired.

    Raises:
        DataError: Items have no vector in it, and that is not allowed.
    """
    lacking = state.num_items - entry.num_items
    if lacking and not allow_missing:
        raise DataError(
            f"{lacking} of {state.num_items} items have no vector of "
            f"{check.in_words(entry.space)}, expected one each",
            hint="fill the space first, or allow that these items are not found by likeness",
        )
    if entry.role == "active":
        return
    for other in schema.read_spaces(connection):
        if other.role == "active":
            schema.write_space(connection, replace(other, role="retired"))
    schema.write_space(connection, replace(entry, role="active"))
    schema.begin_history(connection, schema.advance(connection, state, []))


def drop(connection: sqlite3.Connection, entry: SpaceRow) -> None:
    """Remove a space and its vectors.

    Raises:
        ConfigError: It is the active one.
    """
    if entry.role == "active":
        raise ConfigError(
            f"{check.in_words(entry.space)} is the active space, expected another one",
            hint="switch to another space first",
        )
    vector_rows.delete_all(connection, entry.number)
    connection.execute("DELETE FROM spaces WHERE number = ?", [entry.number])
    schema.advance(connection, schema.read_state(connection), [])


def _free_number(entries: Sequence[SpaceRow]) -> int:
    taken = {entry.number for entry in entries}
    free = min(set(range(len(taken) + 1)) - taken)
    if free >= vector_rows.MAX_SPACES:
        raise ConfigError(
            f"the index holds vectors of {len(taken)} spaces, expected fewer",
            hint="drop those that are not needed",
        )
    return free
