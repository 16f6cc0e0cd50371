"""`Index`: items and their vectors, durable in one directory, searched exactly.

Shape letters: Q queries, N items, D dimensions.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from costream.errors import DataError
from costream.index import check, codes, database, rows
from costream.index.records import IndexStats, Item
from costream.records import Ranking, Space
from costream.scoring.dot import ExactScan, longest_vector

# Fewer bytes of vectors than this load fast enough from the database.
_WORTH_A_FILE_BYTES = 2**18
# From a share of 1 / this of all items on, reading every id beats looking them up one by one.
_MANY = 20


class Index:
    """Items with one vector each, in one directory, found by dot product.

    What `add` and `remove` have returned from survives kills and power losses. Several processes
    may read and write at once; writers wait for each other. An object may be used from several
    threads, but not after a fork. Made by `Index.open`.

    Example:
        >>> import tempfile
        >>> space = Space(encoder="toy", weights_hash="0", preprocessing_hash="0", dim=2)
        >>> with tempfile.TemporaryDirectory() as folder, Index.open(folder, create=True) as index:
        ...     index.add([Item(id="a"), Item(id="b")], np.float32([[1, 0], [0, 1]]), space)
        ...     ranking = index.search(np.float32([[0.6, 0.8]]), space, top=1)
        >>> ranking.ids
        (('b',),)
    """

    def __init__(self, directory: Path, connection: sqlite3.Connection, *, read_only: bool) -> None:
        self.directory = directory
        self.read_only = read_only
        self._connection: sqlite3.Connection | None = connection
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._codes: codes.Codes | None = None
        self._scan: ExactScan | None = None
        self._ids: list[str] | None = None

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, create: bool = False) -> Index:
        """Open an index.

        Args:
            directory: Where it is.
            create: Whether to make it, empty, when there is none.

        Returns:
            The index; close it, or use it in a `with` statement. In a directory without write
            permission it can be searched only.

        Raises:
            DataError: There is no index, it is damaged or made by a newer version, or it cannot be
                read or made.
        """
        path = Path(directory).absolute()
        connection, read_only = database.open_database(path, create=create)
        return cls(path, connection, read_only=read_only)

    def close(self) -> None:
        """Give the files back; using the index afterwards is an error, closing again is none."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                with database.explained(self._path, "close"):
                    self._connection.close()
            self._connection = self._codes = self._scan = self._ids = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what is inside ---

    @property
    def space(self) -> Space | None:
        """Where the vectors live; None while nothing was ever added.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._reading() as connection:
            return rows.read_state(connection).space

    def __len__(self) -> int:
        with self._reading() as connection:
            return rows.read_state(connection).num_items

    def ids(self) -> list[str]:
        """Every id, in the order in which equal scores are ranked: by their UTF-8 bytes.

        Raises:
            DataError: The index is closed or damaged.
        """
        return [item.id for item in self.items()]

    def items(self) -> list[Item]:
        """Every item, in the order of `ids`.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._reading() as connection:
            return rows.select_all(connection, rows.read_state(connection))

    def get(self, ids: Iterable[str]) -> list[Item]:
        """Items by id, in the order asked for.

        Args:
            ids: Ids, repeated ones allowed.

        Returns:
            One item an id.

        Raises:
            DataError: An id is not in the index, or the index is closed or damaged.
        """
        wanted = list(ids)
        with self._reading() as connection:
            keys = [check.encoded_id(item_id) for item_id in wanted]
            found = {item.id: item for item in rows.select(connection, keys)}
        self._refuse_unknown(wanted, found.keys())
        return [found[item_id] for item_id in wanted]

    def vectors(self, ids: Iterable[str]) -> NDArray[np.float32]:
        """Stored vectors by id, in the order asked for.

        Args:
            ids: Ids, repeated ones allowed.

        Returns:
            float32 (N, D), with the precision of float16.

        Raises:
            DataError: An id is not in the index, or the index is closed or damaged.
        """
        wanted = list(ids)
        with self._reading() as connection:
            space = rows.read_state(connection).space
            keys = [check.encoded_id(item_id) for item_id in wanted]
            stored = rows.select_vectors(connection, "id", keys, space)
            found = {one.id: one.vector for one in stored}
        self._refuse_unknown(wanted, found.keys())
        return _matrix([found[item_id] for item_id in wanted], space).astype(np.float32)

    def stats(self) -> IndexStats:
        """Size and origin.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._reading() as connection:
            state = rows.read_state(connection)
        with database.explained(self._path, "look at"):
            names = (database.FILE_NAME, f"{database.FILE_NAME}-wal", codes.FILE_NAME)
            files = [self.directory / name for name in names]
            size_bytes = sum(file.stat().st_size for file in files if file.exists())
        return IndexStats(
            directory=str(self.directory),
            num_items=state.num_items,
            space=state.space,
            size_bytes=size_bytes,
            format=database.FORMAT,
        )

    def check(self) -> tuple[str, ...]:
        """Read everything and compare it with its checksums; takes seconds for large indexes.

        Returns:
            What is wrong, one sentence each; empty when all is well.

        Raises:
            DataError: The index is closed.
        """
        self._opened()
        problems: list[str] = []
        try:
            with self._reading() as connection:
                for (line,) in connection.execute("PRAGMA integrity_check"):
                    if line != "ok":
                        problems.append(line)
                state = rows.read_state(connection)
                rows.select_all(connection, state)
                rows.select_all_vectors(connection, state)
        except DataError as error:
            problems.append(error.message)
        return tuple(problems)

    # --- changes ---

    def add(self, items: Sequence[Item], vectors: NDArray[Any], space: Space) -> None:
        """Add items, or replace those with the same ids; all or none, durable on return.

        Args:
            items: What to add; each id once.
            vectors: Floating point (N, D), stored as float16.
            space: Where the vectors live; must be that of the index, unless it is empty.

        Raises:
            SpaceMismatch: The index holds vectors of another space, or the vectors do not fit
                `space`.
            NumericalError: A vector is not finite, zero, too large, or not of length 1 in a
                normalised space; the item is named.
            DataError: The arguments do not fit each other, an item cannot be stored, an id comes
                twice, or the index cannot be written (read-only, disk full, locked, damaged).
            ConfigError: The space is not one of dense vectors.
        """
        stored = check.checked_vectors(items, vectors, space)
        check.refuse_repeated(items)
        if not items:
            return
        with self._writing() as connection:
            state = rows.read_state(connection)
            if state.num_items:
                check.check_same(state.space, space, str(self.directory))
            num_new = rows.insert(connection, items, [vector.tobytes() for vector in stored])
            total = state.num_items + num_new
            rows.write_state(connection, rows.State(num_items=total, space=space))

    def reuse(self, items: Sequence[Item], *, remove: Iterable[str] = ()) -> list[Item]:
        """Add items whose content the index holds, with its vector; all or none, durable on return.

        Args:
            items: What to add or replace, each id once, with content hashes.
            remove: Ids to remove in the same step, as when files were moved; they may be those
                whose vectors are used. Unknown ones are ignored.

        Returns:
            The items that were not added because no item has their content hash.

        Raises:
            DataError: An item has no content hash or cannot be stored, an id comes twice, or the
                index cannot be written.
        """
        check.refuse_repeated(items)
        for item in items:
            if not item.content_hash:
                raise DataError(f"item {item.id!r} has no content hash, expected one to go by")
        gone = [check.encoded_id(item_id) for item_id in remove]
        if not items and not gone:
            return []
        with self._writing() as connection:
            state = rows.read_state(connection)
            wanted = [item.content_hash for item in items]
            found = rows.select_vectors(connection, "content_hash", wanted, state.space)
            blobs = {one.content_hash: one.vector for one in found}
            known = [item for item in items if item.content_hash in blobs]
            num_gone = rows.delete(connection, gone)
            num_new = rows.insert(connection, known, [blobs[i.content_hash] for i in known])
            total = state.num_items + num_new - num_gone
            rows.write_state(connection, rows.State(num_items=total, space=state.space))
        return [item for item in items if item.content_hash not in blobs]

    def remove(self, ids: Iterable[str]) -> int:
        """Remove items; all or none, durable on return.

        Args:
            ids: Ids; those that are not in the index are ignored.

        Returns:
            How many were removed.

        Raises:
            DataError: The index cannot be written.
        """
        gone = [check.encoded_id(item_id) for item_id in ids]
        if not gone:
            return 0
        with self._writing() as connection:
            state = rows.read_state(connection)
            removed = rows.delete(connection, gone)
            if removed:
                total = state.num_items - removed
                rows.write_state(connection, rows.State(num_items=total, space=state.space))
        return removed

    def touch(self, items: Sequence[Item]) -> None:
        """Note new sizes and times of files whose content is the same.

        Args:
            items: Items as they should be; those unknown by id and content hash are ignored.

        Raises:
            DataError: The index cannot be written.
        """
        if items:
            with self._writing() as connection:
                rows.restamp(connection, items)

    # --- search ---

    def search(self, vectors: NDArray[Any], space: Space, top: int) -> Ranking:
        """The best items of each query, exactly; equal scores in the order of `ids`.

        Args:
            vectors: Floating point (Q, D), any length but zero.
            space: Where the queries live.
            top: How many are wanted, at least 1; fewer come when the index holds fewer.

        Returns:
            Per query the ids and their scores: dot products with the stored vectors, summed in
            float64 and rounded once to float32.

        Raises:
            SpaceMismatch: The index holds vectors of another space.
            ConfigError: `top` is below 1.
            DataError: The queries are not floating point (Q, D), or the index is damaged.
            NumericalError: A query is not finite, or zero.
        """
        with self._reading() as connection:
            state = rows.read_state(connection)
            if state.num_items:
                check.check_same(state.space, space, str(self.directory))
            loaded, scan = self._loaded(connection, replace(state, space=space))
            found, scores = scan.top(np.asarray(vectors), top)
            ids = self._ids_of_rows(connection, state, found, loaded.keys)
        return Ranking(ids=ids, scores=tuple(scores))

    def load(self) -> None:
        """Bring the vectors into memory now, so that the first search need not.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._reading() as connection:
            self._loaded(connection, rows.read_state(connection))

    def _loaded(
        self, connection: sqlite3.Connection, state: rows.State
    ) -> tuple[codes.Codes, ExactScan]:
        if self._codes is None or self._scan is None or self._codes.token != state.token:
            self._ids = None
            self._codes = self._fresh_codes(connection, state)
            self._scan = ExactScan(self._codes.vectors, self._codes.longest)
        return self._codes, self._scan

    def _fresh_codes(self, connection: sqlite3.Connection, state: rows.State) -> codes.Codes:
        dim = 0 if state.space is None else state.space.dim
        found = codes.read_codes(self.directory, state.token, state.num_items, dim)
        if found is None:
            keys, blobs = rows.select_all_vectors(connection, state)
            matrix = _matrix(blobs, state.space)
            found = codes.Codes(
                token=state.token,
                keys=np.array(keys, dtype=np.int64),
                vectors=matrix,
                longest=longest_vector(matrix),
            )
            if matrix.nbytes >= _WORTH_A_FILE_BYTES and not self.read_only:
                codes.write_codes(self.directory, found)
        return found

    def _ids_of_rows(
        self,
        connection: sqlite3.Connection,
        state: rows.State,
        found: Sequence[NDArray[np.int64]],
        keys: NDArray[np.int64],
    ) -> tuple[tuple[str, ...], ...]:
        if self._ids is None and sum(map(len, found)) * _MANY > len(keys):
            self._ids = [item.id for item in rows.select_all(connection, state)]
        if self._ids is not None:
            names = self._ids
            return tuple(tuple(names[row] for row in query) for query in found)
        wanted = [[int(key) for key in keys[query]] for query in found]
        flat = [key for query in wanted for key in query]
        # With the vectors, because their checksums tell a row whose key was damaged.
        stored = rows.select_vectors(connection, "key", flat, state.space)
        names_by_key = {one.key: one.id for one in stored}
        if not names_by_key.keys() >= set(flat):
            raise rows.DamageError("an item that has a vector is not there")
        return tuple(tuple(names_by_key[key] for key in query) for query in wanted)

    # --- SQLite ---

    @property
    def _path(self) -> Path:
        return self.directory / database.FILE_NAME

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise DataError(f"the index {self.directory} is closed", hint="open it again")
        if self._process != os.getpid():
            raise DataError(
                f"the index {self.directory} was opened by process {self._process}, this is its "
                f"fork {os.getpid()}",
                hint="open the index again in this process",
            )
        return self._connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A view of one state, whatever other processes write meanwhile."""
        with self._lock, database.explained(self._path, "read"):
            connection = self._opened()
            with _transaction(connection, "BEGIN"):
                yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, database.explained(self._path, "write"):
            connection = self._opened()
            if self.read_only:
                raise DataError(
                    f"cannot write {self._path}: you have no permission",
                    hint="check that you may write to the directory, or name another index",
                )
            with _transaction(connection, "BEGIN IMMEDIATE"):
                yield connection

    def _refuse_unknown(self, wanted: Iterable[str], found: Iterable[str]) -> None:
        there = set(found)
        for item_id in wanted:
            if item_id not in there:
                raise DataError(
                    f"the index {self.directory} has no item {item_id!r}",
                    hint="Index.ids() lists what it has",
                )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back already.
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _matrix(blobs: Sequence[bytes], space: Space | None) -> NDArray[np.float16]:
    """Stored vectors as float16 (N, D)."""
    dim = 0 if space is None else space.dim
    return np.frombuffer(b"".join(blobs), dtype="<f2").reshape(len(blobs), dim)
