"""Items, moments and filters as rows of PostgreSQL.

Shape letters: M moments, D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, LiteralString

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql
from psycopg.types.json import Jsonb

from costream.index import check
from costream.index.filters import FieldValue, Filter, number_in
from costream.index.postgres import schema
from costream.index.postgres.schema import Connection
from costream.index.records import Item

_COLUMNS: LiteralString = (
    "id, path, content_hash, size, mtime_ns, modality, date, tags, caption, body, meta"
)
_ITEM_COPY: LiteralString = f"COPY costream.items ({_COLUMNS}, searchable) FROM STDIN"
_WHEN: LiteralString = "coalesce(date, nullif(mtime_ns, 0) / 1e9::float8)"
SELECT_ITEMS: LiteralString = f"SELECT {_COLUMNS} FROM costream.items"  # noqa: S608  # constants


def insert_items(connection: Connection, items: Sequence[Item]) -> None:
    """Write items that are not there."""
    with connection.cursor().copy(_ITEM_COPY) as copy:
        for item in items:
            copy.write_row((*_encoded(item), searchable(item)))


def insert_moments(
    connection: Connection,
    table: sql.Identifier,
    ids: Sequence[bytes],
    spans: Sequence[tuple[int, float | None, float | None]],
    vectors_MD: NDArray[np.float16],
) -> None:
    """Write vectors of items: per vector the item's id, its part number and its span."""
    write_moments(
        connection,
        table,
        (
            (item_id, *span, HalfVector(vector_D))
            for item_id, span, vector_D in zip(ids, spans, vectors_MD, strict=True)
        ),
    )


def write_moments(
    connection: Connection, table: sql.Identifier, moments: Iterable[tuple[Any, ...]]
) -> None:
    """Write rows of (id, part, start, end, vector)."""
    into = sql.SQL(
        "COPY {} (id, part, t_start, t_end, vector) FROM STDIN WITH (FORMAT BINARY)"
    ).format(table)
    with connection.cursor().copy(into) as copy:
        copy.set_types(["bytea", "int4", "float8", "float8", "halfvec"])
        for moment in moments:
            copy.write_row(moment)


def matrix(vectors: Iterable[HalfVector], dim: int) -> NDArray[np.float16]:
    """Stored vectors as float16 (M, D)."""
    found = [vector.to_numpy() for vector in vectors]
    return np.array(found, dtype=np.float16).reshape(len(found), dim)


def decoded(row: Sequence[Any]) -> Item:
    """An item from its columns."""
    item_id, path, content_hash, size, mtime_ns, modality, date, tags, caption, body, meta = row
    return Item(
        id=check.decoded_id(bytes(item_id)),
        path=None if path is None else os.fsdecode(bytes(path)),
        content_hash=content_hash,
        size=size,
        mtime_ns=mtime_ns,
        modality=modality,
        date=date,
        tags=tuple(tags),
        caption=caption,
        text=body,
        meta=meta,
    )


def searchable(item: Item) -> str:
    """The words by which an item is found: file name, caption, tags and found text."""
    name = PurePath(item.path or item.id).name
    parts = (name.replace(".", " ").replace("_", " "), item.caption, *item.tags, item.text)
    return "\n".join(_storable(part) for part in parts)


def condition(where: Filter | None) -> tuple[sql.Composed, list[Any]]:
    """A filter as a condition on `items`, and its values; finds what `Filter.matches` does."""
    tests: list[sql.Composable] = [sql.SQL("true")]
    values: list[Any] = []

    def add(test: LiteralString, *given: Any) -> None:
        tests.append(sql.SQL(test))
        values.extend(given)

    if where is not None:
        if where.path_prefix:
            prefix = os.fsencode(where.path_prefix)
            add("substring(path FROM 1 FOR %s) = %s", len(prefix), prefix)
        if where.modality:
            add("modality = ANY(%s)", list(where.modality))
        if where.tags:
            add("tags @> %s::text[]", list(where.tags))
        if where.after is not None:
            add(f"{_WHEN} >= %s", where.after)
        if where.before is not None:
            add(f"{_WHEN} < %s", where.before)
        for name, value in where.fields.items():
            alike = _values_alike(value)
            add("meta #> %s = ANY(%s::jsonb[])", name.split("."), [Jsonb(one) for one in alike])
        if where.ids is not None:
            add("id = ANY(%s)", [check.encoded_id(item_id) for item_id in where.ids])
    return sql.SQL(" AND ").join(tests), values


def _values_alike(value: FieldValue) -> list[FieldValue]:
    """The JSON values that a filter's value matches."""
    if not isinstance(value, str):
        return [value]
    number = number_in(value)
    written = {"true": True, "false": False}
    alike: list[FieldValue] = [value]
    if number is not None:
        alike.append(number)
    if value in written:
        alike.append(written[value])
    return alike


def held_moments(
    connection: Connection, ids: Sequence[bytes]
) -> list[tuple[sql.Identifier, list[tuple[Any, ...]]]]:
    """The moments of some items, space by space, as rows to be inserted again."""
    held = []
    for (key,) in connection.execute("SELECT key FROM costream.spaces").fetchall():
        table = schema.moments_table(int(key))
        query = sql.SQL("SELECT id, part, t_start, t_end, vector FROM {} WHERE id = ANY(%s)")
        held.append((table, connection.execute(query.format(table), [list(ids)]).fetchall()))
    return held


def copied(
    copies: Sequence[tuple[bytes, bytes]], moments: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    """Moments of some items as those of others: pairs of (new id, id that has them)."""
    of_source: dict[bytes, list[tuple[Any, ...]]] = {}
    for moment in moments:
        of_source.setdefault(bytes(moment[0]), []).append(moment[1:])
    for item_id, source in copies:
        for rest in of_source.get(source, []):
            yield (item_id, *rest)


def delete(connection: Connection, ids: Sequence[bytes]) -> int:
    """Remove items with their vectors in every space; returns how many items were there."""
    for (key,) in connection.execute("SELECT key FROM costream.spaces").fetchall():
        table = schema.moments_table(int(key))
        connection.execute(sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(table), [ids])
    return connection.execute("DELETE FROM costream.items WHERE id = ANY(%s)", [ids]).rowcount


def part_numbers(parents: Sequence[int]) -> list[int]:
    """For each vector its number among those of its item."""
    seen: dict[int, int] = {}
    parts = []
    for parent in parents:
        parts.append(seen.get(parent, 0))
        seen[parent] = parts[-1] + 1
    return parts


def stored_span(span: NDArray[Any]) -> tuple[float | None, float | None]:
    """Start and end of a moment, None for not-a-number."""
    start, end = (None if np.isnan(each) else float(each) for each in span)
    return start, end


def _encoded(item: Item) -> tuple[Any, ...]:
    item_id, _ = check.checked_row(item)
    return (
        item_id,
        None if item.path is None else os.fsencode(item.path),
        item.content_hash,
        item.size,
        item.mtime_ns,
        item.modality,
        item.date,
        list(map(_storable, item.tags)),
        _storable(item.caption),
        _storable(item.text),
        Jsonb(dict(item.meta)),
    )


def _storable(text: str) -> str:
    """Text as PostgreSQL takes it: no zero letters, no halves of surrogate pairs."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
