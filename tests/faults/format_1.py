"""Makes an index of format 1, as the first version of costream wrote it."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costream.index import Item
from costream.records import Space

_SCHEMA = """
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), token BLOB NOT NULL,
    num_items INTEGER NOT NULL, space TEXT, crc INTEGER NOT NULL);
CREATE TABLE items (key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, path BLOB,
    content_hash TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    meta TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX items_by_content ON items (content_hash);
CREATE TABLE vectors (key INTEGER PRIMARY KEY REFERENCES items (key) ON DELETE CASCADE,
    vector BLOB NOT NULL, crc INTEGER NOT NULL);
PRAGMA application_id = 1668248436;
PRAGMA user_version = 1;
"""


def write_format_1(
    directory: Path, items: list[Item], vectors: NDArray[np.float32], space: Space
) -> None:
    """Make the index."""
    directory.mkdir(parents=True)
    connection = sqlite3.connect(directory / "index.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(f"BEGIN; {_SCHEMA} COMMIT; BEGIN")
    for key, (item, vector) in enumerate(zip(items, vectors.astype("<f2"), strict=True), 1):
        path = None if item.path is None else os.fsencode(item.path)
        row = (os.fsencode(item.id), path, item.content_hash, item.size, item.mtime_ns)
        meta = json.dumps(dict(item.meta), sort_keys=True)
        numbers = b"%d %d %d" % (path is None, item.size, item.mtime_ns)
        parts = (row[0], path or b"", item.content_hash.encode(), numbers, meta.encode())
        crc = zlib.crc32(b"\0".join(parts))
        connection.execute("INSERT INTO items VALUES (?,?,?,?,?,?,?,?)", [key, *row, meta, crc])
        blob = vector.tobytes()
        crc = zlib.crc32(blob, zlib.crc32(row[0]))
        connection.execute("INSERT INTO vectors VALUES (?,?,?)", [key, blob, crc])
    state = (bytes(16), len(items), json.dumps(asdict(space), sort_keys=True))
    crc = zlib.crc32(f"{state[0]!r} {state[1]!r} {state[2]!r}".encode())
    connection.execute("INSERT INTO state VALUES (1, ?, ?, ?, ?)", [*state, crc])
    connection.execute("COMMIT")
    connection.close()
