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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = "codes"
# The state before the first.
NOTHING = bytes(16)
_SUFFIX = ".f16"
# 4-bit codes of a file of vectors, and the seal that tells whose they are.
CODES, SEAL = ".four_bit", ".seal"
# Magic, version, dimensions, vectors, keys, longest vector, the states from and to, generation;
# then its own checksum. After it the keys (int64), places (int64) and vectors (float16), and a
# checksum for each of these and for each block of vectors.
_HEADER = struct.Struct("<8sIIQQd16s16sQ")
_MAGIC = b"costream"
_VERSION = 2
_CRC_BYTES = 4
_BLOCK_BYTES = 2**24
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
        places: int64 (M,): places of the vectors.
        vectors: float16 (M, D).
        longest: Length of the longest vector.
    """

    before: bytes
    token: bytes
    generations: tuple[int, int]
    keys: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    places: NDArray[np.int64]
    vectors: NDArray[np.float16]
    longest: float


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
    longest: float
    before: bytes
    token: bytes
    generation: int

    @property
    def num_blocks(self) -> int:
        """How many blocks of vectors have a checksum of their own."""
        return -(-self.num_vectors * self.dim * 2 // _BLOCK_BYTES)

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        body = 8 * (self.num_keys + self.num_vectors) + 2 * self.dim * self.num_vectors
        return _HEADER.size + _CRC_BYTES + body + _CRC_BYTES * (2 + self.num_blocks)


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


def read_segment(
    header: Header, places: NDArray[np.int64], vectors: NDArray[np.float16]
) -> NDArray[np.int64] | None:
    """Read one file.

    Args:
        header: Its beginning.
        places: int64 (M,), written to.
        vectors: float16 (M, D), contiguous, written to.

    Returns:
        Its keys, or None when it is gone or damaged.
    """
    keys = np.empty(header.num_keys, dtype="<i8")
    try:
        with header.path.open("rb", buffering=0) as stream:
            stream.seek(_HEADER.size + _CRC_BYTES)
            checksums = []
            for block in _blocks(keys, places, vectors):
                if not _fill(stream, block):
                    return None
                checksums.append(zlib.crc32(block))
            written = stream.read(_CRC_BYTES * len(checksums) + 1)
    except OSError:
        return None
    return keys if written == _packed(checksums) else None


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
    num_vectors, dim = segment.vectors.shape
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, dim, num_vectors, len(segment.keys), segment.longest),
        *(segment.before, segment.token, segment.generations[1]),
    )
    before, after = segment.generations
    name = f"{after:016d}-{before:016d}{_SUFFIX}"
    draft = folder / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.new"
    arrays = (
        np.ascontiguousarray(segment.keys, dtype="<i8"),
        np.ascontiguousarray(segment.places, dtype="<i8"),
        np.ascontiguousarray(segment.vectors, dtype="<f2"),
    )
    try:
        folder.mkdir(exist_ok=True)
        remove_abandoned(directory)
        with draft.open("wb", buffering=0) as stream:
            _write(stream, header + _packed([zlib.crc32(header)]))
            checksums = []
            for block in _blocks(*arrays):
                _write(stream, block)
                checksums.append(zlib.crc32(block))
            _write(stream, _packed(checksums))
        # No fsync: after a loss of power the checksums tell.
        draft.replace(folder / name)
        if segment.before == NOTHING:
            _remove_files(folder, keep=name)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        return None
    return Header(
        path=folder / name,
        dim=dim,
        num_vectors=num_vectors,
        num_keys=len(segment.keys),
        longest=segment.longest,
        before=segment.before,
        token=segment.token,
        generation=after,
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
        magic, version, dim, num_vectors, num_keys, longest, *states = _HEADER.unpack(body)
        if written[_HEADER.size :] != _packed([zlib.crc32(body)]):
            continue
        header = Header(
            path=path,
            dim=dim,
            num_vectors=num_vectors,
            num_keys=num_keys,
            longest=longest,
            before=states[0],
            token=states[1],
            generation=states[2],
        )
        if (magic, version, size) == (_MAGIC, _VERSION, header.size_bytes):
            yield header


def _blocks(
    keys: NDArray[np.int64], places: NDArray[np.int64], vectors: NDArray[np.float16]
) -> Iterator[memoryview]:
    """The bytes of the keys, of the places, and of each block of vectors."""
    yield _bytes_of(keys)
    yield _bytes_of(places)
    whole = _bytes_of(vectors)
    for start in range(0, len(whole), _BLOCK_BYTES):
        yield whole[start : start + _BLOCK_BYTES]


def _bytes_of(array: NDArray[np.int64] | NDArray[np.float16]) -> memoryview:
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
