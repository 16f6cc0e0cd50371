"""Rewriting an index so that nothing is left of what was removed."""

from __future__ import annotations

from costream.errors import DataError
from costream.index import codes, database, rows, schema, words
from costream.index.session import Session
from costream.index.thumbnails import remove_other_thumbnails, thumbnail_folder


def purge(session: Session) -> None:
    """Rewrite every file, so that nothing is left of what was removed.

    Raises:
        DataError: The index cannot be written, or another process keeps reading an old state.
    """
    session.refuse_read_only()
    try:
        busy = _rewrite(session)
    except DataError as error:
        raise DataError(
            f"removed, but traces are left: {error.message}",
            hint=f"{error.hint}; then forget the same again",
        ) from error
    if busy:
        raise DataError(
            f"removed, but {session.path}-wal still holds what was: another process reads it",
            hint="end that process and forget the same ids again",
        )


def _rewrite(session: Session) -> bool:
    """Rewrite; gives whether the log could not be emptied."""
    with session.lock, database.explained(session.path, "rewrite"):
        with session.writing() as connection:
            # FTS5 keeps removed words until its lists happen to be merged.
            words.clear(connection)
            words.add(connection, rows.select_all(connection, schema.read_state(connection)))
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # Removed rows leave traces in the gaps of pages that were split; fresh pages have none.
        connection.execute("VACUUM")
        codes.remove_all(session.directory)
        hashes = {h for (h,) in connection.execute("SELECT content_hash FROM items")}
        remove_other_thumbnails(thumbnail_folder(session.directory), hashes)
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return bool(busy)
