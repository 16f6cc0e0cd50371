"""When a picture was taken, as its EXIF block says, read without any decoder."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

_BEGINS = (b"II*\0", b"MM\0*")
# What stands before a block: in JPEG and HEIC, in PNG (the chunk's name), in WebP (the chunk's name
# and size). A TIFF file begins with it.
_BEFORE = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4}|\A)\Z", re.DOTALL)
_LONGEST_BEFORE = 8
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
    start = min(filter(lambda place: place >= 0, (_find(encoded, b) for b in _BEGINS)), default=-1)
    if start < 0:
        return None
    block = encoded[start:]
    try:
        entries = dict(_entries(block))
    except (struct.error, RecursionError):
        return None
    for tag, offset_tag in _OFFSETS.items():
        date = _date(entries.get(tag, ""), entries.get(offset_tag, ""))
        if date is not None:
            return date
    return None


def _find(encoded: bytes, begin: bytes) -> int:
    """Where a block that begins so is, or -1; ten times faster than one expression for it all."""
    place = encoded.find(begin)
    while place >= 0:
        if _BEFORE.search(encoded[max(place - _LONGEST_BEFORE, 0) : place]):
            break
        place = encoded.find(begin, place + 1)
    return place


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
