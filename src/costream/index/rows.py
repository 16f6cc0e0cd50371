"""Rows of the database: written with checksums, believed only when they match.

Shape letters: N items, D dimensions.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from costream.index import check
from costream.index.records import Item
from costream.records import Space

# Every SQLite allows at least this many values in one statement.
_CHUNK = 500
_SELECT_ITEMS = "SELECT id, path, content_hash, size, mtime_ns, meta, crc FROM items"
_SELECT_VECTORS = (
    "SELECT key, id, content_hash, vector, vectors.crc FROM items JOIN vectors USING (key)"
)
_INSERT_ITEM = """
INSERT INTO items (id, path, content_hash, size, mtime_ns, meta, crc) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET path = excluded.path, content_hash = excluded.content_hash,
size = excluded.size, mtime_ns = excluded.mtime_ns, meta = excluded.meta, crc = excluded.crc
"""


class DamageError(Exception):
    """What the database holds is not what was written; `database.explained` names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """One state of an index.

    Attributes:
        num_items: Items in it.
        space: Where their vectors live; None while nothing was ever added.
        token: Names the state; no two have the same.
    """

    num_items: int
    space: Space | None
    token: bytes = field(default_factory=lambda: os.urandom(16))


def read_state(connection: sqlite3.Connection) -> State:
    """The present state.

    Raises:
        DamageError: It is absent or not what was written.
    """
    found = connection.execute("SELECT token, num_items, space, crc FROM state").fetchall()
    if len(found) != 1 or _state_checksum(*found[0][:3]) != found[0][3]:
        raise DamageError("its row of totals is not what was written")
    token, num_items, text, _ = found[0]
    try:
        space = None if text is None else Space(**json.loads(text))
    except TypeError as error:
        raise DamageError(
            f"its space has another form than this version knows ({error})"
        ) from error
    return State(num_items=num_items, space=space, token=token)


def write_state(connection: sqlite3.Connection, state: State) -> None:
    """Replace the present state."""
    text = None if state.space is None else json.dumps(asdict(state.space), sort_keys=True)
    crc = _state_checksum(state.token, state.num_items, text)
    connection.execute(
        "INSERT OR REPLACE INTO state (one, token, num_items, space, crc) VALUES (1, ?, ?, ?, ?)",
        [state.token, state.num_items, text, crc],
    )


def insert(connection: sqlite3.Connection, items: Sequence[Item], blobs: Sequence[bytes]) -> int:
    """Add items with their vectors, replacing those with the same ids.

    Returns:
        How many were not there before.
    """
    rows = [_encoded(item) for item in items]
    ids = [row[0] for row in rows]
    num_before = sum(1 for _ in _chunked(connection, "SELECT 1 FROM items WHERE id IN", ids))
    connection.executemany(_INSERT_ITEM, [(*row, _item_checksum(*row)) for row in rows])
    connection.executemany(
        "INSERT OR REPLACE INTO vectors SELECT key, ?, ? FROM items WHERE id = ?",
        [
            (blob, vector_checksum(item_id, blob), item_id)
            for item_id, blob in zip(ids, blobs, strict=True)
        ],
    )
    return len(ids) - num_before


def delete(connection: sqlite3.Connection, ids: Iterable[bytes]) -> int:
    """Remove items and their vectors; returns how many were there."""
    removed = 0
    for item_id in ids:
        removed += connection.execute("DELETE FROM items WHERE id = ?", [item_id]).rowcount
    return removed


def restamp(connection: sqlite3.Connection, items: Sequence[Item]) -> None:
    """Set size and time of items that are known by id and content hash."""
    stored = {item.id: item for item in select(connection, ids_of(items))}
    for item in items:
        old = stored.get(item.id)
        if old is not None and old.content_hash == item.content_hash:
            row = _encoded(replace(old, size=item.size, mtime_ns=item.mtime_ns))
            connection.execute(
                "UPDATE items SET size = ?, mtime_ns = ?, crc = ? WHERE id = ?",
                [item.size, item.mtime_ns, _item_checksum(*row), row[0]],
            )


def select(connection: sqlite3.Connection, ids: Sequence[bytes]) -> Iterator[Item]:
    """Items by id, those that are there, in no order.

    Raises:
        DamageError: A row is not what was written.
    """
    for row in _chunked(connection, f"{_SELECT_ITEMS} WHERE id IN", ids):
        yield _decoded(row)


def select_all(connection: sqlite3.Connection, state: State) -> list[Item]:
    """Every item, in the order of their ids.

    Raises:
        DamageError: A row is not what was written, or not all are there.
    """
    # In the order of the file, then sorted in memory: following the index on ids would jump.
    found = sorted(connection.execute(_SELECT_ITEMS).fetchall(), key=lambda row: _sort_key(row[0]))
    if len(found) != state.num_items:
        raise DamageError(f"it has {len(found)} items, expected {state.num_items}")
    return [_decoded(row) for row in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVector:
    """A vector with what it belongs to.

    Attributes:
        key: Key of the item.
        id: Its id.
        content_hash: Of its file.
        vector: float16 (D,), little-endian.
    """

    key: int
    id: str
    content_hash: str
    vector: bytes


def select_vectors(
    connection: sqlite3.Connection, column: str, values: Sequence[Any], space: Space | None
) -> Iterator[StoredVector]:
    """Vectors of the items whose `column` has one of some values, in no order.

    Raises:
        DamageError: A row is not what was written, or belongs to another item.
    """
    query = f"{_SELECT_VECTORS} WHERE {column} IN"
    for key, item_id, content_hash, vector, crc in _chunked(connection, query, values):
        yield StoredVector(
            key=key,
            id=check.decoded_id(item_id) if isinstance(item_id, bytes) else "",
            content_hash=content_hash,
            vector=_believed(item_id, vector, crc, space),
        )


def select_all_vectors(
    connection: sqlite3.Connection, state: State
) -> tuple[list[int], list[bytes]]:
    """Keys and vectors of every item, in the order of their ids.

    Raises:
        DamageError: A row is not what was written, or not all are there.
    """
    ids = dict(connection.execute("SELECT key, id FROM items ORDER BY id").fetchall())
    # Vectors in the order of the file, then sorted in memory: ten times faster than a join.
    vectors: dict[int, bytes] = {}
    for key, vector, crc in connection.execute("SELECT key, vector, crc FROM vectors"):
        if key in ids:
            vectors[key] = _believed(ids[key], vector, crc, state.space)
    if not len(ids) == len(vectors) == state.num_items:
        raise DamageError(
            f"{len(ids)} items with {len(vectors)} vectors, expected {state.num_items}"
        )
    return list(ids), [vectors[key] for key in ids]


def ids_of(items: Sequence[Item]) -> list[bytes]:
    """Ids as they are stored."""
    return [check.encoded_id(item.id) for item in items]


def vector_checksum(item_id: bytes, vector: bytes) -> int:
    """Checksum of a vector, good for one item only."""
    return zlib.crc32(vector, zlib.crc32(item_id))


def _believed(item_id: Any, vector: Any, crc: Any, space: Space | None) -> bytes:
    is_whole = (
        isinstance(item_id, bytes)
        and isinstance(vector, bytes)
        and space is not None
        and len(vector) == 2 * space.dim
        and vector_checksum(item_id, vector) == crc
    )
    if not is_whole:
        raise DamageError(f"the vector of item {_named(item_id)} is not what was written")
    stored: bytes = vector
    return stored


def _chunked(
    connection: sqlite3.Connection, query: str, values: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    """Rows of a query that ends in IN, for the distinct values."""
    wanted = list(dict.fromkeys(values))
    for start in range(0, len(wanted), _CHUNK):
        part = wanted[start : start + _CHUNK]
        yield from connection.execute(f"{query} ({', '.join('?' * len(part))})", part)


def _encoded(item: Item) -> tuple[bytes, bytes | None, str, int, int, str]:
    item_id, meta = check.checked_row(item)
    path = None if item.path is None else os.fsencode(item.path)
    return item_id, path, item.content_hash, item.size, item.mtime_ns, meta


def _decoded(row: tuple[Any, ...]) -> Item:
    item_id, path, content_hash, size, mtime_ns, meta, crc = row
    try:
        is_whole = _item_checksum(item_id, path, content_hash, size, mtime_ns, meta) == crc
    except (TypeError, AttributeError, UnicodeEncodeError):  # a value of another type
        is_whole = False
    if not is_whole:
        raise DamageError(f"the row of item {_named(item_id)} is not what was written")
    return Item(
        id=check.decoded_id(item_id),
        path=None if path is None else os.fsdecode(path),
        content_hash=content_hash,
        size=size,
        mtime_ns=mtime_ns,
        meta={} if meta == "{}" else json.loads(meta),
    )


def _item_checksum(
    item_id: bytes, path: bytes | None, content_hash: str, size: int, mtime_ns: int, meta: str
) -> int:
    numbers = b"%d %d %d" % (path is None, size, mtime_ns)
    return zlib.crc32(
        b"\0".join((item_id, path or b"", content_hash.encode(), numbers, meta.encode()))
    )


def _state_checksum(token: Any, num_items: Any, text: Any) -> int:
    return zlib.crc32(f"{token!r} {num_items!r} {text!r}".encode())


def _sort_key(item_id: Any) -> bytes:
    return item_id if isinstance(item_id, bytes) else b""  # of another type: refused later


def _named(item_id: Any) -> str:
    return repr(check.decoded_id(item_id) if isinstance(item_id, bytes) else item_id)
