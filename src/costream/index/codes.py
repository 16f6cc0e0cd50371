"""The files in `codes/`: the vectors of the active space in one read, derived and never trusted.

Opening a million vectors through SQLite takes ten times as long as reading them in one piece. Each
file says from which state of the database to which it leads: the first from nothing, each further
one holds what changed since. A file is written once, under another name, and moved into place; so
several processes may write, and a killed one leaves nothing half. Files that are absent, of another
state or damaged are not used: the vectors come from the database and are written anew. Deleting
them is always safe.

Shape letters: M vectors, K keys, D dimensions.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = "codes"
# The state before the first.
NOTHING = bytes(16)
_SUFFIX = ".f16"
# 4-bit codes of a file of vectors, and the seal that tells whose they are.
CODES, SEAL = ".four_bit", ".seal"
# Magic, version, dimensions, vectors, keys, the states from and to, generation; then its own
# checksum. After it the vectors (float16), the keys (int64), the places (int64) and the checksum of
# each vector (uint32), and a checksum for each of these three and for each block of vectors.
_HEADER = struct.Struct("<8sIIQQ16s16sQ")
_MAGIC = b"costream"
_VERSION = 3
_CRC_BYTES = 4
_BLOCK_BYTES = 2**24
_MOST_BLOCK_ROWS = 2**14
# A draft this old was left by a process that was killed.
_ABANDONED_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """What changed between two states of an index.

    Attributes:
        before: Token of the state before; `NOTHING` for a whole state.
        token: Token of the state after.
        generations: Numbers of these states.
        keys: int64 (K,): items whose earlier vectors are void.
        dim: D.
        blocks: Places int64 and vectors float16 of `block_rows(dim)` rows each, but the last.
    """

    before: bytes
    token: bytes
    generations: tuple[int, int]
    keys: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    dim: int
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float16]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The beginning of a file.

    Attributes:
        path: The file.
        num_vectors: M.
        num_keys: K.
        dim: D.
    """

    path: Path
    dim: int
    num_vectors: int
    num_keys: int
    before: bytes
    token: bytes
    generation: int

    @property
    def num_blocks(self) -> int:
        """How many blocks of vectors have a checksum of their own."""
        return -(-self.num_vectors // block_rows(self.dim))

    @property
    def vectors_at(self) -> int:
        """Where the vectors begin."""
        return _HEADER.size + _CRC_BYTES

    @property
    def numbers_at(self) -> int:
        """Where the keys begin, with places and checksums after them."""
        return self.vectors_at + 2 * self.dim * self.num_vectors

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        numbers = 8 * (self.num_keys + self.num_vectors) + _CRC_BYTES * self.num_vectors
        return self.numbers_at + numbers + _CRC_BYTES * (3 + self.num_blocks)


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """All of a file but its vectors.

    Attributes:
        keys: int64 (K,).
        places: int64 (M,).
        crcs: uint32 (M,): checksum of each vector.
    """

    keys: NDArray[np.int64]
    places: NDArray[np.int64]
    crcs: NDArray[np.uint32]


def block_rows(dim: int) -> int:
    """Vectors of which a block is made."""
    return max(1, min(_MOST_BLOCK_ROWS, _BLOCK_BYTES // (2 * dim)))


def chain(directory: Path, dim: int) -> list[Header]:
    """The files that lead from nothing to the latest state, in order; empty when none does."""
    by_start: dict[bytes, Header] = {}
    for header in _headers(directory):
        known = by_start.get(header.before)
        if header.dim == dim and (known is None or header.generation > known.generation):
            by_start[header.before] = header
    found: list[Header] = []
    token = NOTHING
    while (following := by_start.pop(token, None)) is not None:
        found.append(following)
        token = following.token
    return found


def read_numbers(header: Header) -> Numbers | None:
    """Read all of a file but its vectors; None when it is gone or damaged."""
    try:
        with header.path.open("rb", buffering=0) as stream:
            stream.seek(header.numbers_at)
            found = _read_numbers(stream, header)
    except OSError:
        return None
    return None if found is None else found[0]


def read_segment(header: Header, vectors: NDArray[np.float16]) -> Numbers | None:
    """Read one file.

    Args:
        header: Its beginning.
        vectors: float16 (M, D), contiguous, written to.

    Returns:
        All else that is in it, or None when it is gone or damaged.
    """
    size, checksums = block_rows(header.dim), []
    try:
        with header.path.open("rb", buffering=0) as stream:
            stream.seek(header.vectors_at)
            for start in range(0, len(vectors), size):
                block = _bytes_of(vectors[start : start + size])
                if not _fill(stream, block):
                    return None
                checksums.append(zlib.crc32(block))
            found = _read_numbers(stream, header)
    except OSError:
        return None
    return found[0] if found is not None and found[1] == _packed(checksums) else None


def _read_numbers(stream: FileIO, header: Header) -> tuple[Numbers, bytes] | None:
    """All after the vectors, and the checksums of the blocks."""
    numbers = Numbers(
        np.empty(header.num_keys, dtype="<i8"),
        np.empty(header.num_vectors, dtype="<i8"),
        np.empty(header.num_vectors, dtype="<u4"),
    )
    parts = [_bytes_of(part) for part in (numbers.keys, numbers.places, numbers.crcs)]
    if not all(_fill(stream, part) for part in parts):
        return None
    written = stream.read(_CRC_BYTES * (len(parts) + header.num_blocks) + 1)
    own = _packed(list(map(zlib.crc32, parts)))
    return (numbers, written[len(own) :]) if written.startswith(own) else None


def write_segment(directory: Path, segment: Segment) -> Header | None:
    """Write one file, all or nothing; a whole state replaces every file there was.

    Args:
        directory: Folder of the index.
        segment: What to write.

    Returns:
        The beginning of the file, or None when it could not be written. A directory that is
        read-only or full is no error: the vectors come from the database again.
    """
    folder = directory / FOLDER
    before, after = segment.generations
    name = f"{after:016d}-{before:016d}{_SUFFIX}"
    draft = folder / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.new"
    try:
        folder.mkdir(exist_ok=True)
        remove_abandoned(directory)
        with draft.open("wb", buffering=0) as stream:
            header = _write_segment(stream, segment, folder / name)
        # No fsync: after a loss of power the checksums tell.
        draft.replace(header.path)
        if segment.before == NOTHING:
            _remove_files(folder, keep=name)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return header


def _write_segment(stream: FileIO, segment: Segment, path: Path) -> Header:
    stream.seek(_HEADER.size + _CRC_BYTES)
    places, crcs, checksums = [], [], []
    for places_B, vectors_B in segment.blocks:
        block = _bytes_of(np.ascontiguousarray(vectors_B, dtype="<f2"))
        _write(stream, block)
        size = 2 * segment.dim
        places.append(np.array(places_B, dtype="<i8"))
        each = [zlib.crc32(block[at : at + size]) for at in range(0, len(block), size)]
        crcs.append(np.array(each, dtype="<u4"))
        checksums.append(zlib.crc32(block))
    keys = np.ascontiguousarray(segment.keys, dtype="<i8")
    all_places = np.concatenate([*places, np.empty(0, "<i8")])
    all_crcs = np.concatenate([*crcs, np.empty(0, "<u4")])
    numbers = [_bytes_of(part) for part in (keys, all_places, all_crcs)]
    for part in numbers:
        _write(stream, part)
    _write(stream, _packed([*map(zlib.crc32, numbers), *checksums]))
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, segment.dim, len(all_places), len(keys)),
        *(segment.before, segment.token, segment.generations[1]),
    )
    stream.seek(0)
    _write(stream, header + _packed([zlib.crc32(header)]))
    return Header(
        path=path,
        dim=segment.dim,
        num_vectors=len(all_places),
        num_keys=len(keys),
        before=segment.before,
        token=segment.token,
        generation=segment.generations[1],
    )


def remove_all(directory: Path) -> None:
    """Remove every file, drafts too.

    Raises:
        OSError: One cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in (directory / FOLDER).iterdir():
            path.unlink(missing_ok=True)
        (directory / FOLDER).rmdir()


def files(directory: Path) -> list[Path]:
    """The files that there are, drafts not counted."""
    return sorted((directory / FOLDER).glob(f"*{_SUFFIX}"))


def size_bytes(directory: Path) -> int:
    """Size of all files there are."""
    return sum(path.stat().st_size for path in (directory / FOLDER).glob("*") if path.is_file())


def remove_abandoned(directory: Path) -> None:
    """Remove drafts that killed processes left."""
    drafts = (*(directory / FOLDER).glob("*.new*"), *directory.glob("index.sqlite.*.new*"))
    for draft in drafts:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_S:
                draft.unlink()


def _remove_files(folder: Path, *, keep: str) -> None:
    for path in (*folder.glob(f"*{_SUFFIX}"), *folder.glob(f"*{CODES}"), *folder.glob(f"*{SEAL}")):
        if path.name < keep and path.stem != Path(keep).stem:
            with contextlib.suppress(OSError):
                path.unlink()


def _headers(directory: Path) -> Iterator[Header]:
    for path in files(directory):
        try:
            with path.open("rb", buffering=0) as stream:
                written = stream.read(_HEADER.size + _CRC_BYTES)
                size = os.fstat(stream.fileno()).st_size
        except OSError:
            continue
        body = written[: _HEADER.size]
        if len(written) < _HEADER.size + _CRC_BYTES:
            continue
        magic, version, dim, num_vectors, num_keys, *states = _HEADER.unpack(body)
        if written[_HEADER.size :] != _packed([zlib.crc32(body)]):
            continue
        header = Header(
            path=path,
            dim=dim,
            num_vectors=num_vectors,
            num_keys=num_keys,
            before=states[0],
            token=states[1],
            generation=states[2],
        )
        if (magic, version, size) == (_MAGIC, _VERSION, header.size_bytes):
            yield header


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _fill(stream: FileIO, block: memoryview) -> bool:
    done = 0
    while done < len(block) and (count := stream.readinto(block[done:])):
        done += count
    return done == len(block)


def _write(stream: FileIO, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def _packed(checksums: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(checksums)}I", *checksums)
