"""The index behind the tools, opened when first asked, and again when that is needed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from costream.errors import CostreamError, DataError, SpaceMismatch
from costream.index import SearchIndex, open_index
from costream.index.database import FILE_NAME
from costream.search import Searcher

T = TypeVar("T")
Load = Callable[[SearchIndex], Searcher]

_log = logging.getLogger("costream.mcp")


class Library:
    """An index and its model, for calls from any thread.

    A server outlives what it serves: the index may be made, replaced or migrated to another model
    after the start, and a database may have been restarted.

    Args:
        place: Folder of the index, or the address of its database.
        load: Makes what answers questions to an index.
    """

    def __init__(self, place: str, load: Load) -> None:
        self.place = place
        self._load = load
        self._lock = threading.Lock()
        self._searcher: Searcher | None = None
        self._file: tuple[int, int] | None = None

    def call(self, work: Callable[[Searcher], T]) -> T:
        """Do something with the index and its model.

        Args:
            work: What to do; done again when the index had to be opened again.

        Returns:
            What `work` returned.

        Raises:
            CostreamError: There is no index, or what `work` raised.
        """
        searcher = self._opened()
        try:
            return work(searcher)
        except (DataError, SpaceMismatch) as error:
            if not _is_stale(searcher, error):
                raise
            _log.info("opening the index again: %s", error)
            self._drop(searcher)
            return work(self._opened())

    def close(self) -> None:
        """Give back what is held."""
        if self._searcher is not None:
            self._drop(self._searcher)

    def _opened(self) -> Searcher:
        with self._lock:
            file = self._file_now()
            if self._searcher is None or file != self._file:
                index = open_index(self.place)
                # What was open before is left to those who are using it.
                self._searcher = self._load(index)
                self._file = file
            return self._searcher

    def _drop(self, searcher: Searcher) -> None:
        with self._lock:
            if self._searcher is searcher:
                self._searcher = None
        searcher.index.close()

    def _file_now(self) -> tuple[int, int] | None:
        """Which file the index is; another one after a backup was restored, say."""
        try:
            status = (Path(self.place) / FILE_NAME).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _is_stale(searcher: Searcher, error: CostreamError) -> bool:
    """Whether opening again may help: the model has changed, or the index does not answer."""
    if isinstance(error, SpaceMismatch):
        return True
    try:
        len(searcher.index)
    except DataError:
        return True
    return False
