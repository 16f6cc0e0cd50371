"""The tables of an index, and its one row of totals and few rows of spaces.

`vectors` is apart from `items` so that looking through names and dates does not read vectors. Ids
are the UTF-8 bytes of the string, with undecodable bytes of file names as they were; paths are the
bytes of the file system. SQLite does not notice a flipped bit within a value, so every row has a
checksum, compared whenever a row is read. `words` holds no text of its own, only inverted lists;
neither they nor rows that a filter passes over are compared, except by `Index.check`. Keys of
removed items are given again, so that new rows fill the pages that old ones left.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.index.records import Role
from costream.records import Space

FORMAT = 2
# Sixteen vectors of 512 dimensions a page; smaller ones waste up to half of the file.
PAGE_BYTES = 16384
# Changes are kept for catching up with, up to this many and, in items, the size of the index.
CHANGES_KEPT = 1000

SCHEMA = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    token BLOB NOT NULL,
    generation INTEGER NOT NULL,
    next_key INTEGER NOT NULL,
    num_items INTEGER NOT NULL,
    num_changed INTEGER NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE spaces (
    number INTEGER PRIMARY KEY,
    space TEXT NOT NULL,
    role TEXT NOT NULL,
    num_items INTEGER NOT NULL,
    num_vectors INTEGER NOT NULL,
    num_spans INTEGER NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE changes (
    generation INTEGER PRIMARY KEY,
    token BLOB NOT NULL,
    num_changed INTEGER NOT NULL,
    keys BLOB NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE items (
    key INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    path BLOB,
    content_hash TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    modality TEXT NOT NULL,
    date REAL,
    dated REAL,
    tags TEXT NOT NULL,
    crc INTEGER NOT NULL,
    caption TEXT NOT NULL,
    text TEXT NOT NULL,
    meta TEXT NOT NULL
);
CREATE TABLE free_keys (
    key INTEGER PRIMARY KEY
);
CREATE INDEX items_by_content ON items (content_hash) WHERE content_hash <> '';
CREATE TABLE vectors (
    place INTEGER PRIMARY KEY,
    t_start REAL,
    t_end REAL,
    vector BLOB NOT NULL,
    crc INTEGER NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5 (
    name, caption, tags, text, content = '', tokenize = "unicode61 remove_diacritics 2"
);
"""


class DamageError(Exception):
    """What the database holds is not what was written; `database.explained` names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """One state of an index.

    Attributes:
        token: Names the state; no two have the same.
        generation: How many changes led to it.
        next_key: The first key that was never given.
        num_items: Items in it.
        num_changed: Items that the changes touched, each as often as it was.
    """

    token: bytes = field(default_factory=lambda: os.urandom(16))
    generation: int = 0
    next_key: int = 1
    num_items: int = 0
    num_changed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceRow:
    """A space with the number that its vectors bear.

    Attributes:
        number: 0 to 127.
        space: Which.
        role: As of `SpaceEntry`.
        num_items: Items that have a vector in it.
        num_vectors: Vectors in it.
        num_spans: Of these, such with a span.
    """

    number: int
    space: Space
    role: Role
    num_items: int = 0
    num_vectors: int = 0
    num_spans: int = 0


def checksum(row: tuple[Any, ...]) -> int:
    """Checksum of the values of a row; another type of a value is another row."""
    return zlib.crc32(repr(row).encode())


def read_state(connection: sqlite3.Connection) -> State:
    """The present state.

    Raises:
        DamageError: It is absent or not what was written.
    """
    found = connection.execute(
        "SELECT token, generation, next_key, num_items, num_changed, crc FROM state"
    ).fetchall()
    if len(found) != 1 or checksum(found[0][:-1]) != found[0][-1]:
        raise DamageError("its row of totals is not what was written")
    token, generation, next_key, num_items, num_changed, _ = found[0]
    return State(
        token=token,
        generation=generation,
        next_key=next_key,
        num_items=num_items,
        num_changed=num_changed,
    )


def write_state(connection: sqlite3.Connection, state: State) -> None:
    """Replace the present state."""
    row = (state.token, state.generation, state.next_key, state.num_items, state.num_changed)
    connection.execute(
        "INSERT OR REPLACE INTO state (one, token, generation, next_key, num_items, num_changed, "
        "crc) VALUES (1, ?, ?, ?, ?, ?, ?)",
        [*row, checksum(row)],
    )


def begin_history(connection: sqlite3.Connection, state: State) -> None:
    """Write a state that no change led to; nothing can catch up with it."""
    connection.execute("DELETE FROM changes")
    _insert_change(connection, state, b"")
    write_state(connection, state)


def advance(
    connection: sqlite3.Connection, state: State, keys: Sequence[int], **values: int
) -> State:
    """Write the next state.

    Args:
        connection: In a transaction.
        state: The present state.
        keys: Keys of the items whose vectors changed, came or went.
        values: `num_items` and `next_key`, where they changed.

    Returns:
        The next state.
    """
    following = replace(
        state,
        token=os.urandom(16),
        generation=state.generation + 1,
        num_changed=state.num_changed + len(keys),
        **values,
    )
    _insert_change(connection, following, np.array(keys, dtype="<i8").tobytes())
    kept = max(following.num_items, CHANGES_KEPT)
    connection.execute(
        "DELETE FROM changes WHERE generation <= ? OR num_changed < ?",
        [following.generation - CHANGES_KEPT, following.num_changed - kept],
    )
    write_state(connection, following)
    return following


def _insert_change(connection: sqlite3.Connection, state: State, keys: bytes) -> None:
    row = (state.generation, state.token, state.num_changed, keys)
    connection.execute(
        "INSERT INTO changes (generation, token, num_changed, keys, crc) VALUES (?, ?, ?, ?, ?)",
        [*row, checksum(row)],
    )


def changed_since(
    connection: sqlite3.Connection, state: State, token: bytes
) -> NDArray[np.int64] | None:
    """Keys of the items whose vectors changed, came or went since a state.

    Args:
        connection: In the transaction that `state` was read in.
        state: The present state.
        token: Names the earlier state.

    Returns:
        int64, in order, each once; None when that state is none of those that are remembered.

    Raises:
        DamageError: What is remembered is not what was written.
    """
    if token == state.token:
        return np.empty(0, dtype=np.int64)
    then = connection.execute("SELECT generation FROM changes WHERE token = ?", [token]).fetchone()
    if then is None:
        return None
    found = connection.execute(
        "SELECT generation, token, num_changed, keys, crc FROM changes WHERE generation > ?", then
    ).fetchall()
    whole = all(checksum(row[:-1]) == row[-1] for row in found)
    if not whole or len(found) != state.generation - then[0]:
        raise DamageError("its list of changes is not what was written")
    return np.unique(np.frombuffer(b"".join(row[3] for row in found), dtype="<i8"))


def read_spaces(connection: sqlite3.Connection) -> list[SpaceRow]:
    """The spaces, the active one first.

    Raises:
        DamageError: A row is not what was written.
    """
    rows = connection.execute(
        "SELECT number, space, role, num_items, num_vectors, num_spans, crc FROM spaces"
    ).fetchall()
    spaces = [decoded_space(row) for row in rows]
    if len([one for one in spaces if one.role == "active"]) != min(len(spaces), 1):
        raise DamageError("its spaces are not what was written")
    return sorted(spaces, key=lambda one: (one.role != "active", one.number))


def decoded_space(row: tuple[Any, ...]) -> SpaceRow:
    """A row of the table of spaces.

    Raises:
        DamageError: It is not what was written.
    """
    if checksum(row[:-1]) != row[-1]:
        raise DamageError("a row of its spaces is not what was written")
    number, text, role, num_items, num_vectors, num_spans, _ = row
    try:
        space = Space(**json.loads(text))
    except TypeError as error:
        raise DamageError(
            f"its space has another form than this version knows ({error})"
        ) from error
    return SpaceRow(
        number=number,
        space=space,
        role=role,
        num_items=num_items,
        num_vectors=num_vectors,
        num_spans=num_spans,
    )


def write_space(connection: sqlite3.Connection, entry: SpaceRow) -> None:
    """Add or replace the row of a space."""
    text = json.dumps(asdict(entry.space), sort_keys=True)
    row = (
        entry.number,
        text,
        entry.role,
        entry.num_items,
        entry.num_vectors,
        entry.num_spans,
    )
    connection.execute(
        "INSERT OR REPLACE INTO spaces (number, space, role, num_items, num_vectors, num_spans, "
        "crc) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [*row, checksum(row)],
    )
