"""One way to open an index, whatever it is kept in."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from costream.errors import ConfigError

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex

_POSTGRES = ("postgresql://", "postgres://")


def open_index(
    place: str | os.PathLike[str], *, create: bool = False, kernel: str | None = None
) -> SearchIndex:
    """Open an index.

    Args:
        place: A directory, or the address of a PostgreSQL database ("postgresql://...").
        create: Whether to make the index, empty, when there is none.
        kernel: As of `Index.open`; a database scans by itself and takes none.

    Returns:
        The index; close it, or use it in a `with` statement.

    Raises:
        DataError: There is no index, it is damaged, or it cannot be read or made.
        ConfigError: The address is of another kind, the driver for it or the kernel is not
            installed, or a kernel is wanted of a database.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, open_index(folder, create=True) as index:
        ...     len(index)
        0
    """
    name = os.fspath(place)
    if name.startswith(_POSTGRES):
        if kernel is not None:
            raise ConfigError(
                f"got kernel={kernel!r} for a database, expected none",
                hint="kernels are for indexes in a directory; leave it out",
            )
        postgres = import_module("costream.index.postgres")
        opened: SearchIndex = postgres.PostgresIndex.open(name, create=create)
        return opened
    if "://" in name:
        raise ConfigError(
            f"got the index {name.partition('://')[0]}://..., "
            "expected a directory or postgresql://...",
        )
    from costream.index.store import Index

    return Index.open(name, create=create, kernel=kernel)
