"""One way to open an index, whatever it is kept in."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from costream.errors import ConfigError

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex

_POSTGRES = ("postgresql://", "postgres://")


def open_index(place: str | os.PathLike[str], *, create: bool = False) -> SearchIndex:
    """Open an index.

    Args:
        place: A directory, or the address of a PostgreSQL database ("postgresql://...").
        create: Whether to make the index, empty, when there is none.

    Returns:
        The index; close it, or use it in a `with` statement.

    Raises:
        DataError: There is no index, it is damaged, or it cannot be read or made.
        ConfigError: The address is of another kind, or the driver for it is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, open_index(folder, create=True) as index:
        ...     len(index)
        0
    """
    name = os.fspath(place)
    if name.startswith(_POSTGRES):
        postgres = import_module("costream.index.postgres")
        opened: SearchIndex = postgres.PostgresIndex.open(name, create=create)
        return opened
    if "://" in name:
        raise ConfigError(
            f"got the index {name.partition('://')[0]}://..., "
            "expected a directory or postgresql://...",
        )
    from costream.index.store import Index

    return Index.open(name, create=create)
