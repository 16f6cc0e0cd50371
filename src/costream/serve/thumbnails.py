"""Small pictures of indexed files: made once, when first looked at, and kept beside the index.

A thumbnail's name is the hash of the file's content, one of three sizes, and of clips the moment;
nothing that a client sends becomes part of it. Files are decoded in processes of their own, which a
broken one may crash, and thumbnails are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
from collections.abc import Set
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from PIL import Image

from costream.data.decode_apart import Decoders
from costream.errors import DataError
from costream.index.records import Item
from costream.index.thumbnails import remove_other_thumbnails, thumbnail_path
from costream.serve import files
from costream.serve.problems import Problem

_HASH = re.compile(r"[0-9a-f]{64}\Z")
# Of a file in messages of its decoder; without a colon.
_NAME = "file"
_JPEG_BEGINS, _JPEG_ENDS = b"\xff\xd8\xff", b"\xff\xd9"


class Size(IntEnum):
    """Longest side of a thumbnail in pixels."""

    TILE = 320
    LARGE_TILE = 640
    SCREEN = 1600


_QUALITY = {Size.TILE: 80, Size.LARGE_TILE: 82, Size.SCREEN: 86}


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """A small picture.

    Attributes:
        jpeg: Its bytes.
        of_indexed: Whether it shows the content that was indexed; False when the file has changed.
        made: Whether it was made now, rather than found.
    """

    jpeg: bytes
    of_indexed: bool
    made: bool


class ThumbnailStore:
    """The folder of thumbnails of one index.

    Args:
        folder: Where they are; made when the first is. One that cannot be written is no error: the
            thumbnails are made again each time.
        max_bytes: Most bytes of its file.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._decoders = Decoders()

    def close(self) -> None:
        """End the processes that decode clips."""
        self._decoders.close()

    def get(self, item: Item, size: Size, moment: float | None = None) -> Thumbnail:
        """The thumbnail of an item, made if need be.

        Args:
            item: Of the index.
            size: Longest side in pixels; smaller pictures stay as they are.
            moment: Of a clip, in seconds; one of those that the index has, so that there are not
                more thumbnails than moments.

        Returns:
            The thumbnail.

        Raises:
            Problem: 404 when the file is gone, 415 when it is no picture any more, 413 when it is
                too large.
        """
        path = None
        if _HASH.match(item.content_hash):
            path = self._path(item.content_hash, size, moment)
            found = self._read(path)
            if found is not None:
                return Thumbnail(jpeg=found, of_indexed=True, made=False)
        picture, of_indexed = self._opened(item, moment, size)
        jpeg = _encoded(picture, size)
        # Only what belongs to the index is kept, so that the folder can be cleared by it.
        if path is not None and of_indexed:
            self._write(path, jpeg)
        return Thumbnail(jpeg=jpeg, of_indexed=of_indexed, made=True)

    def picture(self, item: Item, moment: float | None = None) -> Image.Image:
        """What an item shows, large enough for a model.

        Args:
            item: Of the index.
            moment: Of a clip, in seconds.

        Returns:
            Upright RGB.

        Raises:
            Problem: As of `get`; 409 when the file has changed since it was indexed.
        """
        picture, of_indexed = self._opened(item, moment, Size.SCREEN)
        if not of_indexed:
            raise Problem(
                409,
                "the item's file has changed since it was indexed",
                hint="costream index brings the index up to date",
            )
        return picture

    def _opened(
        self, item: Item, moment: float | None, smallest_side: int
    ) -> tuple[Image.Image, bool]:
        """What an item shows, and whether that is what was indexed."""
        file = files.open_item(item)
        try:
            if item.modality == "video":
                frame = self._frame(file, item, moment or 0.0, smallest_side)
                return frame, _is_indexed(file, item)
            content = files.read_all(file, self._max_bytes)
        finally:
            os.close(file.descriptor)
        try:
            picture = self._decoders.decode(content, _NAME, smallest_side=smallest_side)
        except DataError as error:
            raise _no_picture(error) from error
        return picture, hashlib.sha256(content).hexdigest() == item.content_hash

    def _frame(
        self, file: files.OpenFile, item: Item, moment: float, smallest_side: int
    ) -> Image.Image:
        # The very file that was opened, where the system has names for such.
        opened = f"/proc/{os.getpid()}/fd/{file.descriptor}"
        path = opened if os.path.exists(opened) else str(item.path)  # noqa: PTH110
        try:
            return self._decoders.frame_at(path, moment, smallest_side=smallest_side)
        except DataError as error:
            raise _no_picture(error) from error

    def remove_others(self, hashes: Set[str]) -> int:
        """Delete the thumbnails of what is in the index no more.

        Args:
            hashes: Content hashes of every item of the index.

        Returns:
            How many files were deleted.
        """
        return remove_other_thumbnails(self._folder, hashes)

    def _path(self, digest: str, size: Size, moment: float | None) -> Path:
        return thumbnail_path(self._folder, digest, int(size), moment)

    def _read(self, path: Path) -> bytes | None:
        try:
            content = path.read_bytes()
        except OSError:
            return None
        # A power loss may leave a file that was renamed and never filled.
        whole = content.startswith(_JPEG_BEGINS) and content.endswith(_JPEG_ENDS)
        return content if whole else None

    def _write(self, path: Path, jpeg: bytes) -> None:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(jpeg)
            temporary.replace(path)
        except OSError:
            # A full disk or a folder of somebody else: the thumbnail is shown and not kept.
            with contextlib.suppress(OSError):
                temporary.unlink()


def _is_indexed(file: files.OpenFile, item: Item) -> bool:
    """Whether a clip, which may be gigabytes, is the one that was indexed."""
    if item.mtime_ns:
        return (file.size_bytes, file.mtime_ns) == (item.size, item.mtime_ns)
    # It was too fresh for its time to mean anything.
    with os.fdopen(os.dup(file.descriptor), "rb") as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest() == item.content_hash


def _no_picture(error: DataError) -> Problem:
    # Messages begin with what the file is called, which is not for everybody.
    words = error.message.partition(": ")[2] or "cannot be decoded"
    return Problem(415, f"the file {words}")


def _encoded(picture: Image.Image, size: Size) -> bytes:
    picture.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY[size], progressive=size > Size.TILE)
    return stream.getvalue()
