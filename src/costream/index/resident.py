"""The vectors of the active space in memory, kept equal to the database, and searched.

They come from the derived files, or from the database when those are no use. When the index
changes, only the vectors of the items that changed are read again: their old rows are void from
then on and new ones come after the rest. Void rows are dropped when they are a quarter of all.

Shape letters: Q queries, N rows, M vectors, K keys, D dimensions.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.index import coded, codes, schema, vector_rows
from costream.index.schema import SpaceRow, State
from costream.index.writing import Change
from costream.records import Space
from costream.scoring.dot import longest_vector
from costream.scoring.kernels import Kernel, build, choose

# Fewer bytes of vectors than this load fast enough from the database.
WORTH_A_FILE_BYTES = 2**18
# What is added to an empty index is kept in memory up to this size, until it is searched.
KEPT_BYTES = 2**31
# A file is added at the latest when the last one is this many changes behind.
_MOST_BEHIND = schema.CHANGES_KEPT // 2
_MOST_FILES = 32
# Rows that can be added before everything is copied to a larger place, besides an eighth.
_SPARE_ROWS = 4096


@dataclass(slots=True)
class Resident:
    """The vectors of one state.

    Attributes:
        directory: Folder of the index; None to write no files.
        entry: The active space.
        token: State that they are of.
        generation: Its number.
        num_rows: Rows in use, void ones included.
        longest: At least the length of the longest vector.
        void: bool (N,): rows that count no more; None when there are none.
        wanted: Name of the kernel that searches; None to go by size.
    """

    directory: Path | None
    entry: SpaceRow
    token: bytes
    generation: int
    num_rows: int
    longest: float
    _places: NDArray[np.int64]
    _vectors: NDArray[np.float16]
    void: NDArray[np.bool_] | None = None
    wanted: str | None = None
    _files: list[codes.Header] = field(default_factory=list)
    _unsaved: list[NDArray[np.int64]] = field(default_factory=list)
    # How many of the rows, from the start, are those of the first file.
    _base_rows: int = 0
    _kernel: Kernel | None = None
    # What was drawn last and for what, since every question asks for the same.
    _sample: tuple[tuple[int, int, bytes], NDArray[np.float32]] | None = None

    @property
    def places(self) -> NDArray[np.int64]:
        """Places of the rows."""
        return self._places[: self.num_rows]

    @property
    def vectors(self) -> NDArray[np.float16]:
        """The rows."""
        return self._vectors[: self.num_rows]

    @property
    def is_used(self) -> bool:
        """Whether there are files of the rows, or they were searched."""
        return bool(self._files) or self._kernel is not None

    @property
    def is_large(self) -> bool:
        """Whether the rows take more memory than is kept for a search that may never come."""
        return self.vectors.nbytes > KEPT_BYTES

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
        name = choose(*self.vectors.shape) if self.wanted is None else self.wanted
        if name != "four_bit" or not self._base_rows:
            return build(self.vectors, kernel=name)
        kernel = coded.four_bit(
            self._files[0], self.vectors[: self._base_rows], write=self.directory is not None
        )
        if self.num_rows > self._base_rows:
            kernel.grow(self.vectors)
        return kernel

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
        if changed is None or len(changed) > max(self.num_rows // 2, _SPARE_ROWS):
            return False
        stored = list(vector_rows.select(connection, entry, changed.tolist()))
        places = np.array(
            [vector_rows.place_of(entry.number, one.key, one.part) for one in stored], np.int64
        )
        joined = b"".join(one.vector for one in stored)
        vectors = np.frombuffer(joined, dtype="<f2").reshape(len(stored), entry.space.dim)
        self._apply(state, entry, changed, places, vectors)
        return self.num_live == entry.num_vectors

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
        self._apply(change.state, entry, change.changed, change.places, vectors)
        return True

    def _apply(
        self,
        state: State,
        entry: SpaceRow,
        changed: NDArray[np.int64],
        places: NDArray[np.int64],
        vectors: NDArray[np.float16],
    ) -> None:
        """Bring the rows to a state: what changed, and the vectors that this has now."""
        self.entry, self.token, self.generation = entry, state.token, state.generation
        if not len(changed):
            return
        if self.directory is not None:
            self._unsaved.append(changed)
        self._avoid(changed)
        self._append(places, vectors)
        self.longest = max(self.longest, longest_vector(vectors))
        if self.void is not None and 4 * int(self.void.sum()) > self.num_rows:
            self._drop_void()

    def _avoid(self, keys: NDArray[np.int64]) -> None:
        void = _holds(vector_rows.keys_of(self.places), keys)
        if not void.any():
            return
        if self._kernel is not None:
            self._kernel.remove(np.flatnonzero(void))
        self.void = void if self.void is None else self.void | void

    def _append(self, places: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        total = self.num_rows + len(places)
        if total > len(self._places):
            old_places, old_vectors = self.places, self.vectors
            self._places, self._vectors = _room(2 * total, self.entry.space.dim)
            self._places[: self.num_rows] = old_places
            self._vectors[: self.num_rows] = old_vectors
        self._places[self.num_rows : total] = places
        self._vectors[self.num_rows : total] = vectors
        if self.void is not None:
            self.void = np.concatenate([self.void, np.zeros(len(places), dtype=bool)])
        self.num_rows = total
        if self._kernel is not None and len(places):
            self._grow_kernel(self._kernel)

    def _grow_kernel(self, kernel: Kernel) -> None:
        """Take new rows into the kernel; by another size another one may be right."""
        if self.wanted is None and choose(*self.vectors.shape) != kernel.name:
            self._kernel = None
        else:
            kernel.grow(self.vectors)

    def _drop_void(self) -> None:
        if self.void is None:
            return
        live = np.flatnonzero(~self.void)
        places, vectors = _room(len(live), self.entry.space.dim)
        places[: len(live)] = self._places[live]
        vectors[: len(live)] = self._vectors[live]
        self._places, self._vectors = places, vectors
        self.num_rows, self.void = len(live), None
        self._kernel, self._base_rows = None, 0

    # --- derived files ---

    def save(self) -> None:
        """Write what changed since the last file, or everything, when that is worth it."""
        if self.directory is None or self._is_saved():
            return
        if self._is_small(self.num_rows):
            if codes.files(self.directory):  # of when it was large
                with contextlib.suppress(OSError):
                    codes.remove_all(self.directory)
                self._files = []
            return
        keys = np.unique(np.concatenate([*self._unsaved, np.empty(0, np.int64)]))
        rows = np.flatnonzero(_holds(vector_rows.keys_of(self.places), keys))
        if self.void is not None:
            rows = rows[~self.void[rows]]
        behind = self.generation - self._files[-1].generation if self._files else _MOST_BEHIND
        if self._is_small(len(rows)) and behind < _MOST_BEHIND:
            return
        if self._is_fragmented(len(rows)):
            self._drop_void()
            segment = self._segment(codes.NOTHING, 0, keys[:0], slice(0, self.num_rows))
        else:
            last = self._files[-1]
            segment = self._segment(last.token, last.generation, keys, rows)
        header = codes.write_segment(self.directory, segment)
        if header is None:
            self.directory = None  # it will not be better next time
            return
        self._files = [header] if segment.before == codes.NOTHING else [*self._files, header]
        self._unsaved = []
        if segment.before == codes.NOTHING:
            self._base_rows = self.num_rows
            if self._kernel is not None:
                coded.write(header, self._kernel)

    def read_file(self, header: codes.Header) -> bool:
        """Take in one file, for which there must be room; whether it was whole."""
        total = self.num_rows + header.num_vectors
        rows = slice(self.num_rows, total)
        keys = codes.read_segment(header, self._places[rows], self._vectors[rows])
        if keys is None:
            return False
        self._avoid(keys)
        if self.void is not None:
            self.void = np.concatenate([self.void, np.zeros(header.num_vectors, dtype=bool)])
        self.num_rows = total
        return True

    def _is_saved(self) -> bool:
        return bool(self._files) and self._files[-1].token == self.token

    def _is_small(self, num_rows: int) -> bool:
        return num_rows * self.entry.space.dim * 2 < WORTH_A_FILE_BYTES

    def _is_fragmented(self, num_more: int) -> bool:
        """Whether one file for all is better than one more file."""
        later = num_more + sum(file.num_vectors for file in self._files[1:])
        return not 0 < len(self._files) < _MOST_FILES or 2 * later > self._files[0].num_vectors

    def _segment(
        self, before: bytes, generation: int, keys: NDArray[np.int64], rows: Any
    ) -> codes.Segment:
        return codes.Segment(
            before=before,
            token=self.token,
            generations=(generation, self.generation),
            keys=keys,
            places=self.places[rows],
            vectors=self.vectors[rows],
            longest=self.longest,
        )


def nothing(space: Space) -> Resident:
    """The vectors of an empty index, to be searched only."""
    return begun(None, SpaceRow(number=0, space=space, role="active"), b"")


def begun(
    directory: Path | None, entry: SpaceRow, token: bytes, kernel: str | None = None
) -> Resident:
    """The vectors of a state that has none, to take in what follows.

    Args:
        directory: Folder of the index; None to write no files.
        entry: The active space.
        token: The state.
        kernel: As of `load`.
    """
    places, vectors = _room(0, entry.space.dim)
    return Resident(
        directory=directory,
        entry=entry,
        token=token,
        generation=0,
        wanted=kernel,
        num_rows=0,
        longest=0.0,
        _places=places,
        _vectors=vectors,
    )


def load(
    connection: sqlite3.Connection,
    state: State,
    entry: SpaceRow,
    directory: Path,
    *,
    read_only: bool,
    kernel: str | None = None,
) -> Resident:
    """Read the vectors of the active space.

    Args:
        connection: In the transaction that `state` and `entry` were read in.
        state: The present state.
        entry: The active space.
        directory: Folder of the index.
        read_only: Whether no files may be written there.
        kernel: Name of the kernel that is wanted; None to go by size.

    Raises:
        DamageError: A row of the database is not what was written.
    """
    writable = None if read_only else directory
    found = _from_files(directory, writable, entry)
    if found is not None and found.catch_up(connection, state, entry):
        found.wanted = kernel
        return found
    places, vectors = _room(entry.num_vectors, entry.space.dim)
    out = places[: entry.num_vectors], vectors[: entry.num_vectors]
    vector_rows.read_all(connection, entry, out)
    return Resident(
        directory=writable,
        entry=entry,
        token=state.token,
        generation=state.generation,
        num_rows=entry.num_vectors,
        longest=longest_vector(out[1]),
        wanted=kernel,
        _places=places,
        _vectors=vectors,
    )


def _from_files(directory: Path, writable: Path | None, entry: SpaceRow) -> Resident | None:
    """The latest state that the files hold whole, if any."""
    headers = codes.chain(directory, entry.space.dim)
    if not headers:
        return None
    places, vectors = _room(sum(header.num_vectors for header in headers), entry.space.dim)
    found = Resident(
        directory=writable,
        entry=entry,
        token=headers[-1].token,
        generation=headers[-1].generation,
        num_rows=0,
        longest=headers[-1].longest,
        _places=places,
        _vectors=vectors,
        _files=headers,
        _base_rows=headers[0].num_vectors,
    )
    for header in headers:
        if not found.read_file(header):
            return None
    return found


def _room(rows: int, dim: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Arrays with some rows to spare; memory that is never written costs nothing."""
    count = rows + rows // 8 + _SPARE_ROWS
    return np.empty(count, dtype=np.int64), np.empty((count, dim), dtype="<f2")


def _holds(keys_N: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool (N,): whether a row's key is one of some keys."""
    largest = int(keys_N.max(initial=0))
    wanted = np.zeros(largest + 1, dtype=bool)
    wanted[keys[keys <= largest]] = True
    return wanted[keys_N]
