"""The rows of an index that a search needs at hand: in memory, or the earlier ones in files.

Of what lies in files only checksums are in memory. A row is read when its true score is wanted, by
one call to the system, and believed only if its checksum matches: a file that was cut short or
altered while it was open is noticed at the row that is asked for.

Shape letters: N rows, M some of them, D dimensions.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.errors import DataError
from costream.index.codes import Header
from costream.scoring.matrix import Matrix

# Rows that can be added before everything is copied to a larger place, besides an eighth.
SPARE_ROWS = 4096


class LostRowsError(DataError):
    """Rows of a derived file cannot be read, or are not what was written."""


class RowFile:
    """The vectors of one derived file, read when they are wanted.

    Args:
        header: The beginning of the file.
        crcs_M: uint32 (M,): checksum of each row.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, header: Header, crcs_M: NDArray[np.uint32]) -> None:
        self._path = header.path
        self._row_bytes = 2 * header.dim
        self._start = header.vectors_at
        self._crcs_M = crcs_M
        self._handle = os.open(header.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._handle)

    def __len__(self) -> int:
        return len(self._crcs_M)

    def read(self, rows_M: NDArray[np.int64]) -> NDArray[np.float16]:
        """Rows by number, float16 (M, D).

        Raises:
            LostRowsError: They cannot be read, or are not what was written.
        """
        size = self._row_bytes
        raw_M = np.empty((len(rows_M), size // 2), dtype="<f2")
        whole = raw_M.reshape(-1).view(np.uint8).data
        # Rows that follow each other are read at once.
        firsts = np.flatnonzero(np.diff(rows_M, prepend=-2) != 1)
        ends = [*firsts[1:].tolist(), len(rows_M)]
        starts = (self._start + rows_M[firsts] * size).tolist()
        for first, end, start in zip(firsts.tolist(), ends, starts, strict=True):
            self._fill(whole[first * size : end * size], start)
        for at, crc in enumerate(self._crcs_M[rows_M].tolist()):
            if zlib.crc32(whole[at * size : (at + 1) * size]) != crc:
                raise self._lost(f"row {int(rows_M[at])} is not what was written")
        return raw_M

    def _fill(self, out: memoryview, start: int) -> None:
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._handle, [out[done:]], start + done)
            except OSError as error:
                raise self._lost(error.strerror or str(error)) from error
            if not count:
                raise self._lost("it is shorter than it was")
            done += count

    def _lost(self, why: str) -> LostRowsError:
        return LostRowsError(
            f"the derived file {self._path} is damaged: {why}",
            hint="ask again: it is made anew from the database",
        )


class RowsInFiles:
    """A matrix of which the first rows lie in files and the last ones in memory, in pieces.

    Args:
        files: In the order of their rows.
        rest: float16 (M, D), the rows after those of the files; at least one, which may be empty.

    Attributes:
        dtype: float16.
        ndim: 2.
    """

    dtype = np.dtype(np.float16)
    ndim = 2

    def __init__(self, files: Sequence[RowFile], *rest: NDArray[np.float16]) -> None:
        self._files = tuple(files)
        self._rest = rest
        self._dim = int(rest[0].shape[1])
        self._starts = np.cumsum([0, *map(len, files), *map(len, rest)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and dimensions."""
        return len(self), self._dim

    @property
    def size(self) -> int:
        """Rows times dimensions."""
        return len(self) * self._dim

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Any) -> NDArray[np.float16]:
        """Rows by a slice or by their numbers.

        Raises:
            LostRowsError: They cannot be read, or are not what was written.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._between(start, stop)
            rows_M = np.arange(start, stop, step)
        else:
            rows_M = np.asarray(rows, dtype=np.int64)
        where_M = np.searchsorted(self._starts[1:], rows_M, side="right")
        inside_M = rows_M - self._starts[where_M]
        found_MD = np.empty((len(rows_M), self._dim), dtype=np.float16)
        for where, file in enumerate(self._files):
            mine_M = where_M == where
            if mine_M.any():
                found_MD[mine_M] = file.read(inside_M[mine_M])
        in_memory_M = np.flatnonzero(where_M >= len(self._files))
        pieces = (where_M[in_memory_M] - len(self._files)).tolist()
        # One by one, since few are asked for at a time, of many pieces.
        for at, piece, row in zip(
            in_memory_M.tolist(), pieces, inside_M[in_memory_M].tolist(), strict=True
        ):
            found_MD[at] = self._rest[piece][row]
        return found_MD

    def _between(self, start: int, stop: int) -> NDArray[np.float16]:
        found: list[NDArray[np.float16]] = []
        parts: list[RowFile | NDArray[np.float16]] = [*self._files, *self._rest]
        for part, first in zip(parts, self._starts[:-1].tolist(), strict=True):
            begin, end = max(start - first, 0), min(stop - first, len(part))
            if begin < end:
                found.append(
                    part.read(np.arange(begin, end))
                    if isinstance(part, RowFile)
                    else part[begin:end]
                )
        if len(found) == 1:
            return found[0]
        return np.concatenate([np.empty((0, self._dim), np.float16), *found])


@dataclass(slots=True)
class Held:
    """Places and vectors of the rows, in the order in which they came.

    Attributes:
        dim: D.
        num_rows: N, void rows included.
        files: Where the first rows lie, if they are not in memory.
    """

    dim: int
    num_rows: int = 0
    files: list[RowFile] = field(default_factory=list)
    _places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    # Rows in memory: pieces as they came, then what was copied together, with room for more.
    _pieces: list[NDArray[np.float16]] = field(default_factory=list)
    _joined: NDArray[np.float16] = field(init=False)
    # What came last and is not put behind the rest before somebody looks.
    _new: list[tuple[NDArray[np.int64], NDArray[np.float16]]] = field(default_factory=list)
    _num_filed: int = 0
    _num_joined: int = 0
    _in_one_piece: bool = False

    def __post_init__(self) -> None:
        self._joined = np.empty((0, self.dim), np.float16)

    @property
    def places(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        self._take_new()
        return self._places[: self.num_rows]

    @property
    def vectors(self) -> Matrix:
        """float16 (N, D), wherever they lie; nothing is copied that is much."""
        self._take_new()
        joined = self._joined[: self._num_joined]
        if self.files or self._pieces:
            return RowsInFiles(self.files, *self._pieces, joined)
        return joined

    def first(self, count: int) -> Matrix:
        """The first rows; of rows in files exactly those of the first file."""
        if self.files:
            return RowsInFiles(self.files[:1], np.empty((0, self.dim), np.float16))
        self.fetch()
        return self._joined[:count]

    @property
    def num_in_memory(self) -> int:
        """Rows of which the vectors are in memory: the last ones."""
        return self.num_rows - self._num_filed

    @property
    def memory_bytes(self) -> int:
        """Bytes of the vectors in memory."""
        return self.num_in_memory * self.dim * 2

    def append(self, places: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        """Add rows, which must not be altered afterwards."""
        self._new.append((places, vectors))
        self.num_rows += len(places)

    def append_file(self, places: NDArray[np.int64], file: RowFile) -> None:
        """Add rows that lie in a file; none may be in memory."""
        self._set_places(np.concatenate([self.places, places]))
        self.files.append(file)
        self._num_filed = self.num_rows

    def put_aside(self, file: RowFile) -> None:
        """Take the rows in memory from a file instead, which holds just these."""
        self._take_new()
        self.files.append(file)
        self._num_filed = self.num_rows
        self._set_joined(np.empty((0, self.dim), np.float16))

    def fetch(self) -> None:
        """Have all vectors in memory in one piece, also those that come later.

        Raises:
            LostRowsError: They cannot be read, or are not what was written.
        """
        self._in_one_piece = True
        vectors = self.vectors
        if not isinstance(vectors, np.ndarray):
            self._set_joined(vectors[:])
            self.files, self._num_filed = [], 0

    def add_room(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Places (M,) and vectors (M, D) of new rows in memory, to be written to."""
        self._take_new()
        self._make_room(self.num_rows + count)
        start = self.num_rows
        self.num_rows += count
        return self._places[start : self.num_rows], self._room_for(count)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but some; all must be in memory."""
        places, vectors = self.places[rows], self.vectors[rows]
        self._set_places(places)
        self._set_joined(vectors)

    def _set_places(self, places: NDArray[np.int64]) -> None:
        self._places, self.num_rows = places, len(places)

    def _set_joined(self, vectors: NDArray[np.float16]) -> None:
        self._pieces, self._joined, self._num_joined = [], vectors, len(vectors)

    def _take_new(self) -> None:
        """Put what is new behind the rest: much stays where it is, little is copied together."""
        new, self._new = self._new, []
        if not new:
            return
        self._make_room(self.num_rows)
        known = self.num_rows - sum(len(places) for places, _ in new)
        for places, vectors in new:
            self._places[known : known + len(places)] = places
            known += len(places)
            if len(vectors) < SPARE_ROWS or self._in_one_piece:
                self._room_for(len(vectors))[:] = vectors
                continue
            if self._num_joined:
                self._pieces.append(self._joined[: self._num_joined])
                self._joined, self._num_joined = np.empty((0, self.dim), np.float16), 0
            self._pieces.append(vectors)

    def _make_room(self, total: int) -> None:
        if total > len(self._places):
            room = np.empty(total + total // 8 + SPARE_ROWS, dtype=np.int64)
            room[: len(self._places)] = self._places
            self._places = room

    def _room_for(self, count: int) -> NDArray[np.float16]:
        """Where so many more rows go."""
        start, end = self._num_joined, self._num_joined + count
        if end > len(self._joined):
            # Memory that is never written costs nothing.
            wide = np.empty((end + max(start, end // 8) + SPARE_ROWS, self.dim), "<f2")
            wide[:start] = self._joined[:start]
            self._joined = wide
        self._num_joined = end
        return self._joined[start:end]
