"""The vectors of the active space at hand, kept equal to the database, and searched.

They come from the derived files, or from the database when those are no use. A kernel that scans
codes needs few of the vectors: then they stay in the files, and only their places and checksums are
in memory. When the index changes, only the vectors of the items that changed are read again: their
old rows are void from then on and new ones come after the rest. Void rows are dropped when they are
a quarter of all.

Shape letters: Q queries, N rows, M vectors, K keys, D dimensions.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costream.index import coded, codes, schema, vector_rows
from costream.index.held import SPARE_ROWS, Held, LostRowsError, RowFile
from costream.index.schema import SpaceRow, State
from costream.index.writing import Change
from costream.scoring.kernels import Kernel, build, choose
from costream.scoring.matrix import Matrix

# Fewer bytes of vectors than this load fast enough from the database.
WORTH_A_FILE_BYTES = 2**18
# What is added is kept in memory up to this size, until it is searched or put into a file.
KEPT_BYTES = 2**30
# A file is added at the latest when the last one is this many changes behind.
_MOST_BEHIND = schema.CHANGES_KEPT // 2
_MOST_FILES = 32


@dataclass(slots=True)
class Resident:
    """The vectors of one state.

    Attributes:
        directory: Folder of the index; None to write no files.
        entry: The active space.
        token: State that they are of.
        generation: Its number.
        held: Places and vectors of the rows, void ones included.
        void: bool (N,): rows that count no more; None when there are none.
        wanted: Name of the kernel that searches; None to go by size.
        files: Derived files that lead to the last state that was saved.
        base_rows: How many of the rows, from the start, are those of the first file.
        largest_key: No row is of a greater key.
    """

    directory: Path | None
    entry: SpaceRow
    token: bytes
    generation: int
    held: Held
    void: NDArray[np.bool_] | None = None
    wanted: str | None = None
    files: list[codes.Header] = field(default_factory=list)
    base_rows: int = 0
    largest_key: int = -1
    _unsaved: list[NDArray[np.int64]] = field(default_factory=list)
    _kernel: Kernel | None = None
    # What was drawn last and for what, since every question asks for the same.
    _sample: tuple[tuple[int, int, bytes], NDArray[np.float32]] | None = None

    @property
    def num_rows(self) -> int:
        """Rows in use, void ones included."""
        return self.held.num_rows

    @property
    def places(self) -> NDArray[np.int64]:
        """Places of the rows."""
        return self.held.places

    @property
    def vectors(self) -> Matrix:
        """The rows."""
        return self.held.vectors

    @property
    def is_used(self) -> bool:
        """Whether there are files of the rows, or they were searched."""
        return bool(self.files) or self._kernel is not None

    @property
    def is_large(self) -> bool:
        """Whether the rows take more memory than is kept for a search that may never come."""
        return self.held.memory_bytes > KEPT_BYTES

    @property
    def present_kernel(self) -> Kernel | None:
        """What finds the best rows; None before the first search."""
        return self._kernel

    def kernel(self) -> Kernel:
        """What finds the best rows, made when it is first needed.

        Raises:
            ConfigError: The kernel that is wanted is not installed or cannot take these vectors.
        """
        if self._kernel is None:
            made = self._made_kernel()
            if self.void is not None:
                made.remove(np.flatnonzero(self.void))
            self._kernel = made
        return self._kernel

    def _made_kernel(self) -> Kernel:
        name = self._kernel_name()
        if name != "four_bit":
            self.held.fetch()
        if name != "four_bit" or not self.base_rows:
            return build(self.vectors, kernel=name)
        kernel = coded.four_bit(
            self.files[0], self.held.first(self.base_rows), write=self.directory is not None
        )
        kernel.grow(self.vectors)
        return kernel

    def _kernel_name(self) -> str:
        return choose(self.num_rows, self.entry.space.dim) if self.wanted is None else self.wanted

    def allowed(self, keys: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
        """Which rows may be found.

        Args:
            keys: Keys of the items that may be, or None for all.

        Returns:
            bool (N,), or None for all rows but the void ones.
        """
        if keys is None:
            return None
        allowed_N = _holds(vector_rows.keys_of(self.places), keys)
        if self.void is not None:
            allowed_N &= ~self.void
        return allowed_N

    def sample(self, count: int, seed: int) -> NDArray[np.float32]:
        """Vectors drawn without repetition; what is drawn depends on the state only."""
        asked = (count, seed, self.token)
        if self._sample is None or self._sample[0] != asked:
            rows = np.arange(self.num_rows) if self.void is None else np.flatnonzero(~self.void)
            rows = rows[np.argsort(self.places[rows], kind="stable")]
            random = np.random.default_rng(seed)
            drawn = random.choice(len(rows), min(count, len(rows)), replace=False)
            self._sample = (asked, self.vectors[rows[drawn]].astype(np.float32))
        return self._sample[1].copy()

    # --- keeping up ---

    def catch_up(self, connection: sqlite3.Connection, state: State, entry: SpaceRow) -> bool:
        """Bring the rows to the present state.

        Returns:
            Whether that was possible; otherwise everything has to come from the database.

        Raises:
            DamageError: A row of the database is not what was written.
        """
        if (entry.number, entry.space) != (self.entry.number, self.entry.space):
            return False
        changed = schema.changed_since(connection, state, self.token)
        if changed is None or len(changed) > max(self.num_rows // 2, SPARE_ROWS):
            return False
        stored = list(vector_rows.select(connection, entry, changed.tolist()))
        places = np.array(
            [vector_rows.place_of(entry.number, one.key, one.part) for one in stored], np.int64
        )
        joined = b"".join(one.vector for one in stored)
        vectors = np.frombuffer(joined, dtype="<f2").reshape(len(stored), entry.space.dim)
        is_possible = self._apply(state, entry, changed, places, vectors)
        return is_possible and self.num_live == entry.num_vectors

    @property
    def num_live(self) -> int:
        """Rows that count."""
        return self.num_rows - (0 if self.void is None else int(self.void.sum()))

    def take_in(self, change: Change) -> bool:
        """Take in the change that this process has just made, without reading it again.

        Returns:
            Whether that was possible.
        """
        if change.state.token == self.token:
            return True
        entry = change.active
        if change.before != self.token or entry is None or entry.space != self.entry.space:
            return False
        none = np.empty((0, entry.space.dim), dtype=np.float16)
        vectors = none if change.vectors is None else change.vectors
        return self._apply(change.state, entry, change.changed, change.places, vectors)

    def _apply(
        self,
        state: State,
        entry: SpaceRow,
        changed: NDArray[np.int64],
        places: NDArray[np.int64],
        vectors: NDArray[np.float16],
    ) -> bool:
        """Bring the rows to a state: what changed, and the vectors that this has now.

        Returns:
            Whether that was possible; not when too many rows of files are void.
        """
        self.entry, self.token, self.generation = entry, state.token, state.generation
        if not len(changed):
            return True
        if self.directory is not None:
            self._unsaved.append(changed)
        self._avoid(changed)
        self._append(places, vectors)
        if self.void is not None and 4 * int(self.void.sum()) > self.num_rows:
            if self.held.files:
                return self.directory is None
            self._drop_void()
        if self.is_used and self.is_large and self._kernel_name() == "four_bit":
            self.save()
        return True

    def _avoid(self, keys: NDArray[np.int64]) -> None:
        is_new = int(keys.min(initial=2**62)) > self.largest_key
        self.largest_key = max(self.largest_key, int(keys.max(initial=-1)))
        if is_new:
            return
        void = _holds(vector_rows.keys_of(self.places), keys)
        if not void.any():
            return
        if self._kernel is not None:
            self._kernel.remove(np.flatnonzero(void))
        self.void = void if self.void is None else self.void | void

    def _append(self, places: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        self.held.append(places, vectors)
        self._extend_void()
        if self._kernel is not None and len(places):
            self._grow_kernel(self._kernel)

    def _extend_void(self) -> None:
        if self.void is not None:
            more = np.zeros(self.num_rows - len(self.void), dtype=bool)
            self.void = np.concatenate([self.void, more])

    def _grow_kernel(self, kernel: Kernel) -> None:
        """Take new rows into the kernel; by another size another one may be right."""
        if self._kernel_name() != kernel.name:
            self._kernel = None
        else:
            kernel.grow(self.vectors)

    def _drop_void(self) -> None:
        if self.void is None:
            return
        self.held.keep(np.flatnonzero(~self.void))
        self.void = None
        self._kernel, self.base_rows = None, 0

    # --- derived files ---

    def save(self) -> None:
        """Write what changed since the last file, or everything, when that is worth it."""
        if self.directory is None or self._is_saved():
            return
        if self._is_small(self.num_rows):
            if codes.files(self.directory):  # of when it was large
                with contextlib.suppress(OSError):
                    codes.remove_all(self.directory)
                self.files, self.base_rows = [], 0
            return
        keys = np.unique(np.concatenate([*self._unsaved, np.empty(0, np.int64)]))
        rows = np.flatnonzero(_holds(vector_rows.keys_of(self.places), keys))
        if self.void is not None:
            rows = rows[~self.void[rows]]
        behind = self.generation - self.files[-1].generation if self.files else _MOST_BEHIND
        if self._is_small(len(rows)) and behind < _MOST_BEHIND:
            return
        if self._is_fragmented(len(rows)):
            self._save_all()
        else:
            self._save_more(keys, rows)

    def _save_all(self) -> None:
        if not self.held.files:
            self._drop_void()
        rows = np.arange(self.num_rows) if self.void is None else np.flatnonzero(~self.void)
        header = self._write(codes.NOTHING, 0, np.empty(0, np.int64), rows)
        if header is None:
            return
        self.files, self.base_rows = [header], len(rows)
        if self.void is None and self._kernel is not None:
            coded.write(header, self._kernel)
        if self.held.files or self._kernel_name() == "four_bit":
            self._leave_in_file(header)

    def _save_more(self, keys: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        last = self.files[-1]
        header = self._write(last.token, last.generation, keys, rows)
        if header is None:
            return
        self.files.append(header)
        first = self.num_rows - self.held.num_in_memory
        if self.held.files and np.array_equal(rows, np.arange(first, self.num_rows)):
            file = opened(header, codes.read_numbers(header))
            if file is not None:
                self.held.put_aside(file)
                self._tell_kernel()

    def _leave_in_file(self, header: codes.Header) -> None:
        """Have the vectors in the file that was just written of them, and not in memory."""
        numbers = codes.read_numbers(header)
        file = opened(header, numbers)
        if numbers is None or file is None:
            return
        self.held = Held(header.dim)
        self.held.append_file(numbers.places, file)
        if self.void is not None:
            self.void = self._kernel = None  # the rows have other numbers now
        self._tell_kernel()

    def _tell_kernel(self) -> None:
        """The rows are where they were, but elsewhere in memory or in files."""
        if self._kernel is not None:
            try:
                self._kernel.grow(self.vectors)
            except LostRowsError:
                self._kernel = None

    def _write(
        self, before: bytes, generation: int, keys: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> codes.Header | None:
        """Write a file of some rows; from then on all is saved, or nothing ever will be."""
        if self.directory is None:
            return None
        segment = codes.Segment(
            before=before,
            token=self.token,
            generations=(generation, self.generation),
            keys=keys,
            dim=self.entry.space.dim,
            blocks=self._blocks(rows),
        )
        try:
            header = codes.write_segment(self.directory, segment)
        except LostRowsError:
            header = None
            with contextlib.suppress(OSError):
                codes.remove_all(self.directory)
        if header is None:
            self.directory = None  # it will not be better next time
        else:
            self._unsaved = []
        return header

    def _blocks(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        size = codes.block_rows(self.entry.space.dim)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield self.places[some], self.vectors[some]

    def read_file(self, header: codes.Header, *, in_files: bool) -> bool:
        """Take in one file, or where its rows are; whether it was whole, as far as was read."""
        if in_files:
            numbers = codes.read_numbers(header)
            file = opened(header, numbers)
            if numbers is None or file is None:
                return False
            self._avoid(numbers.keys)
            self.held.append_file(numbers.places, file)
        else:
            places, vectors = self.held.add_room(header.num_vectors)
            numbers = codes.read_segment(header, vectors)
            if numbers is None:
                return False
            places[:] = 0  # of no item, so that they are not void
            self._extend_void()
            self._avoid(numbers.keys)
            places[:] = numbers.places
        self._extend_void()
        return True

    def know_keys(self) -> None:
        """Note the greatest key, so that greater ones are known to be new."""
        self.largest_key = int(vector_rows.keys_of(self.places).max(initial=-1))

    def _is_saved(self) -> bool:
        return bool(self.files) and self.files[-1].token == self.token

    def _is_small(self, num_rows: int) -> bool:
        return num_rows * self.entry.space.dim * 2 < WORTH_A_FILE_BYTES

    def _is_fragmented(self, num_more: int) -> bool:
        """Whether one file for all is better than one more file."""
        later = num_more + sum(file.num_vectors for file in self.files[1:])
        return not 0 < len(self.files) < _MOST_FILES or 2 * later > self.files[0].num_vectors


def opened(header: codes.Header, numbers: codes.Numbers | None) -> RowFile | None:
    """The vectors of a file of which all else was read; None when that or this is impossible."""
    if numbers is None:
        return None
    with contextlib.suppress(OSError):
        return RowFile(header, numbers.crcs)
    return None


def _holds(keys_N: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool (N,): whether a row's key is one of some keys."""
    largest = int(keys_N.max(initial=0))
    wanted = np.zeros(largest + 1, dtype=bool)
    wanted[keys[keys <= largest]] = True
    return wanted[keys_N]
