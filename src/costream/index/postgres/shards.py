"""An index spread over several PostgreSQL servers: a coordinator and its shards.

Items go to the shard that the hash of their id names. The coordinator keeps no items; it holds the
parents of partitions that `postgres_fdw` reads and writes on the shards, and sends them each search
at once. Each shard can be followed by replicas of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from costream.errors import ConfigError, DataError
from costream.index.postgres import schema

_FETCHED_AT_ONCE = 10_000


def create_shards(url: str, shard_urls: Sequence[str]) -> None:
    """Make an empty index whose items are spread over shards.

    Args:
        url: The coordinator's address.
        shard_urls: The shards' addresses, as the coordinator and the clients reach them. Their
            number is fixed from then on.

    Raises:
        ConfigError: Fewer than two shards, or one twice.
        DataError: A server fails, or holds an index already.
    """
    if len(shard_urls) < 2 or len(set(shard_urls)) != len(shard_urls):
        raise ConfigError(
            f"got {len(shard_urls)} shards of which {len(set(shard_urls))} differ, "
            "expected two or more"
        )
    with schema.explained("make"):
        for shard_url in shard_urls:
            with psycopg.connect(shard_url, autocommit=True) as shard:
                if schema.has_items(shard):
                    raise DataError(
                        "a shard holds tables of an index already",
                        hint="use an empty database for each shard",
                    )
                schema.require_pgvector(shard)
                shard.execute("CREATE SCHEMA IF NOT EXISTS costream")
        with psycopg.connect(url, autocommit=True) as connection, connection.transaction():
            if schema.exists(connection):
                raise DataError(
                    "the coordinator holds an index already", hint="use an empty database"
                )
            schema.create_state(connection, sharded=True)
            connection.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
            for number, shard_url in enumerate(shard_urls):
                _create_server(connection, number, shard_url)
            spread(connection, "items", sql.SQL(schema.ITEM_COLUMNS), schema.ITEM_KEYS)


def spread(
    connection: schema.Connection, name: str, columns: sql.Composable, keys: LiteralString
) -> None:
    """Make a table whose rows go to the shards by the hash of their id.

    Args:
        connection: To the coordinator, within a transaction.
        name: Of the table.
        columns: Of the table; `id` is one of them.
        keys: What makes the keys of a table `{table}`.
    """
    parent = sql.Identifier("costream", name)
    connection.execute(
        sql.SQL("CREATE TABLE {} ({}) PARTITION BY HASH (id)").format(parent, columns)
    )
    found = connection.execute("SELECT number, url FROM costream.shards ORDER BY number").fetchall()
    for number, url in found:
        with psycopg.connect(url, autocommit=True) as shard, shard.transaction():
            shard.execute(sql.SQL("CREATE TABLE {} ({})").format(parent, columns))
            shard.execute(sql.SQL(keys).format(table=parent))
        connection.execute(
            sql.SQL(
                "CREATE FOREIGN TABLE {} PARTITION OF {} FOR VALUES WITH (MODULUS {}, REMAINDER {})"
                " SERVER {} OPTIONS (schema_name 'costream', table_name {})"
            ).format(
                sql.Identifier("costream", f"{name}_on_{number}"),
                parent,
                sql.Literal(len(found)),
                sql.Literal(number),
                _server(number),
                sql.Literal(name),
            )
        )


def drop_on_shards(connection: schema.Connection, name: str) -> None:
    """Remove a table's partitions on the shards."""
    for (url,) in connection.execute("SELECT url FROM costream.shards").fetchall():
        with psycopg.connect(url, autocommit=True) as shard:
            shard.execute(
                sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier("costream", name))
            )


def move_shard(url: str, number: int, shard_url: str) -> None:
    """Use another server for a shard: a replica that was promoted, after its primary was lost.

    Args:
        url: The coordinator's address.
        number: Of the shard, from 0.
        shard_url: The address of the server that holds the shard's rows now.

    Raises:
        DataError: There is no such shard, or a server fails.
    """
    with (
        schema.explained("move a shard of"),
        psycopg.connect(url, autocommit=True) as connection,
        connection.transaction(),
    ):
        query = "UPDATE costream.shards SET url = %s WHERE number = %s"
        if connection.execute(query, [shard_url, number]).rowcount != 1:
            raise DataError(f"the index has no shard {number}")
        options, _ = _options(shard_url)
        changes = sql.SQL(", ").join(
            sql.SQL("SET {} {}").format(sql.Identifier(key), sql.Literal(value))
            for key, value in options.items()
        )
        connection.execute(sql.SQL("ALTER SERVER {} OPTIONS ({})").format(_server(number), changes))


def _create_server(connection: schema.Connection, number: int, url: str) -> None:
    options, user = _options(url)
    tuning = {
        # Operators of pgvector may be sent to the shard.
        "extensions": "vector",
        "async_capable": "true",
        "fetch_size": str(_FETCHED_AT_ONCE),
        "batch_size": "1000",
        "use_remote_estimate": "false",
    }
    connection.execute("INSERT INTO costream.shards (number, url) VALUES (%s, %s)", [number, url])
    connection.execute(
        sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(
            _server(number), _listed(options | tuning)
        )
    )
    connection.execute(
        sql.SQL("CREATE USER MAPPING FOR CURRENT_USER SERVER {} OPTIONS ({})").format(
            _server(number), _listed(user)
        )
    )


def _options(url: str) -> tuple[dict[str, str], dict[str, str]]:
    """Where a server is, and as whom to come."""
    known: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(url)
    names = ("user", "password")
    user: dict[str, str] = {key: str(known.pop(key)) for key in names if key in known}
    return {key: str(value) for key, value in known.items() if value is not None}, user


def _listed(options: dict[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(key), sql.Literal(value))
        for key, value in options.items()
    )


def _server(number: int) -> sql.Identifier:
    return sql.Identifier(f"costream_shard_{number}")
