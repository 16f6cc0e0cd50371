"""The items of the database: written with checksums, believed only when they match."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from costream.index import check, schema
from costream.index.records import Item
from costream.index.schema import DamageError, State

# Every SQLite allows at least this many values in one statement.
_CHUNK = 500
# Around and between tags in their column, so that one can be looked for with both ends.
TAG_MARK = "\x1f"
# The checksum in the middle: what follows can be long, and need not be read to filter.
_COLUMNS = (
    "key, id, path, content_hash, size, mtime_ns, modality, date, dated, tags, crc, "
    "caption, text, meta"
)
_CRC = 10
_SELECT = f"SELECT {_COLUMNS} FROM items"  # noqa: S608
# Replacing costs three times as much as inserting, even where there is nothing to replace. The
# checksum comes last, after all that it is made of.
_INSERT = (
    "INSERT INTO items (key, id, path, content_hash, size, mtime_ns, modality, date, dated, tags, "
    "caption, text, meta, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REPLACE = _INSERT.replace("INSERT", "REPLACE")
# Items of which nothing is known but an id and a meta: each value that need not be passed to SQLite
# saves as much time as storing it takes.
_BARE = "NULL, '', 0, 0, 'image', NULL, NULL, '', '', ''"
_INSERT_BARE = _INSERT.replace("?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?", f"?, ?, {_BARE}, ?, ?")
_BARE_VALUES = "None, '', 0, 0, 'image', None, None, '', '', ''"


def insert(connection: sqlite3.Connection, keyed: Sequence[tuple[int, Item]]) -> None:
    """Add items under new keys.

    Raises:
        DataError: An item cannot be stored.
    """
    bare = [one for one in keyed if _is_bare(one[1])]
    if len(bare) < len(keyed):
        connection.executemany(_INSERT, _encoded([one for one in keyed if not _is_bare(one[1])]))
    connection.executemany(_INSERT_BARE, _encoded_bare(bare))


def replace(connection: sqlite3.Connection, keyed: Sequence[tuple[int, Item]]) -> None:
    """Write items over those with the same keys.

    Raises:
        DataError: An item cannot be stored.
    """
    connection.executemany(_REPLACE, _encoded(keyed))


def delete(connection: sqlite3.Connection, keys: Collection[int]) -> None:
    """Remove items."""
    connection.executemany("DELETE FROM items WHERE key = ?", ([key] for key in keys))
    connection.executemany("INSERT INTO free_keys (key) VALUES (?)", ([key] for key in keys))


def take_free_keys(connection: sqlite3.Connection, count: int) -> list[int]:
    """Keys of removed items, at most so many, which are free no longer."""
    query = "SELECT key FROM free_keys ORDER BY key LIMIT ?"
    keys = [key for (key,) in connection.execute(query, [count])]
    if keys:
        connection.execute("DELETE FROM free_keys WHERE key <= ?", [keys[-1]])
    return keys


def select(
    connection: sqlite3.Connection, column: str, values: Iterable[Any]
) -> Iterator[tuple[int, Item]]:
    """Keys and items of which `column` has one of some values, in no order.

    Raises:
        DamageError: A row is not what was written.
    """
    # Words for words as the partial index has it, so that SQLite uses it.
    also = "content_hash <> '' AND " if column == "content_hash" else ""
    for row in _chunked(connection, f"{_SELECT} WHERE {also}{column} IN", values):
        yield decoded(row)


def keys_by_id(connection: sqlite3.Connection, ids: Iterable[bytes]) -> dict[bytes, int]:
    """Keys of the items that are there, by id."""
    return dict(_chunked(connection, "SELECT id, key FROM items WHERE id IN", ids))


def select_all(connection: sqlite3.Connection, state: State) -> list[tuple[int, Item]]:
    """Every key and item, in the order of their ids.

    Raises:
        DamageError: A row is not what was written, or not all are there.
    """
    # In the order of the file, then sorted in memory: following the index on ids would jump.
    found = sorted(connection.execute(_SELECT).fetchall(), key=lambda row: _sort_key(row[1]))
    if len(found) != state.num_items:
        raise DamageError(f"it has {len(found)} items, expected {state.num_items}")
    return [decoded(row) for row in found]


def select_after(
    connection: sqlite3.Connection, condition: str, values: Sequence[Any]
) -> Iterator[tuple[int, Item]]:
    """Keys and items for which a condition in SQL holds, with what follows it (order, limit).

    Raises:
        DamageError: A row is not what was written.
    """
    for row in connection.execute(f"{_SELECT} WHERE {condition}", values):
        yield decoded(row)


def ids_of(items: Sequence[Item]) -> list[bytes]:
    """Ids as they are stored."""
    return [check.encoded_id(item.id) for item in items]


def _chunked(
    connection: sqlite3.Connection, query: str, values: Iterable[Any]
) -> Iterator[tuple[Any, ...]]:
    """Rows of a query that ends in IN, for the distinct values."""
    wanted = list(dict.fromkeys(values))
    for start in range(0, len(wanted), _CHUNK):
        part = wanted[start : start + _CHUNK]
        yield from connection.execute(f"{query} ({', '.join('?' * len(part))})", part)


def _encoded(keyed: Sequence[tuple[int, Item]]) -> Iterator[tuple[Any, ...]]:
    """Rows as `_INSERT` takes them; written for speed, since it runs for every item."""
    metas = check.metas_as_json([item for _, item in keyed])
    crc32 = zlib.crc32
    for (key, item), meta in zip(keyed, metas, strict=True):
        check.refuse_bad_row(item)
        path, date, tags = item.path, item.date, item.tags
        row = (
            key,
            check.encoded_id(item.id),
            None if path is None else os.fsencode(path),
            item.content_hash,
            item.size,
            item.mtime_ns,
            item.modality,
            None if date is None else float(date),
            item.when,
            TAG_MARK.join(("", *tags, "")) if tags else "",
            item.caption,
            item.text,
            meta,
        )
        yield *row, crc32(repr(row).encode())  # as `schema.checksum`, without a call


def _is_bare(item: Item) -> bool:
    """Whether an item has nothing but an id and a meta."""
    return (
        item.path is None
        and item.date is None
        and item.tags == ()
        and item.mtime_ns == item.size == 0
        and item.content_hash == item.caption == item.text == ""
        and item.modality == "image"
    )


def _encoded_bare(keyed: Sequence[tuple[int, Item]]) -> Iterator[tuple[Any, ...]]:
    """Rows as `_INSERT_BARE` takes them, with the checksums that `_encoded` would give."""
    metas = check.metas_as_json([item for _, item in keyed])
    crc32 = zlib.crc32
    for (key, item), meta in zip(keyed, metas, strict=True):
        check.refuse_empty_id(item)
        item_id = check.encoded_id(item.id)
        row = f"({key}, {item_id!r}, {_BARE_VALUES}, {meta!r})"
        yield key, item_id, meta, crc32(row.encode())


def decoded(row: tuple[Any, ...]) -> tuple[int, Item]:
    """Key and item of a row of the table.

    Raises:
        DamageError: It is not what was written.
    """
    if schema.checksum(row[:_CRC] + row[_CRC + 1 :]) != row[_CRC]:
        raise DamageError(f"the row of item {_named(row[1])} is not what was written")
    key, item_id, path, content_hash, size, mtime_ns, modality, date, _, tags, _, *words = row
    caption, text, meta = words
    return key, Item(
        id=check.decoded_id(item_id),
        path=None if path is None else os.fsdecode(path),
        content_hash=content_hash,
        size=size,
        mtime_ns=mtime_ns,
        modality=modality,
        date=date,
        tags=tuple(tags.split(TAG_MARK)[1:-1]),
        caption=caption,
        text=text,
        meta={} if meta == "{}" else json.loads(meta),
    )


def _sort_key(item_id: Any) -> bytes:
    return item_id if isinstance(item_id, bytes) else b""  # of another type: refused later


def _named(item_id: Any) -> str:
    return repr(check.decoded_id(item_id) if isinstance(item_id, bytes) else item_id)
