"""Whether an index is as it was written: everything read and compared with its checksums."""

from __future__ import annotations

import sqlite3

from costream.errors import DataError
from costream.index import rows, schema, vector_rows, words
from costream.index.schema import DamageError
from costream.index.session import Session


def problems(session: Session) -> tuple[str, ...]:
    """What is wrong, one sentence each; empty when all is well."""
    found: list[str] = []
    try:
        with session.reading() as connection:
            lines = connection.execute("PRAGMA integrity_check").fetchall()
            found += [line for (line,) in lines if line != "ok"]
            _check_rows(connection)
        if not session.read_only:
            # FTS5 takes the question for a change.
            with session.writing() as connection:
                words.check(connection)
    except DataError as error:
        found.append(error.message)
    return tuple(found)


def _check_rows(connection: sqlite3.Connection) -> None:
    state = schema.read_state(connection)
    keyed = rows.select_all(connection, state)
    if words.count(connection) != sum(words.has_words(item) for _, item in keyed):
        raise DamageError("its words are not those of its items")
    keys = {key for key, _ in keyed}
    for entry in schema.read_spaces(connection):
        if not vector_rows.check_all(connection, entry) <= keys:
            raise DamageError("an item that has a vector is not there")
