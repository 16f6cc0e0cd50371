"""The file `vectors.f16`: all vectors of an index in one read, derived and never trusted.

Opening 100,000 vectors through SQLite takes ten times as long as reading them in one piece. The
file names the state of the database that it was made from and carries a checksum; when it is
absent, of another state or damaged, the vectors come from the database and the file is written
anew. Deleting it is always safe.

Shape letters: N items in order of their ids, D dimensions.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE_NAME = "vectors.f16"
# Magic, version, dimensions, items, length of the longest vector, token of the database's state;
# all little-endian, followed by the keys (int64), the vectors (float16) and the checksum.
_HEADER = struct.Struct("<8sIIQd16s")
_MAGIC = b"costream"
_VERSION = 1
_CHECKSUM_BYTES = 4
# A draft this old was left by a process that was killed.
_ABANDONED_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Codes:
    """All vectors of one state of an index.

    Attributes:
        token: Which state, 16 bytes.
        keys: int64 (N,), keys of the items in the database.
        vectors: float16 (N, D).
        longest: Length of the longest vector.
    """

    token: bytes
    keys: NDArray[np.int64]
    vectors: NDArray[np.float16]
    longest: float


def read_codes(directory: Path, token: bytes, num_items: int, dim: int) -> Codes | None:
    """Read the file if it is that of this state and whole.

    Args:
        directory: Folder of the index.
        token: State of the database.
        num_items: Items in the database.
        dim: Dimensions of its vectors.

    Returns:
        The vectors, or None when they have to come from the database.
    """
    if not num_items:
        return None
    size = _HEADER.size + num_items * (8 + 2 * dim) + _CHECKSUM_BYTES
    try:
        with (directory / FILE_NAME).open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != size:
                return None
            whole = np.empty(size, dtype=np.uint8)
            if stream.readinto(whole.data) != size:
                return None
    except OSError:
        return None
    head = _HEADER.unpack_from(whole.data)
    if head[:4] != (_MAGIC, _VERSION, dim, num_items) or head[5] != token:
        return None
    body = whole.data[:-_CHECKSUM_BYTES]
    if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little") != whole[-_CHECKSUM_BYTES:].tobytes():
        return None
    after_keys = _HEADER.size + 8 * num_items
    return Codes(
        token=token,
        keys=whole[_HEADER.size : after_keys].view("<i8"),
        vectors=whole[after_keys:-_CHECKSUM_BYTES].view("<f2").reshape(num_items, dim),
        longest=head[4],
    )


def write_codes(directory: Path, codes: Codes) -> bool:
    """Write the file, all or nothing.

    Args:
        directory: Folder of the index.
        codes: What to write.

    Returns:
        Whether it was written. A directory that is read-only or full is no error: the next
        search takes the vectors from the database again.
    """
    num_items, dim = codes.vectors.shape
    parts: list[bytes | memoryview] = [
        _HEADER.pack(_MAGIC, _VERSION, dim, num_items, codes.longest, codes.token),
        np.ascontiguousarray(codes.keys, dtype="<i8").data,
        np.ascontiguousarray(codes.vectors, dtype="<f2").data,
    ]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    draft = directory / f"{FILE_NAME}.{os.getpid()}-{os.urandom(4).hex()}.new"
    try:
        _remove_abandoned(directory)
        with draft.open("wb") as stream:
            for part in parts:
                stream.write(part)
            stream.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))
        # No fsync: after a loss of power the checksum tells.
        draft.replace(directory / FILE_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        return False
    return True


def _remove_abandoned(directory: Path) -> None:
    for draft in (*directory.glob(f"{FILE_NAME}.*.new"), *directory.glob("index.sqlite.*.new*")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_S:
                draft.unlink()
