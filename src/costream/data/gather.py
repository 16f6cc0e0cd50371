"""Collect the records of any format into a data set, by one set of rules."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from costream.data.captions import clean_captions
from costream.data.dataset import DataSet
from costream.data.failures import Failure, printable
from costream.data.picture import PictureSource
from costream.errors import DataError
from costream.records import Sample

Slot: TypeAlias = Literal["image", "video"]
"""What a sample shows."""

_NUM_NAMED = 5  # how many left-out records an error names


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a caller may say about a source; None means "find out".

    Attributes:
        split: Part of a source that has several.
        images: Folder that picture names are relative to.
        image_field: Field that holds the picture's name.
        caption_field: Field that holds the captions.
        allow_missing: Most records that may be left out.
    """

    split: str | None = None
    images: Path | None = None
    image_field: str | None = None
    caption_field: str | None = None
    allow_missing: int = 0


@dataclass(kw_only=True, slots=True)
class _Entry:
    source: PictureSource
    slot: Slot
    where: str
    texts: dict[str, list[str]]
    meta: dict[str, Any]
    others: list[dict[str, Any]]


@dataclass(kw_only=True, slots=True)
class Gatherer:
    """Merges records of the same picture, drops what is empty, checks what is named.

    Attributes:
        name: Name of the data set.
        need_captions: Whether a picture without any caption counts as missing.
        failures: What has been left out so far.
    """

    name: str
    need_captions: bool = True
    failures: list[Failure] = field(default_factory=list)
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _num_dropped: int = 0

    def add(
        self,
        key: str,
        source: PictureSource,
        *,
        slot: Slot = "image",
        where: str,
        captions: Any = None,
        translations: Mapping[str, tuple[str, ...]] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Add one record; a second record of the same picture adds its captions to the first.

        Args:
            key: Id of the picture.
            source: Where the picture is.
            slot: Whether it is a picture or a video.
            where: Place of the record in the source, for messages.
            captions: One string, a list of strings, or None.
            translations: Slot name to captions.
            meta: Everything else that the source says. When a picture has several records, `meta`
                is the first one's, with all of them, in order, under `"records"`.

        Raises:
            DataError: A caption is not text.
        """
        texts, num_dropped = clean_captions([] if captions is None else captions, where)
        extra = dict(meta or {})
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(source=source, slot=slot, where=where, texts={}, meta=extra, others=[])
            self._entries[key] = entry
        else:
            entry.others.append(extra)
        for name, more in {"text": texts, **(translations or {})}.items():
            entry.texts.setdefault(name, []).extend(more)
        self._num_dropped += num_dropped

    def fail(self, path: str, reason: str) -> None:
        """Leave a record out.

        Args:
            path: The file or record.
            reason: One sentence.
        """
        self.failures.append(Failure(path=path, reason=reason))

    def finish(self, allow_missing: int) -> DataSet:
        """Check that pictures are there and have captions, and close the data set.

        Args:
            allow_missing: Most records that may be left out.

        Returns:
            The data set, samples in the order in which their pictures were first named.

        Raises:
            DataError: More records than allowed were left out, or none is left.
        """
        samples = []
        for key, entry in self._entries.items():
            if isinstance(entry.source, Path) and not _is_file(entry.source):
                self.fail(str(entry.source), f"is not there, named by {printable(entry.where)}")
            elif self.need_captions and not entry.texts["text"]:
                self.fail(key, f"has no caption that is not empty ({printable(entry.where)})")
            else:
                samples.append(_sample(key, entry))
        self._check_missing(allow_missing, len(samples))
        return DataSet(
            name=self.name,
            samples=tuple(samples),
            missing=tuple(self.failures),
            num_dropped_captions=self._num_dropped,
        )

    def _check_missing(self, allow_missing: int, num_kept: int) -> None:
        if len(self.failures) > allow_missing:
            named = "; ".join(
                f"{printable(failure.path)} {failure.reason}"
                for failure in self.failures[:_NUM_NAMED]
            )
            more = len(self.failures) - _NUM_NAMED
            raise DataError(
                f"{printable(self.name)}: {len(self.failures)} of "
                f"{num_kept + len(self.failures)} records cannot be used, expected at most "
                f"{allow_missing}: {named}{f'; and {more} more' if more > 0 else ''}",
                hint=f"repair them, or pass allow_missing={len(self.failures)} "
                f"(--allow-broken {len(self.failures)}) to leave them out",
            )
        if not num_kept:
            raise DataError(
                f"{printable(self.name)}: got no usable record, expected at least one",
                hint="check that the file is complete and its pictures are there",
            )


def _sample(key: str, entry: _Entry) -> Sample:
    meta = entry.meta
    if entry.others:
        meta = {**meta, "records": (dict(meta), *entry.others)}
    slots: dict[str, Any] = {entry.slot: entry.source}
    slots |= {slot: tuple(texts) for slot, texts in entry.texts.items() if texts or slot == "text"}
    return Sample(id=key, group=key, slots=slots, meta=meta)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL letter
        return False


def source_name(path: Path) -> str:
    """Name a data set after its file and folder.

    Args:
        path: The source.

    Returns:
        Such as `flickr8k/dev` for `/data/flickr8k/dev.jsonl`.

    Example:
        >>> source_name(Path("/data/flickr8k/dev.jsonl"))
        'flickr8k/dev'
    """
    full = path.absolute()
    return f"{full.parent.name}/{full.stem}" if full.suffix else full.name


def picture_key(name: Any, where: str) -> str:
    """Make the id of a picture from its name in a manifest.

    Args:
        name: The name as written.
        where: Place of the record, for errors.

    Returns:
        The name with `./` and doubled slashes taken out, so that one picture has one id.

    Raises:
        DataError: The name is no string, or empty.

    Example:
        >>> picture_key("./images//a.jpg", "line 1")
        'images/a.jpg'
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(
            f"{where}: got {name!r:.60} as the picture's name, expected a file name",
            hint="name the right field with image_field=",
        )
    return posixpath.normpath(name)


# Where the usual packages of COCO and Flickr keep their pictures, next to the captions file.
_USUAL_FOLDERS = (
    "images Images img train2014 val2014 train2017 val2017 flickr30k-images flickr30k_images "
    "Flicker8k_Dataset Flickr8k_Dataset"
).split()


def find_picture_folder(manifest: Path, names: list[str], options: ReadOptions) -> Path:
    """Find the folder that the picture names of a captions file are relative to.

    Args:
        manifest: The captions file.
        names: Names of pictures, some of which may be missing.
        options: `images` decides when given.

    Returns:
        The folder of the captions file, a usual folder next to it or one level above; of those,
        the one that holds most of the first hundred pictures.

    Raises:
        DataError: None of them holds any of the pictures, or the given folder is absent.
    """
    if options.images is not None:
        if not options.images.is_dir():
            raise DataError(
                f"{printable(options.images)}: is not a folder, expected the folder of pictures",
                hint="check images=",
            )
        return options.images
    here = manifest.parent
    above = here.absolute().parent
    folders = [here, *(here / usual for usual in _USUAL_FOLDERS)]
    folders += [above, *(above / usual for usual in _USUAL_FOLDERS)]
    hits = [sum(_is_file(folder / name) for name in names[:100]) for folder in folders]
    best = max(range(len(folders)), key=lambda position: hits[position])
    if not hits[best]:
        first = printable(names[0]) if names else "none"
        raise DataError(
            f"{printable(manifest)}: names pictures (first: {first!r}) that are neither in "
            f"{printable(here)} nor in a folder like 'images' or 'train2014' near it",
            hint="name their folder with images=FOLDER",
        )
    return folders[best]


def choose_split(found: Mapping[str, int], wanted: str | None, where: str) -> str | None:
    """Decide which part of a source to read; never by guessing.

    Args:
        found: Split name to its number of records.
        wanted: What the caller asked for; "all" for everything.
        where: The source, for errors.

    Returns:
        The split to read, None for everything.

    Raises:
        DataError: The split does not exist, or there are several and none was asked for.

    Example:
        >>> choose_split({"train": 3}, None, "a.json")
        'train'
    """
    parts = ", ".join(f"{name} ({count:,})" for name, count in sorted(found.items()))
    if wanted == "all":
        return None
    if wanted is None and len(found) <= 1:
        return next(iter(found), None)
    if wanted is None:
        raise DataError(
            f"{where}: holds several splits: {parts}; expected to be told which one to read",
            hint='pass split="NAME", or split="all" for everything',
        )
    if wanted not in found:
        raise DataError(
            f"{where}: got split={wanted!r}, expected one of: {parts or 'none, it has no splits'}",
            hint="pass one of these names, or split='all'",
        )
    return wanted
