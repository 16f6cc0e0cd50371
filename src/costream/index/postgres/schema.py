"""Tables of an index in PostgreSQL: made, checked, and errors put into words.

All tables are in one schema of the database, `costream`. Ids are bytes, as in the embedded index:
UTF-8 with undecodable bytes of file names as they were. Every space has a table of vectors of its
own, because an index over vectors needs one number of dimensions. On a coordinator of shards,
`items` and the tables of vectors are parents of foreign partitions, which can have no unique keys:
writers hold a lock and delete before they insert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from costream.errors import DataError

FORMAT = 1
LEAST_PGVECTOR = (0, 8, 6)
# What writers of one index wait for; any number that nobody else uses.
WRITER_LOCK = 0x636F7374

Connection = psycopg.Connection[tuple[Any, ...]]

_TABLES: LiteralString = """
CREATE SCHEMA IF NOT EXISTS costream;
CREATE TABLE IF NOT EXISTS costream.state (
    one integer PRIMARY KEY CHECK (one = 1),
    format integer NOT NULL,
    sharded boolean NOT NULL,
    token uuid NOT NULL DEFAULT gen_random_uuid()
);
CREATE TABLE IF NOT EXISTS costream.spaces (
    key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    space jsonb NOT NULL UNIQUE,
    role text NOT NULL CHECK (role IN ('active', 'building', 'retired'))
);
CREATE UNIQUE INDEX IF NOT EXISTS one_active ON costream.spaces (role) WHERE role = 'active';
CREATE TABLE IF NOT EXISTS costream.shards (number integer PRIMARY KEY, url text NOT NULL);
"""
ITEM_COLUMNS: LiteralString = """
    id bytea NOT NULL,
    path bytea,
    content_hash text NOT NULL,
    size bigint NOT NULL,
    mtime_ns bigint NOT NULL,
    modality text NOT NULL,
    date double precision,
    tags text[] NOT NULL,
    caption text NOT NULL,
    body text NOT NULL,
    meta jsonb NOT NULL,
    searchable text NOT NULL
"""
MOMENT_COLUMNS: LiteralString = """
    id bytea NOT NULL,
    part integer NOT NULL,
    t_start double precision,
    t_end double precision,
    vector halfvec({dim}) NOT NULL
"""
ITEM_KEYS: LiteralString = """
ALTER TABLE {table} ADD PRIMARY KEY (id);
CREATE INDEX ON {table} (content_hash);
CREATE INDEX ON {table} USING gin (to_tsvector('simple', searchable));
CREATE INDEX ON {table} USING gin (tags);
CREATE INDEX ON {table} (date);
"""
MOMENT_KEYS: LiteralString = "ALTER TABLE {table} ADD PRIMARY KEY (id, part)"


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn errors of PostgreSQL into ours.

    Args:
        doing: Verb for the message ("open", "write").

    Raises:
        DataError: With the reason and what to do.
    """
    try:
        yield
    except psycopg.OperationalError as error:
        raise DataError(
            f"cannot {doing} the PostgreSQL index: {_first_line(error)}",
            hint="check that the server runs and the address is right, then try again; what was "
            "acknowledged before is stored",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DataError(
            f"cannot {doing} the PostgreSQL index: {_first_line(error)}",
            hint="the role needs CREATE on the database, or an administrator runs "
            "CREATE EXTENSION vector once",
        ) from error
    except psycopg.Error as error:
        raise DataError(
            f"cannot {doing} the PostgreSQL index: {_first_line(error)}",
            hint="see the log of the server",
        ) from error


def exists(connection: Connection) -> bool:
    """Whether the database holds an index."""
    found = connection.execute("SELECT to_regclass('costream.state') IS NOT NULL").fetchone()
    return bool(found and found[0])


def has_items(connection: Connection) -> bool:
    """Whether the database holds items of an index, its own or as a shard."""
    found = connection.execute("SELECT to_regclass('costream.items') IS NOT NULL").fetchone()
    return bool(found and found[0])


def create(connection: Connection) -> None:
    """Make an empty index, or leave the one that is there.

    Raises:
        DataError: The server's pgvector is absent or too old.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [WRITER_LOCK])
    if exists(connection):
        return
    create_state(connection, sharded=False)
    connection.execute(sql.SQL("CREATE TABLE costream.items ({})").format(sql.SQL(ITEM_COLUMNS)))
    connection.execute(sql.SQL(ITEM_KEYS).format(table=sql.Identifier("costream", "items")))


def create_state(connection: Connection, *, sharded: bool) -> None:
    """Make the tables that say what an index is."""
    require_pgvector(connection)
    connection.execute(_TABLES)
    connection.execute(
        "INSERT INTO costream.state (one, format, sharded) VALUES (1, %s, %s)", [FORMAT, sharded]
    )


def require_pgvector(connection: Connection) -> None:
    """Make the extension available in this database.

    Raises:
        DataError: It is not installed on the server, or older than is safe.
    """
    found = connection.execute(
        "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if found is None:
        raise DataError(
            "the PostgreSQL server has no extension vector (pgvector)",
            hint="install pgvector 0.8.6 or newer on the server",
        )
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    (version,) = connection.execute(
        "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
    ).fetchall()[0]
    if tuple(int(part) for part in str(version).split(".")[:3]) < LEAST_PGVECTOR:
        raise DataError(
            f"the database has pgvector {version}, expected 0.8.6 or newer: older ones can corrupt "
            "their graphs in vacuum",
            hint="install a newer pgvector, then ALTER EXTENSION vector UPDATE",
        )


def check_format(connection: Connection) -> bool:
    """Refuse an index of a newer version; returns whether it is spread over shards."""
    found = connection.execute("SELECT format, sharded FROM costream.state").fetchall()
    if len(found) != 1:
        raise DataError(
            "the index in PostgreSQL is damaged: its row of state is not there",
            hint="restore the database from a backup",
        )
    version, sharded = found[0]
    if version > FORMAT:
        raise DataError(
            f"the index has format {version}, this version of costream reads up to {FORMAT}",
            hint="pip install --upgrade costream",
        )
    return bool(sharded)


def moments_table(space_key: int) -> sql.Identifier:
    """The table of a space's vectors."""
    return sql.Identifier("costream", moments_name(space_key))


def moments_name(space_key: int) -> str:
    """Its name, without the schema."""
    return f"moments_{space_key}"


def one(connection: Connection, query: sql.SQL | sql.Composed, values: Sequence[Any] = ()) -> Any:
    """The first value of the first row of a query."""
    return connection.execute(query, values).fetchall()[0][0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
