"""The items of the database: written with checksums, believed only when they match."""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

from costream.index import check, schema
from costream.index.records import Item
from costream.index.schema import DamageError, State

# Values that one statement looks for.
_CHUNK = 10_000
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
_HEAD = (
    "INTO items (key, id, path, content_hash, size, mtime_ns, modality, date, dated, tags, "
    "caption, text, meta, crc) VALUES"
)
_ROW = f"({', '.join('?' * 14)})"
# Items of which nothing is known but an id and a meta: each value that need not be passed to SQLite
# saves as much time as storing it takes.
_BARE_ROW = "(?, ?, NULL, '', 0, 0, 'image', NULL, NULL, '', '', '', ?, ?)"
_BARE_VALUES = "None, '', 0, 0, 'image', None, None, '', '', ''"
# Rows that one statement inserts: fewer statements, and other threads can run during each.
_TOGETHER = 2000


@dataclass(frozen=True, slots=True)
class Encoded:
    """Items as they are stored, but for their keys, which only a transaction can give.

    By columns: a tuple a row would be one more object that Python's collector visits again and
    again, which is a good part of the time that many rows take.

    Attributes:
        items: Which, each id once.
        columns: What rows hold between key and checksum, the ids first; a list a column.
        ends: Per item what the checksum is taken of after the key.
        is_bare: Whether nothing is known of any but id and meta, which then are all its columns.
    """

    items: Sequence[Item]
    columns: tuple[list[Any], ...]
    ends: list[bytes]
    is_bare: bool


def encoded(items: Sequence[Item]) -> Encoded:
    """Items as they are stored.

    Raises:
        DataError: An item cannot be stored.
    """
    metas = check.metas_as_json(items)
    is_bare = all(map(_is_bare, items))
    for item in items:
        if is_bare:
            check.refuse_empty_id(item)
        else:
            check.refuse_bad_row(item)
    ids = ids_of(items)
    if is_bare:
        pairs = zip(ids, metas, strict=True)
        ends = [f", {name!r}, {_BARE_VALUES}, {meta!r})".encode() for name, meta in pairs]
        return Encoded(items, (ids, metas), ends, is_bare)
    columns = (ids, *_between(items), metas)
    ends = [f", {repr(row)[1:]}".encode() for row in zip(*columns, strict=True)]
    return Encoded(items, columns, ends, is_bare)


def write(
    connection: sqlite3.Connection, keys: Sequence[int], added: Encoded, olds: Collection[int] = ()
) -> None:
    """Add items, or write them over those that are there.

    Args:
        connection: In a transaction.
        keys: One an item.
        added: The items.
        olds: Those of the keys under which there is an item.
    """
    crc32 = zlib.crc32
    crcs = [  # as `schema.checksum` of the whole row
        crc32(end, crc32(b"(%d" % key)) for key, end in zip(keys, added.ends, strict=True)
    ]
    columns: tuple[Sequence[Any], ...] = (keys, *added.columns, crcs)
    row = _BARE_ROW if added.is_bare else _ROW
    if olds:
        is_new = [key not in olds for key in keys]
        replaced = [one for one in zip(*columns, strict=True) if one[0] in olds]
        connection.executemany(f"REPLACE {_HEAD} {row}", replaced)
        columns = tuple(list(compress(column, is_new)) for column in columns)
    together = min(_TOGETHER, _most_values(connection) // row.count("?"))
    total = len(columns[0])
    whole = total // together * together
    for start in range(0, whole, together):
        part = zip(*(column[start : start + together] for column in columns), strict=True)
        connection.execute(_insert(row, together), list(chain.from_iterable(part)))
    rest = zip(*(column[whole:] for column in columns), strict=True)
    connection.executemany(_insert(row, 1), rest)


@functools.cache
def _insert(row: str, count: int) -> str:
    return f"INSERT {_HEAD} {', '.join([row] * count)}"


def _most_values(connection: sqlite3.Connection) -> int:
    return connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)


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
        DamageError: A row is not what was written, or is not the one that was looked for: SQLite
            believes its trees, which have no checksums.
    """
    # Words for words as the partial index has it, so that SQLite uses it.
    also = "content_hash <> '' AND " if column == "content_hash" else ""
    wanted = dict.fromkeys(values)
    place = _COLUMNS.split(", ").index(column)
    for row in _chunked(connection, f"{_SELECT} WHERE {also}{column} IN", wanted):
        found = decoded(row)
        if row[place] not in wanted:
            raise DamageError(
                f"its list of items by {column} leads to {_named(row[1])} for another"
            )
        yield found


def select_by_id(connection: sqlite3.Connection, ids: Iterable[bytes]) -> dict[int, Item]:
    """The items that are there, by key.

    Raises:
        DamageError: As of `select`.
    """
    return dict(select(connection, "id", ids))


def not_beyond(connection: sqlite3.Connection, ids: Iterable[bytes]) -> list[bytes]:
    """The ids that may be there: those that come after all that are need not be looked for."""
    ((last,),) = connection.execute("SELECT max(id) FROM items").fetchall()
    if last is None:
        return []
    # Of another type where the index is damaged: then all are looked for, and the damage is told.
    return [item_id for item_id in ids if not isinstance(last, bytes) or item_id <= last]


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


def ids_of(items: Iterable[Item]) -> list[bytes]:
    """Ids as they are stored."""
    return [check.encoded_id(item.id) for item in items]


def _chunked(
    connection: sqlite3.Connection, query: str, values: Iterable[Any]
) -> Iterator[tuple[Any, ...]]:
    """Rows of a query that ends in IN, for values of which no two are the same."""
    wanted = list(values)
    size = min(_CHUNK, _most_values(connection))
    for start in range(0, len(wanted), size):
        part = wanted[start : start + size]
        yield from connection.execute(f"{query} ({', '.join('?' * len(part))})", part)


def _between(items: Sequence[Item]) -> tuple[list[Any], ...]:
    """The columns between id and meta."""
    return (
        [None if item.path is None else os.fsencode(item.path) for item in items],
        [item.content_hash for item in items],
        [item.size for item in items],
        [item.mtime_ns for item in items],
        [item.modality for item in items],
        [None if item.date is None else float(item.date) for item in items],
        [item.when for item in items],
        [TAG_MARK.join(("", *item.tags, "")) if item.tags else "" for item in items],
        [item.caption for item in items],
        [item.text for item in items],
    )


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
