"""The spaces of which an index in PostgreSQL holds vectors, each in a table of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from costream.errors import DataError
from costream.index import check
from costream.index.postgres import rows, schema
from costream.index.postgres.shards import drop_on_shards, spread
from costream.index.records import Item, SpaceEntry
from costream.records import Space


def active_space(connection: schema.Connection) -> tuple[int, Space] | None:
    """Key and record of the space that is searched; None while nothing was ever added."""
    found = connection.execute(
        "SELECT key, space FROM costream.spaces WHERE role = 'active'"
    ).fetchone()
    return None if found is None else (int(found[0]), Space(**found[1]))


def num_items(connection: schema.Connection, space_key: int) -> int:
    """Items that have a vector in a space."""
    query = sql.SQL("SELECT count(*) FROM {} WHERE part = 0")
    return int(schema.one(connection, query.format(schema.moments_table(space_key))))


def space_to_write(
    connection: schema.Connection, space: Space, location: str, *, sharded: bool
) -> int:
    """Key of the active space, made when the index is empty.

    Raises:
        SpaceMismatch: The index holds vectors of another one.
    """
    active = active_space(connection)
    if active is not None and active[1] != space:
        if int(schema.one(connection, sql.SQL("SELECT count(*) FROM costream.items"))):
            check.check_same(active[1], space, location)
        drop_space(connection, active[0], sharded=sharded)
        active = None
    if active is not None:
        return active[0]
    return create_space(connection, space, "active", sharded=sharded)


def create_space(connection: schema.Connection, space: Space, role: str, *, sharded: bool) -> int:
    """Make room for the vectors of a space; gives its key."""
    text = json.dumps(asdict(space), sort_keys=True)
    insert = "INSERT INTO costream.spaces (space, role) VALUES (%s, %s) RETURNING key"
    key = int(connection.execute(insert, [text, role]).fetchall()[0][0])
    columns = sql.SQL(schema.MOMENT_COLUMNS).format(dim=sql.Literal(space.dim))
    if sharded:
        spread(connection, schema.moments_name(key), columns, schema.MOMENT_KEYS)
    else:
        table = schema.moments_table(key)
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, columns))
        connection.execute(sql.SQL(schema.MOMENT_KEYS).format(table=table))
    return key


def drop_space(connection: schema.Connection, key: int, *, sharded: bool) -> None:
    """Remove a space with its vectors."""
    connection.execute("DELETE FROM costream.spaces WHERE key = %s", [key])
    connection.execute(sql.SQL("DROP TABLE {}").format(schema.moments_table(key)))
    if sharded:
        drop_on_shards(connection, schema.moments_name(key))


def key_of(connection: schema.Connection, space: Space) -> int | None:
    """Key of a space, None when the index has it not."""
    text = json.dumps(asdict(space), sort_keys=True)
    query = "SELECT key FROM costream.spaces WHERE space = %s::jsonb"
    found = connection.execute(query, [text]).fetchone()
    return None if found is None else int(found[0])


def known_key(connection: schema.Connection, space: Space, location: str) -> int:
    """Key of a space.

    Raises:
        DataError: The index has it not.
    """
    key = key_of(connection, space)
    if key is None:
        raise DataError(
            f"the index {location} has no vectors of {check.in_words(space)}",
            hint="spaces() lists what it has; begin_space makes room",
        )
    return key


def entries(connection: schema.Connection) -> tuple[SpaceEntry, ...]:
    """The spaces of which vectors are held, the active one first."""
    found = connection.execute(
        "SELECT key, space, role FROM costream.spaces ORDER BY role <> 'active', key"
    ).fetchall()
    return tuple(
        SpaceEntry(space=Space(**space), role=role, num_items=num_items(connection, int(key)))
        for key, space, role in found
    )


def missing(connection: schema.Connection, key: int, count: int, after: str) -> list[Item]:
    """Items with greater ids that have no vector in a space, in the order of their ids."""
    query = sql.SQL(
        "{} AS item WHERE id > %s AND NOT EXISTS (SELECT 1 FROM {} AS held WHERE "
        "held.id = item.id) ORDER BY id LIMIT %s"
    ).format(sql.SQL(rows.SELECT_ITEMS), schema.moments_table(key))
    found = connection.execute(query, [check.encoded_id(after), count]).fetchall()
    return [rows.decoded(row) for row in found]


def fill(
    connection: schema.Connection,
    key: int,
    items: Sequence[Item],
    owners: Sequence[int],
    spans: NDArray[Any],
    stored_MD: NDArray[np.float16],
) -> int:
    """Store vectors of a space; gives how many items are still there with the same content."""
    table = schema.moments_table(key)
    ids = [check.encoded_id(item.id) for item in items]
    query = "SELECT id, content_hash FROM costream.items WHERE id = ANY(%s)"
    there = {bytes(row[0]): row[1] for row in connection.execute(query, [ids]).fetchall()}
    kept = {n for n, item in enumerate(items) if there.get(ids[n]) == item.content_hash}
    connection.execute(
        sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(table), [[ids[n] for n in kept]]
    )
    chosen = [row for row, n in enumerate(owners) if n in kept]
    parts = rows.part_numbers(owners)
    rows.insert_moments(
        connection,
        table,
        [ids[owners[row]] for row in chosen],
        [(parts[row], *rows.stored_span(spans[row])) for row in chosen],
        stored_MD[chosen],
    )
    return len(kept)


def switch(connection: schema.Connection, key: int, space: Space, *, allow_missing: bool) -> None:
    """Make a space the active one.

    Raises:
        DataError: Items have no vector in it.
    """
    total = int(schema.one(connection, sql.SQL("SELECT count(*) FROM costream.items")))
    lacking = total - num_items(connection, key)
    if lacking and not allow_missing:
        raise DataError(
            f"{lacking} of {total} items have no vector of {check.in_words(space)} yet",
            hint="embed them first, or switch with allow_missing",
        )
    connection.execute(
        "UPDATE costream.spaces SET role = 'retired' WHERE role = 'active' AND key <> %s", [key]
    )
    connection.execute("UPDATE costream.spaces SET role = 'active' WHERE key = %s", [key])
