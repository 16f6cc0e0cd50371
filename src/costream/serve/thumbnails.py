"""Small pictures of indexed files: made once, when first looked at, and kept beside the index.

A thumbnail's name is the hash of the file's content and one of three sizes; nothing that a client
sends becomes part of it. Files are written whole or not at all.
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

from costream.data.decode import open_image
from costream.errors import DataError
from costream.index.records import Item
from costream.serve import files
from costream.serve.problems import Problem

_HASH = re.compile(r"[0-9a-f]{64}\Z")
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
        max_pixels: Most pixels of a picture.
        max_bytes: Most bytes of its file.
    """

    def __init__(self, folder: Path, *, max_pixels: int, max_bytes: int) -> None:
        self._folder = folder
        self._max_pixels = max_pixels
        self._max_bytes = max_bytes

    def get(self, item: Item, size: Size) -> Thumbnail:
        """The thumbnail of an item, made if need be.

        Args:
            item: Of the index.
            size: Longest side in pixels; smaller pictures stay as they are.

        Returns:
            The thumbnail.

        Raises:
            Problem: 404 when the file is gone, 415 when it is no picture any more, 413 when it is
                too large.
        """
        if _HASH.match(item.content_hash):
            found = self._read(self._path(item.content_hash, size))
            if found is not None:
                return Thumbnail(jpeg=found, of_indexed=True, made=False)
        file = files.open_item(item)
        try:
            content = files.read_all(file, self._max_bytes)
        finally:
            os.close(file.descriptor)
        jpeg = self._make(content, size)
        digest = hashlib.sha256(content).hexdigest()
        # Only what belongs to the index is kept, so that the folder can be cleared by it.
        if digest == item.content_hash:
            self._write(self._path(digest, size), jpeg)
        return Thumbnail(jpeg=jpeg, of_indexed=digest == item.content_hash, made=True)

    def remove_others(self, hashes: Set[str]) -> int:
        """Delete the thumbnails of what is in the index no more.

        Args:
            hashes: Content hashes of every item of the index.

        Returns:
            How many files were deleted.
        """
        removed = 0
        for path in self._folder.glob("??/*"):
            if path.name.partition("-")[0] not in hashes:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _path(self, digest: str, size: Size) -> Path:
        return self._folder / digest[:2] / f"{digest}-{int(size)}.jpg"

    def _make(self, content: bytes, size: Size) -> bytes:
        try:
            picture = open_image(content, max_pixels=self._max_pixels, smallest_side=size)
        except DataError as error:
            # "picture of 123 bytes: is ..." without what it is called.
            raise Problem(415, f"the file {error.message.partition(': ')[2]}") from error
        picture.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=_QUALITY[size], progressive=size > Size.TILE)
        return stream.getvalue()

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
