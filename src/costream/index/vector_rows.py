"""The vectors of the database: where each has its place, written and believed by checksum.

A vector's place is one number made of space, item and part, so that the table is in this order: the
vectors of a space are together, and within them those of an item.

Shape letters: M vectors, D dimensions.
"""

from __future__ import annotations

import math
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.index.check import Batch
from costream.index.schema import DamageError, SpaceRow
from costream.records import Space

# 7 bits of space, 36 of item, 20 of part.
MAX_SPACES = 2**7
MAX_KEY = 2**36 - 1
MAX_PARTS = 2**20
_ITEM_BITS = 56
_PART_BITS = 20
_SELECT = "SELECT place, t_start, t_end, vector, crc FROM vectors WHERE place"
_INSERT = "INSERT INTO vectors (place, t_start, t_end, vector, crc) VALUES (?, ?, ?, ?, ?)"
# Vectors without spans that lie one after another, their checksums in ten digits each.
_INSERT_JOINED = (
    "INSERT INTO vectors (place, vector, crc) SELECT value, "
    "substr(:vectors, key * :size + 1, :size), CAST(substr(:crcs, key * 10 + 1, 10) AS INTEGER) "
    "FROM json_each(:places)"
)
_JOINED_BYTES = 2**25
# Vectors held as Python objects at a time while reading many.
_CHUNK = 4096
_SPAN = struct.Struct("<dd")
_PRIME = 2**32 - 5


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVector:
    """A vector with its place.

    Attributes:
        key: Key of the item.
        part: Its number within the item.
        span: Start and end in seconds, or None.
        vector: float16 (D,), little-endian.
    """

    key: int
    part: int
    span: tuple[float, float] | None
    vector: bytes


def place_of(number: int, key: int, part: int = 0) -> int:
    """The place of a vector.

    Example:
        >>> place_of(0, 1, 2)
        1048578
    """
    return number << _ITEM_BITS | key << _PART_BITS | part


def number_of(place: int) -> int:
    """The number of the space that a vector is of."""
    return place >> _ITEM_BITS


def key_of(place: int) -> int:
    """The key of the item that a vector belongs to."""
    return place >> _PART_BITS & MAX_KEY


def keys_of(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys of the items that vectors belong to."""
    return (places >> _PART_BITS) & MAX_KEY


def parts_of(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the vectors within their items."""
    return places & (MAX_PARTS - 1)


def insert(
    connection: sqlite3.Connection, number: int, keys: Sequence[int], batch: Batch
) -> NDArray[np.int64]:
    """Store the vectors of items that have none in this space.

    Args:
        connection: In a transaction.
        number: Of the space.
        keys: Of the items that the batch belongs to.
        batch: The vectors.

    Returns:
        int64 (M,): their places.
    """
    firsts = np.array(keys, dtype=np.int64) << _PART_BITS | number << _ITEM_BITS
    places = firsts[batch.parents] + batch.parts()
    vectors = np.ascontiguousarray(batch.vectors, dtype="<f2")
    if batch.spans is not None:
        connection.executemany(_INSERT, _rows(places, vectors, batch.spans))
        return places
    size = 2 * vectors.shape[1]
    crcs = _checksums(places, vectors)
    some = max(1, _JOINED_BYTES // max(1, size))
    for start in range(0, len(places), some):
        part = slice(start, start + some)
        connection.execute(
            _INSERT_JOINED,
            {
                "places": str(places[part].tolist()),
                # Bytes, in which each is found at once.
                "crcs": (("%010d" * len(crcs[part])) % tuple(crcs[part])).encode(),
                "vectors": vectors[part].reshape(-1).view(np.uint8).data,
                "size": size,
            },
        )
    return places


def _checksums(places: NDArray[np.int64], vectors: NDArray[np.float16]) -> list[int]:
    """`checksum` of each vector, without a call for each."""
    size, whole = 2 * vectors.shape[1], vectors.reshape(-1).view(np.uint8).data
    crc32 = zlib.crc32
    ends = range(size, len(whole) + size, size)
    starts = (places % _PRIME).tolist()
    return [crc32(whole[end - size : end], start) for end, start in zip(ends, starts, strict=True)]


def _rows(
    places: NDArray[np.int64], vectors: NDArray[np.float16], spans: NDArray[np.float64]
) -> Iterator[tuple[Any, ...]]:
    for place, vector_D, span in zip(places.tolist(), vectors, spans.tolist(), strict=True):
        vector = vector_D.tobytes()
        start, end = (None, None) if math.isnan(span[0]) else span
        yield place, start, end, vector, checksum(place, start, end, vector)


def checksum(place: int, start: float | None, end: float | None, vector: Any) -> int:
    """Checksum of a vector, good for one place and one span only."""
    # Another place is another start, which ends in another sum of the same bytes.
    crc = zlib.crc32(vector, place % _PRIME)
    return crc if start is None and end is None else zlib.crc32(_SPAN.pack(start, end), crc)


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed from one space."""

    num_items: int = 0
    num_vectors: int = 0
    num_spans: int = 0


def delete(connection: sqlite3.Connection, number: int, keys: Iterable[int]) -> Removed:
    """Remove the vectors of some items in one space."""
    counts = np.zeros(3, dtype=np.int64)
    for key in keys:
        ends = (place_of(number, key), place_of(number, key + 1) - 1)
        vectors, spans = connection.execute(
            "SELECT COUNT(*), COUNT(t_start) FROM vectors WHERE place BETWEEN ? AND ?", ends
        ).fetchone()
        if vectors:
            connection.execute("DELETE FROM vectors WHERE place BETWEEN ? AND ?", ends)
            counts += (1, vectors, spans)
    return Removed(*counts.tolist())


def delete_all(connection: sqlite3.Connection, number: int) -> None:
    """Remove every vector of one space."""
    connection.execute("DELETE FROM vectors WHERE place BETWEEN ? AND ?", _ends(number))


def select(
    connection: sqlite3.Connection, entry: SpaceRow, keys: Iterable[int]
) -> Iterator[StoredVector]:
    """Vectors of some items in one space, item by item, each item's in order.

    Raises:
        DamageError: A row is not what was written.
    """
    for key in keys:
        ends = (place_of(entry.number, key), place_of(entry.number, key + 1) - 1)
        rows = connection.execute(f"{_SELECT} BETWEEN ? AND ? ORDER BY place", ends)
        for part, row in enumerate(rows):
            _refuse_other(row, entry.space)
            if row[0] != ends[0] + part:
                raise DamageError(f"vector {part} of item number {key} is not there")
            yield _stored(row, key, part)


def select_places(
    connection: sqlite3.Connection, entry: SpaceRow, places: Iterable[int]
) -> Iterator[StoredVector]:
    """Vectors by their places, in the order asked for.

    Raises:
        DamageError: A row is absent or not what was written.
    """
    for place in places:
        row = connection.execute(f"{_SELECT} = ?", [place]).fetchone()
        key, part = place >> _PART_BITS & MAX_KEY, place & (MAX_PARTS - 1)
        if row is None:
            raise DamageError(f"vector {part} of item number {key} is not there")
        _refuse_other(row, entry.space)
        yield _stored(row, key, part)


def read_all(
    connection: sqlite3.Connection, entry: SpaceRow, out: tuple[NDArray[Any], NDArray[Any]]
) -> None:
    """Read every vector of one space in the order of their places.

    Args:
        connection: In a transaction.
        entry: The space.
        out: int64 (M,) and float16 (M, D) to write places and vectors to.

    Raises:
        DamageError: A row is not what was written, or not all are there.
    """
    places_M, vectors_MD = out
    done = 0
    for places, vectors in read_blocks(connection, entry, _CHUNK):
        part = slice(done, done + len(places))
        if part.stop <= len(places_M):
            places_M[part], vectors_MD[part] = places, vectors
        done = part.stop


def read_blocks(
    connection: sqlite3.Connection, entry: SpaceRow, size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Read every vector of one space in the order of their places, so many at a time.

    Args:
        connection: In a transaction.
        entry: The space.
        size: Rows of a block.

    Yields:
        Places int64 and vectors float16 of a block; only the last one can be smaller.

    Raises:
        DamageError: A row is not what was written, or not all are there.
    """
    cursor = connection.execute(f"{_SELECT} BETWEEN ? AND ? ORDER BY place", _ends(entry.number))
    done = 0
    while rows := cursor.fetchmany(size):
        _refuse_others(rows, entry.space)
        joined = b"".join([row[3] for row in rows])
        vectors = np.frombuffer(joined, dtype="<f2").reshape(len(rows), -1)
        yield np.array([row[0] for row in rows], dtype=np.int64), vectors
        done += len(rows)
    if done != entry.num_vectors:
        raise DamageError(f"it has {done} vectors, expected {entry.num_vectors}")


def check_all(connection: sqlite3.Connection, entry: SpaceRow) -> set[int]:
    """Compare every vector of one space with its checksum, and the totals.

    Returns:
        Keys of the items that have one.

    Raises:
        DamageError: A row is not what was written, or not all are there.
    """
    cursor = connection.execute(f"{_SELECT} BETWEEN ? AND ? ORDER BY place", _ends(entry.number))
    keys: set[int] = set()
    num_vectors = num_spans = 0
    while rows := cursor.fetchmany(_CHUNK):
        _refuse_others(rows, entry.space)
        keys.update(row[0] >> _PART_BITS & MAX_KEY for row in rows)
        num_vectors += len(rows)
        num_spans += sum(row[1] is not None for row in rows)
    got = (len(keys), num_vectors, num_spans)
    if got != (entry.num_items, entry.num_vectors, entry.num_spans):
        raise DamageError(
            f"it has {num_vectors} vectors of {len(keys)} items, "
            f"expected {entry.num_vectors} of {entry.num_items}"
        )
    return keys


def _ends(number: int) -> tuple[int, int]:
    return place_of(number, 0), place_of(number, MAX_KEY, MAX_PARTS - 1)


def _refuse_others(rows: Sequence[tuple[Any, ...]], space: Space) -> None:
    for row in rows:
        _refuse_other(row, space)


def _refuse_other(row: tuple[Any, ...], space: Space) -> None:
    place, start, end, vector, crc = row
    try:
        whole = checksum(place, start, end, vector) == crc and len(vector) == 2 * space.dim
    except (TypeError, struct.error):  # a value of another type
        whole = False
    if not whole:
        key = place >> _PART_BITS & MAX_KEY
        raise DamageError(f"the vector of item number {key} is not what was written")


def _stored(row: tuple[Any, ...], key: int, part: int) -> StoredVector:
    span = None if row[1] is None else (row[1], row[2])
    return StoredVector(key=key, part=part, span=span, vector=row[3])
