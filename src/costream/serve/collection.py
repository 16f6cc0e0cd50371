"""The index behind the service: always its newest state, also when another process replaces it."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from costream.errors import DataError
from costream.index import Filter, Index, Item
from costream.index.database import FILE_NAME
from costream.serve.ids import PublicIds
from costream.serve.problems import Problem
from costream.serve.settings import ServeSettings
from costream.serve.thumbnails import ThumbnailStore

Sort = Literal["name", "date"]

_THUMBNAILS = "thumbnails"
_SECRET = "serve.secret"  # noqa: S105  the name of a file
# Reading every name takes a second at 100,000 items, and during indexing the state changes all the
# time.
_LISTING_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listing:
    """Every id, in two orders."""

    state: tuple[Any, ...]
    made: float
    by_name: Sequence[str]
    by_date: Sequence[str]


class Collection:
    """Items, their public ids and their thumbnails.

    Args:
        directory: Of the index.
        settings: Of the service.

    Raises:
        DataError: There is no index, or it is damaged.
    """

    def __init__(self, directory: Path, settings: ServeSettings) -> None:
        self.directory = directory.absolute()
        self.shows_paths = settings.shows_paths
        self.ids = PublicIds(None if settings.shows_paths else _secret_of(self.directory))
        self.thumbnails = ThumbnailStore(
            self.directory / _THUMBNAILS,
            max_pixels=settings.limits.pixels * 2,
            max_bytes=settings.limits.picture_file_bytes,
        )
        self._lock = threading.Lock()
        self._listing: _Listing | None = None
        self._inode = self._inode_now()
        self._index = Index.open(self.directory)

    @property
    def index(self) -> Index:
        """The index; opened again when it was replaced as a whole (a backup restored, say)."""
        with self._lock:
            inode = self._inode_now()
            if inode != self._inode:
                fresh = Index.open(self.directory)
                # The old one is left to those who are using it; its files go with the last of them.
                self._index, self._inode, self._listing = fresh, inode, None
            return self._index

    def close(self) -> None:
        """Give the files back."""
        with self._lock:
            self._index.close()

    def state(self) -> tuple[Any, ...]:
        """Something that differs after every change of the index."""
        files = [self.directory / FILE_NAME, self.directory / f"{FILE_NAME}-wal"]
        return tuple(_stamp(path) for path in files)

    def item(self, token: str) -> Item:
        """An item by its public id.

        Args:
            token: As answers have it.

        Returns:
            The item.

        Raises:
            Problem: 404 when there is none.
        """
        item_id = self.ids.id(token)
        if item_id is not None:
            index = self.index
            try:
                return index.get([item_id])[0]
            except DataError:
                len(index)  # a damaged or closed index says so itself
        raise Problem(
            404, "there is no item with this id", hint="ids come with the answers of this service"
        )

    def page(
        self, where: Filter | None, *, sort: Sort, descending: bool, offset: int, limit: int
    ) -> tuple[list[Item], int]:
        """Some of everything, in an order.

        Args:
            where: Conditions on the items.
            sort: By file name, or by date.
            descending: Whether the last comes first.
            offset: How many to leave out at the front.
            limit: Most items.

        Returns:
            Items, and how many there are in all for which the conditions hold.
        """
        listing = self._fresh_listing()
        ids = listing.by_name if sort == "name" else listing.by_date
        if where is not None:
            there = {item.id for item in self.index.items() if where.matches(item)}
            ids = [item_id for item_id in ids if item_id in there]
        if descending:
            stop = len(ids) - offset
            wanted = list(reversed(ids[max(stop - limit, 0) : max(stop, 0)]))
        else:
            wanted = list(ids[offset : offset + limit])
        return list(self.known(wanted).values()), len(ids)

    def known(self, ids: Sequence[str]) -> dict[str, Item]:
        """Items by id, leaving out those that have gone since somebody saw them.

        Args:
            ids: Of items that were there a moment ago.

        Returns:
            Id to item.
        """
        index = self.index
        try:
            found = index.get(ids)
        except DataError:
            there = set(index.ids())
            found = index.get([item_id for item_id in ids if item_id in there])
        return {item.id: item for item in found}

    def _fresh_listing(self) -> _Listing:
        state, listing = self.state(), self._listing
        now = time.monotonic()
        if listing is not None and (listing.state == state or now - listing.made < _LISTING_S):
            return listing
        items = self.index.items()
        by_name = sorted(items, key=lambda item: (name_of(item).casefold(), item.id))
        by_date = sorted(items, key=lambda item: (item.when or 0.0, item.id))
        listing = _Listing(
            state=state,
            made=time.monotonic(),
            by_name=[item.id for item in by_name],
            by_date=[item.id for item in by_date],
        )
        self._listing = listing
        return listing

    def sweep(self) -> int:
        """Delete thumbnails of what is in the index no more.

        Returns:
            How many files were deleted.
        """
        return self.thumbnails.remove_others({item.content_hash for item in self.index.items()})

    def _inode_now(self) -> tuple[int, int] | None:
        try:
            status = (self.directory / FILE_NAME).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def name_of(item: Item) -> str:
    """What people call an item: the name of its file, else its id."""
    return os.path.basename(item.path) if item.path else item.id  # noqa: PTH119  may be any bytes


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _secret_of(directory: Path) -> bytes:
    """The secret that seals ids; the same after a restart, so that links keep their meaning."""
    path = directory / _SECRET
    try:
        found = path.read_bytes()
        if len(found) == 32:
            return found
    except FileNotFoundError:
        pass
    made = secrets.token_bytes(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(made)
    except OSError:
        return made  # a read-only index: links last until the service ends
    return made
