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
    """A matrix of which the first rows lie in files and the last ones in memory.

    Args:
        files: In the order of their rows.
        rest_MD: float16 (M, D), the rows after those of the files.

    Attributes:
        dtype: float16.
        ndim: 2.
    """

    dtype = np.dtype(np.float16)
    ndim = 2

    def __init__(self, files: Sequence[RowFile], rest_MD: NDArray[np.float16]) -> None:
        self._files = tuple(files)
        self._rest_MD = rest_MD
        self._starts = np.cumsum([0, *(len(file) for file in files)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and dimensions."""
        return len(self), self._rest_MD.shape[1]

    @property
    def size(self) -> int:
        """Rows times dimensions."""
        return len(self) * int(self._rest_MD.shape[1])

    def __len__(self) -> int:
        return int(self._starts[-1]) + len(self._rest_MD)

    def __getitem__(self, rows: Any) -> NDArray[np.float16]:
        """Rows by a slice or by their numbers.

        Raises:
            LostRowsError: They cannot be read, or are not what was written.
        """
        if isinstance(rows, slice):
            rows_M = np.arange(*rows.indices(len(self)))
        else:
            rows_M = np.asarray(rows, dtype=np.int64)
        where_M = np.searchsorted(self._starts, rows_M, side="right") - 1
        wanted = np.unique(where_M).tolist()
        if len(wanted) == 1:
            return self._part(wanted[0], rows_M)
        found_MD = np.empty((len(rows_M), self.shape[1]), dtype=np.float16)
        for where in wanted:
            mine_M = where_M == where
            found_MD[mine_M] = self._part(where, rows_M[mine_M])
        return found_MD

    def _part(self, where: int, rows_M: NDArray[np.int64]) -> NDArray[np.float16]:
        inside_M = rows_M - self._starts[where]
        if where == len(self._files):
            some_MD: NDArray[np.float16] = self._rest_MD[inside_M]
            return some_MD
        return self._files[where].read(inside_M)


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
    _vectors: NDArray[np.float16] = field(init=False)
    # What came last and is not copied behind the rest before somebody looks.
    _new: list[tuple[NDArray[np.int64], NDArray[np.float16]]] = field(default_factory=list)
    _num_filed: int = 0

    def __post_init__(self) -> None:
        self._vectors = np.empty((0, self.dim), np.float16)

    @property
    def places(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        self._join()
        return self._places[: self.num_rows]

    @property
    def vectors(self) -> NDArray[np.float16] | RowsInFiles:
        """float16 (N, D)."""
        self._join()
        rest = self._vectors[: self.num_rows - self._num_filed]
        return RowsInFiles(self.files, rest) if self.files else rest

    def first(self, count: int) -> NDArray[np.float16] | RowsInFiles:
        """The first rows; of rows in files exactly those of the first file."""
        if self.files:
            return RowsInFiles(self.files[:1], np.empty((0, self.dim), np.float16))
        self._join()
        return self._vectors[:count]

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
        self._join()
        self.files.append(file)
        self._num_filed = self.num_rows
        self._vectors = np.empty((0, self.dim), np.float16)

    def fetch(self) -> None:
        """Have all vectors in memory.

        Raises:
            LostRowsError: They cannot be read, or are not what was written.
        """
        if self.files:
            self._vectors = self.vectors[:]
            self.files, self._num_filed = [], 0

    def add_room(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Places (M,) and vectors (M, D) of new rows in memory, to be written to."""
        self._join(count)
        start = self.num_rows
        self.num_rows += count
        where = slice(start - self._num_filed, self.num_rows - self._num_filed)
        return self._places[start : self.num_rows], self._vectors[where]

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but some; all must be in memory."""
        self._join()
        kept = Held(self.dim)
        places, vectors = kept.add_room(len(rows))
        np.take(self._places, rows, out=places)
        np.take(self._vectors, rows, axis=0, out=vectors)
        self._places, self._vectors, self.num_rows = kept._places, kept._vectors, kept.num_rows

    def _set_places(self, places: NDArray[np.int64]) -> None:
        self._places, self.num_rows = places, len(places)

    def _join(self, more: int = 0) -> None:
        """Copy what is new behind the rest, and make room for so many rows after it."""
        if not self._new and not more:
            return
        known = self.num_rows - sum(len(places) for places, _ in self._new)
        total = self.num_rows + more
        if total > len(self._places):
            room = np.empty(total + total // 8 + SPARE_ROWS, dtype=np.int64)
            room[:known] = self._places[:known]
            self._places = room
        if total - self._num_filed > len(self._vectors):
            num_kept, wanted = known - self._num_filed, total - self._num_filed
            # Memory that is never written costs nothing.
            wide = np.empty((wanted + max(num_kept, wanted // 8) + SPARE_ROWS, self.dim), "<f2")
            wide[:num_kept] = self._vectors[:num_kept]
            self._vectors = wide
        for places, vectors in self._new:
            end = known + len(places)
            self._places[known:end] = places
            self._vectors[known - self._num_filed : end - self._num_filed] = vectors
            known = end
        self._new = []
