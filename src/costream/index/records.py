"""What an index holds and reports: data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from costream.records import Space

if TYPE_CHECKING:
    from costream.data.failures import Failure


Modality = Literal["image", "video", "audio", "text"]
Role = Literal["active", "building", "retired"]
MODALITIES: tuple[Modality, ...] = ("image", "video", "audio", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing that can be found.

    Attributes:
        id: Unique in the index. Pictures that `update_index` adds have their path as id.
        path: Where the file is, absolute and without symbolic links, or None when there is no
            file. Bytes of a name that are not UTF-8 are kept as Python's surrogate escapes.
        content_hash: sha256 (hex) of the file's bytes; empty when there is no file.
        size: Bytes of the file.
        mtime_ns: When the file was last modified; 0 when that is not known, or was so recent that
            a later change could bear the same time. The next update then compares contents.
        modality: What it is.
        date: When it was made, in seconds since 1970 UTC (of a picture, when it was taken, if it
            says so), or None when that is not known.
        tags: Words that it was filed under, each once.
        caption: A sentence about it.
        text: Words found in it, as by text recognition.
        meta: Anything else that JSON can hold.
    """

    id: str
    path: str | None = None
    content_hash: str = ""
    size: int = 0
    mtime_ns: int = 0
    modality: Modality = "image"
    date: float | None = None
    tags: tuple[str, ...] = ()
    caption: str = ""
    text: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def when(self) -> float | None:
        """The date, else when the file was modified, in seconds since 1970 UTC; None if neither."""
        if self.date is not None:
            return self.date
        return self.mtime_ns / 1e9 if self.mtime_ns else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What one vector of an item stands for.

    Attributes:
        t_start: Seconds from the start of the clip; None for an item that has no moments.
        t_end: End of the same.
    """

    t_start: float | None = None
    t_end: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceEntry:
    """A space that an index holds vectors of.

    Attributes:
        space: Which.
        role: "active" is searched and added to; "building" is being filled by a migration;
            "retired" was active before the last switch and can be switched back to.
        num_items: Items that have a vector in it.
    """

    space: Space
    role: Role
    num_items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexStats:
    """Size and origin of an index.

    Attributes:
        directory: Where it is.
        num_items: Items that can be found.
        space: Where the vectors live; None before the first item.
        size_bytes: Bytes of all its files.
        format: Version of the form of its files.
    """

    directory: str
    num_items: int
    space: Space | None
    size_bytes: int
    format: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Files below the given folders that cannot be embedded here.

    Attributes:
        what: "videos" or "sounds".
        count: How many, by their suffixes.
        reason: Why, and what would change that; safe to print.
    """

    what: str
    count: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What one run of `update_index` did.

    Attributes:
        added: Files that were not in the index.
        changed: Files whose content had changed.
        unchanged: Files that were in the index already with this content.
        moved: Files that were known under a path that is gone.
        removed: Items whose files are gone, with `prune=True`.
        embedded: Pictures and clips that went through the model; the rest of added, changed and
            moved ones had the content of a known one.
        failures: Files that could not be indexed. One that was indexed before keeps the vector of
            its last good content, and is tried again by every run.
        left_out: What was met in folders and not tried; it is no failure.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    embedded: int = 0
    failures: tuple[Failure, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
