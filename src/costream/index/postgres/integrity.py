"""What is wrong with an index in PostgreSQL, as far as its rows tell."""

from __future__ import annotations

from psycopg import sql

from costream.index.postgres import schema


def problems(connection: schema.Connection) -> tuple[str, ...]:
    """Compare items and vectors of the active space.

    Args:
        connection: In a transaction that reads one state.

    Returns:
        One sentence each; empty when all is well.
    """
    found = []
    items = sql.SQL("costream.items")
    for key, space in connection.execute(
        "SELECT key, space FROM costream.spaces WHERE role = 'active'"
    ).fetchall():
        table = schema.moments_table(int(key))
        for what, one, other in (
            ("items without a vector", items, table),
            ("vectors without an item", table, items),
        ):
            query = sql.SQL(
                "SELECT count(DISTINCT id) FROM {} AS one WHERE NOT EXISTS "
                "(SELECT 1 FROM {} AS other WHERE other.id = one.id)"
            ).format(one, other)
            if count := int(schema.one(connection, query)):
                found.append(f"{count} {what} of {space['encoder']}")
    return tuple(found)
