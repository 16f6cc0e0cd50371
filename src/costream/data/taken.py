"""When a picture was taken, as its EXIF block says, read without any decoder."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

# Where the block begins: in JPEG and HEIC, in PNG (after the chunk's name), in WebP (after the
# chunk's name and size), or at the start of a TIFF file.
_START = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4}|\A)(II\*\0|MM\0\*)", re.DOTALL)
_EXIF, _TAKEN, _DIGITISED = 0x8769, 0x9003, 0x9004
_OFFSETS = {_TAKEN: 0x9011, _DIGITISED: 0x9012}
_ASCII = 2
_MOST_ENTRIES = 1000


def date_taken(encoded: bytes) -> float | None:
    """When a picture was taken.

    Args:
        encoded: The file.

    Returns:
        Seconds since 1970; the camera's clock counts as UTC unless the block says what it is off
        by. None when the file does not say, or says nonsense.

    Example:
        >>> date_taken(b"no picture") is None
        True
    """
    found = _START.search(encoded)
    if found is None:
        return None
    block = encoded[found.start(1) :]
    try:
        entries = dict(_entries(block))
    except (struct.error, RecursionError):
        return None
    for tag, offset_tag in _OFFSETS.items():
        date = _date(entries.get(tag, ""), entries.get(offset_tag, ""))
        if date is not None:
            return date
    return None


def _entries(block: bytes) -> Iterator[tuple[int, str]]:
    """Texts of the EXIF directory by tag."""
    order = "<" if block.startswith(b"II") else ">"
    (first,) = struct.unpack_from(f"{order}4xI", block)
    for tag, _, _, value in _directory(block, order, first):
        if tag == _EXIF:
            (place,) = struct.unpack(f"{order}I", value)
            for inner, kind, count, at in _directory(block, order, place):
                if kind == _ASCII and count <= 4:
                    yield inner, _text(at[:count])
                elif kind == _ASCII:
                    (start,) = struct.unpack(f"{order}I", at)
                    yield inner, _text(block[start : start + count])


def _directory(block: bytes, order: str, place: int) -> Iterator[tuple[int, int, int, bytes]]:
    (count,) = struct.unpack_from(f"{order}H", block, place)
    for number in range(min(count, _MOST_ENTRIES)):
        yield struct.unpack_from(f"{order}HHI4s", block, place + 2 + 12 * number)


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").rstrip("\0 ")


def _date(text: str, offset: str) -> float | None:
    try:
        moment = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    zone: timezone = UTC
    if re.fullmatch(r"[+-]\d\d:[0-5]\d", offset):
        shift = timedelta(hours=int(offset[1:3]), minutes=int(offset[4:]))
        if shift < timedelta(hours=24):
            zone = timezone(-shift if offset[0] == "-" else shift)
    return moment.replace(tzinfo=zone).timestamp()
