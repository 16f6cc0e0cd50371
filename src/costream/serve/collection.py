"""The index behind the service: always its newest state, also when another process replaces it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from costream.errors import DataError
from costream.index import Filter, Item
from costream.index.protocol import SearchIndex
from costream.index.thumbnails import thumbnail_folder
from costream.serve.ids import PublicIds
from costream.serve.place import Place
from costream.serve.problems import Problem
from costream.serve.settings import ServeSettings
from costream.serve.thumbnails import ThumbnailStore

Sort = Literal["name", "date"]

_SECRET = "serve.secret"  # noqa: S105  the name of a file
# Reading every name takes a second at 100,000 items, and during indexing the state changes all the
# time.
_LISTING_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listing:
    """Every id, in two orders."""

    token: str
    made: float
    by_name: Sequence[str]
    by_date: Sequence[str]


class Collection:
    """Items, their public ids and their thumbnails.

    Args:
        place: Where the index is.
        settings: Of the service.
        cache: Folder for thumbnails and for the secret of public ids; None for the place's own.
    """

    def __init__(self, place: Place, settings: ServeSettings, *, cache: Path | None = None) -> None:
        self._place = place
        self.shows_paths = settings.shows_paths
        folder = (cache or place.cache).absolute()
        self.ids = PublicIds(None if settings.shows_paths else _secret_of(folder))
        self.thumbnails = ThumbnailStore(
            thumbnail_folder(folder),
            max_bytes=settings.limits.picture_file_bytes,
        )
        self._listing: _Listing | None = None

    @property
    def index(self) -> SearchIndex:
        """The index as it is now."""
        return self._place.index

    def token(self) -> str:
        """Names the present state of the index: another one after every change."""
        return self.index.token()

    def close(self) -> None:
        """Give the index and the decoders back."""
        self.thumbnails.close()
        self._place.close()

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

    def moment(self, item: Item, at: float | None) -> float | None:
        """The middle of the indexed moment of a clip that a time is in.

        Args:
            item: Of the index.
            at: Seconds; None for the first moment.

        Returns:
            Seconds; None for what is no clip.
        """
        if item.modality != "video":
            return None
        middles = [
            (span.t_start + span.t_end) / 2
            for span in self.index.moments([item.id])[0]
            if span.t_start is not None and span.t_end is not None
        ]
        return min(middles, key=lambda middle: abs(middle - (at or 0.0)), default=0.0)

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
            there = self.index.matches(where)
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
            there = index.matches(Filter(ids=frozenset(ids)))
            found = index.get([item_id for item_id in ids if item_id in there])
        return {item.id: item for item in found}

    def _fresh_listing(self) -> _Listing:
        listing, now = self._listing, time.monotonic()
        if listing is not None and now - listing.made < _LISTING_S:
            return listing
        index = self.index
        token = index.token()
        if listing is not None and listing.token == token:
            return listing
        items = index.items()
        by_name = sorted(items, key=lambda item: (name_of(item).casefold(), item.id))
        by_date = sorted(items, key=lambda item: (item.when or 0.0, item.id))
        listing = _Listing(
            token=token,
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


def name_of(item: Item) -> str:
    """What people call an item: the name of its file, else its id."""
    return os.path.basename(item.path) if item.path else item.id  # noqa: PTH119  may be any bytes


def _secret_of(folder: Path) -> bytes:
    """The secret that seals ids; the same after a restart, so that links keep their meaning."""
    path = folder / _SECRET
    try:
        found = path.read_bytes()
        if len(found) == 32:
            return found
    except FileNotFoundError:
        pass
    made = secrets.token_bytes(32)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(made)
    except OSError:
        return made  # a folder of somebody else: links last until the service ends
    return made
