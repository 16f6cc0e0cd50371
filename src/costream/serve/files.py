"""Files of indexed items, opened so that nothing else can be read by way of them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from costream.data.sniff import HEAD_BYTES, describe
from costream.index.records import Item
from costream.serve.problems import Problem

# What browsers show and cannot be made to run; anything else is a download of bytes.
_SHOWN = {
    "a JPEG picture": "image/jpeg",
    "a PNG picture": "image/png",
    "a GIF picture": "image/gif",
    "a WebP picture": "image/webp",
    "an AVIF picture": "image/avif",
    "a BMP picture": "image/bmp",
    "an MP4 video": "video/mp4",
    "a Matroska or WebM video": "video/webm",
    "a WAV sound": "audio/wav",
    "an Ogg sound": "audio/ogg",
    "a FLAC sound": "audio/flac",
    "an MP3 sound": "audio/mpeg",
}
DOWNLOAD = "application/octet-stream"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenFile:
    """A regular file that was reached without following a link.

    Attributes:
        descriptor: To be closed by whoever has it.
        size_bytes: When it was opened.
        mtime_ns: When it was opened.
        media_type: By its first bytes, never by its name.
    """

    descriptor: int
    size_bytes: int
    mtime_ns: int
    media_type: str


def open_item(item: Item) -> OpenFile:
    """Open the file of an indexed item.

    The stored path is walked folder by folder and no link is followed, so the file is the one at
    the path that was indexed, whatever has been put in its place or above it since.

    Args:
        item: Of the index.

    Returns:
        The file.

    Raises:
        Problem: 404 when the item has no file, or it is gone, unreadable, or no regular file.
    """
    if item.path is None:
        raise Problem(404, "the item has no file", hint="it was added as a vector only")
    try:
        descriptor = _open_without_links(item.path)
    except (OSError, ValueError) as error:
        raise _gone(error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Problem(404, "the item's file is no regular file any more")
        head = os.pread(descriptor, HEAD_BYTES, 0)
    except OSError as error:
        os.close(descriptor)
        raise _gone(error) from error
    except Problem:
        os.close(descriptor)
        raise
    return OpenFile(
        descriptor=descriptor,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        media_type=_SHOWN.get(describe(head), DOWNLOAD),
    )


def read_all(file: OpenFile, limit_bytes: int) -> bytes:
    """The whole content.

    Args:
        file: An open file.
        limit_bytes: Most bytes to read.

    Returns:
        Its bytes.

    Raises:
        Problem: 404 when it cannot be read, 413 when it is larger.
    """
    if file.size_bytes > limit_bytes:
        raise Problem(413, f"the file has {file.size_bytes:,} bytes, expected {limit_bytes:,}")
    try:
        with os.fdopen(os.dup(file.descriptor), "rb") as stream:
            stream.seek(0)
            return stream.read(limit_bytes)
    except OSError as error:
        raise _gone(error) from error


def _open_without_links(path: str) -> int:
    parts = Path(path).parts
    if not parts or parts[0] != os.sep or ".." in parts:
        raise ValueError("the path is not absolute")
    # O_NONBLOCK: opening a pipe that has taken the file's place must not wait for its other end.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    folder = os.open(os.sep, flags | os.O_DIRECTORY)
    try:
        for part in parts[1:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)


def _gone(error: Exception) -> Problem:
    words = error.strerror if isinstance(error, OSError) and error.strerror else "not a plain path"
    return Problem(
        404,
        f"the item's file cannot be read ({words})",
        hint="it was moved or deleted; costream index --prune brings the index up to date",
    )
