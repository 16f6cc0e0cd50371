"""Where the served index is: a folder or a database, opened, and opened again when replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from costream.index import open_index
from costream.index.database import FILE_NAME
from costream.index.protocol import SearchIndex
from costream.index.thumbnails import cache_of_database


class Place:
    """An index that is always the one that is at a place now.

    Args:
        where: Its folder, or the address of its database ("postgresql://...").
        kernel: As of `open_index`.

    Raises:
        DataError: There is no index, or it is damaged.
        ConfigError: The address is of another kind, or its driver is not installed.
    """

    def __init__(self, where: str | os.PathLike[str], *, kernel: str | None = None) -> None:
        name = os.fspath(where)
        self.folder = None if "://" in name else Path(name).absolute()
        self._where = name if self.folder is None else str(self.folder)
        self._kernel = kernel
        self._lock = threading.Lock()
        self._inode = self._inode_now()
        self._index = open_index(self._where, kernel=self._kernel)

    @property
    def index(self) -> SearchIndex:
        """The index; opened again when it was replaced as a whole (a backup restored, say)."""
        with self._lock:
            inode = self._inode_now()
            if inode != self._inode:
                fresh = open_index(self._where, kernel=self._kernel)
                # The old one is left to those who are using it; its files go with the last of them.
                self._index, self._inode = fresh, inode
            return self._index

    @property
    def cache(self) -> Path:
        """Where what is made of the index may be kept: beside it, or below the user's caches."""
        if self.folder is not None:
            return self.folder
        return cache_of_database(self.index.location)

    def close(self) -> None:
        """Give the files, or the connection, back."""
        with self._lock:
            self._index.close()

    def _inode_now(self) -> tuple[int, int] | None:
        if self.folder is None:
            return None
        try:
            status = (self.folder / FILE_NAME).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
