"""What is whole in a damaged database, found without SQLite: every leaf page is read by itself.

A row is believed when its checksum fits, wherever its page is and whatever happened to the pages
that led to it. Pages of the log count where it is whole. The form of the file:
sqlite.org/fileformat2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costream.index import rows, schema, vector_rows
from costream.index.database import FILE_NAME
from costream.index.records import Item
from costream.index.schema import DamageError, SpaceRow

_LEAF = 0x0D
_LOG_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_LOG_MAGICS = {0x377F0682: "<", 0x377F0683: ">"}
_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
# A row's number of columns tells its table: of no two are they the same.
_ITEM_COLUMNS, _VECTOR_COLUMNS, _SPACE_COLUMNS, _STATE_COLUMNS = 14, 5, 7, 7


@dataclass(kw_only=True, slots=True)
class Salvage:
    """Rows that are whole.

    Attributes:
        items: By key.
        vectors: Place to start, end and bytes, in no order.
        spaces: As they were written; their counts mean nothing any more.
        num_items: How many there should be; None when that is lost, too.
    """

    items: dict[int, Item] = field(default_factory=dict)
    vectors: dict[int, tuple[float | None, float | None, bytes]] = field(default_factory=dict)
    spaces: list[SpaceRow] = field(default_factory=list)
    num_items: int | None = None


def salvage(directory: Path) -> Salvage:
    """Read what is whole.

    Args:
        directory: That holds the database and its log; nothing is written.

    Raises:
        OSError: A file cannot be read.
    """
    path = directory / FILE_NAME
    whole = path.read_bytes() if path.exists() else b""
    log_path = path.with_name(f"{FILE_NAME}-wal")
    log = log_path.read_bytes() if log_path.exists() else b""
    page_bytes = _page_bytes(whole, log)
    pages = _Pages(whole, _logged_pages(log, page_bytes), page_bytes)
    found = Salvage()
    for number in range(1, pages.count + 1):
        for key, values in _leaf_rows(pages, number):
            _take(found, key, values)
    return found


def _take(found: Salvage, key: int, values: list[Any]) -> None:
    try:
        if len(values) == _ITEM_COLUMNS:
            # SQLite writes whole numbers as such, also where the column is one of fractions.
            for column in (7, 8):
                values[column] = values[column] if values[column] is None else float(values[column])
            _, item = rows.decoded((key, *values[1:]))
            found.items[key] = item
        elif len(values) == _VECTOR_COLUMNS:
            _, start, end, vector, crc = values
            if vector_rows.checksum(key, start, end, vector) == crc:
                found.vectors[key] = (start, end, vector)
        elif len(values) == _SPACE_COLUMNS:
            _take_space_or_state(found, key, values)
    except (DamageError, TypeError, ValueError, AttributeError, struct.error):
        pass  # not what was written, or of another table


def _take_space_or_state(found: Salvage, key: int, values: list[Any]) -> None:
    if isinstance(values[1], str):
        row = (key, *values[1:])
        found.spaces.append(schema.decoded_space(row))
    elif schema.checksum(tuple(values[1:-1])) == values[-1]:
        found.num_items = values[4]


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of a database, those of its log first."""

    whole: bytes
    logged: Mapping[int, bytes]
    page_bytes: int

    @property
    def count(self) -> int:
        return max(-(-len(self.whole) // self.page_bytes), *self.logged, 0)

    def get(self, number: int) -> bytes:
        if number in self.logged:
            return self.logged[number]
        return self.whole[(number - 1) * self.page_bytes : number * self.page_bytes]


def _page_bytes(whole: bytes, log: bytes) -> int:
    for size in (
        int.from_bytes(whole[16:18], "big") if whole.startswith(b"SQLite format 3") else 0,
        int.from_bytes(log[8:12], "big"),
    ):
        if size >= 512 and size & (size - 1) == 0:
            return size
    return schema.PAGE_BYTES


def _logged_pages(log: bytes, page_bytes: int) -> dict[int, bytes]:
    """Pages of the log up to its last whole commit."""
    if len(log) < _LOG_HEADER.size:
        return {}
    magic, _, size, _, *salts_and_sums = _LOG_HEADER.unpack_from(log)
    order = _LOG_MAGICS.get(magic)
    if order is None or size != page_bytes:
        return {}
    salts, sums = salts_and_sums[:2], _sums(order, log[:24], (0, 0))
    committed: dict[int, bytes] = {}
    since: dict[int, bytes] = {}
    step = _FRAME_HEADER.size + page_bytes
    for start in range(_LOG_HEADER.size, len(log) - step + 1, step):
        number, size_after, *rest = _FRAME_HEADER.unpack_from(log, start)
        page = log[start + _FRAME_HEADER.size : start + step]
        sums = _sums(order, log[start : start + 8], sums)
        sums = _sums(order, page, sums)
        if rest[:2] != salts or tuple(rest[2:]) != sums:
            break
        since[number] = page
        if size_after:
            committed |= since
            since = {}
    return committed


def _sums(order: str, content: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _leaf_rows(pages: _Pages, number: int) -> Iterator[tuple[int, list[Any]]]:
    """Rows of a page, if it is a leaf of a table: their keys and values."""
    page = pages.get(number)
    start = 100 if number == 1 else 0
    if len(page) < start + 8 or page[start] != _LEAF:
        return
    num_cells = int.from_bytes(page[start + 3 : start + 5], "big")
    for cell in range(num_cells):
        place = start + 8 + 2 * cell
        try:
            offset = int.from_bytes(page[place : place + 2], "big")
            size, offset = _varint(page, offset)
            key, offset = _varint(page, offset)
            yield _signed(key), _values(_payload(pages, page, offset, size))
        except (IndexError, ValueError, struct.error, KeyError):
            continue  # a damaged cell; the others may be whole


def _payload(pages: _Pages, page: bytes, offset: int, size: int) -> bytes:
    """The bytes of a row, with those on overflow pages."""
    usable = pages.page_bytes
    most = usable - 35
    if size <= most:
        return page[offset : offset + size]
    if size > 2**31:
        raise ValueError("no row is that large")
    least = (usable - 12) * 32 // 255 - 23
    local = least + (size - least) % (usable - 4)
    local = local if local <= most else least
    parts = [page[offset : offset + local]]
    following = int.from_bytes(page[offset + local : offset + local + 4], "big")
    rest = size - local
    while rest > 0:
        more = pages.get(following) if following else b""
        if len(more) < usable:
            raise ValueError("an overflow page is not there")
        parts.append(more[4 : 4 + min(rest, usable - 4)])
        rest -= usable - 4
        following = int.from_bytes(more[:4], "big")
    return b"".join(parts)


def _values(payload: bytes) -> list[Any]:
    header_bytes, offset = _varint(payload, 0)
    kinds = []
    while offset < header_bytes:
        kind, offset = _varint(payload, offset)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        value, offset = _value(payload, kind, offset)
        values.append(value)
    return values


def _value(payload: bytes, kind: int, offset: int) -> tuple[Any, int]:
    if kind == 0:
        return None, offset
    if kind in (8, 9):
        return kind - 8, offset
    if kind == 7:
        return struct.unpack(">d", payload[offset : offset + 8])[0], offset + 8
    if kind in _SIZES:
        size = _SIZES[kind]
        return int.from_bytes(payload[offset : offset + size], "big", signed=True), offset + size
    size = (kind - 12) // 2
    content = payload[offset : offset + size]
    if kind < 12 or len(content) < size:
        raise ValueError("a value is cut off")
    return (content.decode() if kind % 2 else content), offset + size


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for position in range(8):
        byte = content[offset + position]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + position + 1
    return value << 8 | content[offset + 8], offset + 9


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
