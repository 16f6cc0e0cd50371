"""The spaces of which an index in PostgreSQL holds vectors, each in a table of its own."""

from __future__ import annotations

import json
from dataclasses import asdict

from psycopg import sql

from costream.errors import DataError
from costream.index import check
from costream.index.postgres import schema
from costream.index.postgres.shards import drop_on_shards, spread
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
