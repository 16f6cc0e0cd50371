"""Indexes of earlier formats, converted in place in one transaction: killed meanwhile, nothing is.

Format 1 had one vector an item, no spaces beside the active one, no words, tags or dates.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from costream.index import check, rows, schema, vector_rows, words
from costream.index.check import Batch
from costream.index.records import Item
from costream.index.schema import DamageError, SpaceRow, State
from costream.records import Space

_CHUNK = 4096


def migrate(connection: sqlite3.Connection) -> None:
    """Convert an index of format 1.

    Raises:
        DamageError: A row is not what was written; nothing is changed then.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < schema.FORMAT:  # another process may have been faster
            _convert(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _convert(connection: sqlite3.Connection) -> None:
    num_items, space = _old_state(connection)
    for table in ("state", "items", "vectors"):
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    connection.execute("DROP INDEX items_by_content")
    for statement in schema.SCHEMA.split(";"):
        connection.execute(statement)
    (last,) = connection.execute("SELECT max(key) FROM old_items").fetchone()
    state = State(num_items=num_items, next_key=(last or 0) + 1)
    schema.begin_history(connection, state)
    if space is not None:
        _copy(connection, space, num_items)
    for table in ("vectors", "items", "state"):
        connection.execute(f"DROP TABLE old_{table}")
    connection.execute(f"PRAGMA user_version = {schema.FORMAT}")


def _copy(connection: sqlite3.Connection, space: Space, num_items: int) -> None:
    done = 0
    for found in _chunks(connection):
        keyed = [(key, item) for key, item, _ in found]
        joined = b"".join(vector for *_, vector in found)
        if len(joined) != 2 * space.dim * len(found):
            raise DamageError("a vector has another size than the others")
        vectors = np.frombuffer(joined, dtype="<f2").reshape(len(found), space.dim)
        keys = [key for key, _ in keyed]
        rows.write(connection, keys, rows.encoded([item for _, item in keyed]))
        words.add(connection, keyed)
        batch = Batch(vectors, np.arange(len(found)))
        vector_rows.insert(connection, 0, keys, batch)
        done += len(found)
    if done != num_items:
        raise DamageError(f"it has {done} items with vectors, expected {num_items}")
    schema.write_space(
        connection,
        SpaceRow(number=0, space=space, role="active", num_items=done, num_vectors=done),
    )


def _old_state(connection: sqlite3.Connection) -> tuple[int, Space | None]:
    found = connection.execute("SELECT token, num_items, space, crc FROM state").fetchall()
    if len(found) != 1:
        raise DamageError("its row of totals is not what was written")
    token, num_items, text, crc = found[0]
    if zlib.crc32(f"{token!r} {num_items!r} {text!r}".encode()) != crc:
        raise DamageError("its row of totals is not what was written")
    return num_items, None if text is None else Space(**json.loads(text))


def _chunks(connection: sqlite3.Connection) -> Iterator[list[tuple[int, Item, bytes]]]:
    cursor = connection.execute(
        "SELECT key, id, path, content_hash, size, mtime_ns, meta, old_items.crc, vector, "
        "old_vectors.crc FROM old_items JOIN old_vectors USING (key) ORDER BY key"
    )
    while found := cursor.fetchmany(_CHUNK):
        yield [_believed(row) for row in found]


def _believed(row: tuple[Any, ...]) -> tuple[int, Item, bytes]:
    key, item_id, path, content_hash, size, mtime_ns, meta, crc, vector, vector_crc = row
    numbers = b"%d %d %d" % (path is None, size, mtime_ns)
    words_of_row = (item_id, path or b"", content_hash.encode(), numbers, meta.encode())
    if zlib.crc32(b"\0".join(words_of_row)) != crc:
        raise DamageError(f"the row of item {item_id!r} is not what was written")
    if zlib.crc32(vector, zlib.crc32(item_id)) != vector_crc:
        raise DamageError(f"the vector of item {item_id!r} is not what was written")
    item = Item(
        id=check.decoded_id(item_id),
        path=None if path is None else os.fsdecode(path),
        content_hash=content_hash,
        size=size,
        mtime_ns=mtime_ns,
        meta=json.loads(meta),
    )
    return key, item, vector
