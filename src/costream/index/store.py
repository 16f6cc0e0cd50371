"""`Index`: items and their vectors, durable in one directory, searched by a kernel.

Shape letters: Q queries, N items, M vectors, D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError
from costream.index import (
    answering,
    check,
    codes,
    conditions,
    database,
    integrity,
    purging,
    rows,
    schema,
    spaces,
    vector_rows,
    writing,
)
from costream.index.answering import Hit
from costream.index.check import Batch
from costream.index.filters import Filter
from costream.index.present import Present, active
from costream.index.records import IndexStats, Item, Moment, SpaceEntry
from costream.index.rows import Encoded
from costream.index.session import Session
from costream.index.vector_rows import StoredVector
from costream.index.watch import Watch
from costream.records import Ranking, Space
from costream.scoring.kernels import check_kernel


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

    def __init__(self, session: Session, kernel: str | None = None) -> None:
        self.directory = session.directory
        self._session = session
        self._present = Present(session, kernel)
        self._answers = answering.Answers()
        self._watch = Watch(self._present.kernel)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        create: bool = False,
        kernel: str | None = None,
    ) -> Index:
        """Open an index; one of an earlier format is converted.

        Args:
            directory: Where it is.
            create: Whether to make it, empty, when there is none.
            kernel: What scans the vectors: "exact", "four_bit" or "graph". By default it goes by
                size: exact up to 2**27 numbers, then 4-bit codes if `costream[fast]` is installed.

        Returns:
            The index; close it, or use it in a `with` statement. In a directory without write
            permission it can be searched only.

        Raises:
            DataError: There is no index, it is damaged or made by a newer version, or it cannot be
                read or made.
            ConfigError: There is no such kernel, or it is not installed.
        """
        if kernel is not None:
            check_kernel(kernel)
        return cls(Session(Path(directory).absolute(), create=create), kernel)

    def close(self) -> None:
        """Give the files back; using the index afterwards is an error, closing again is none."""
        self._watch.close()
        with self._session.lock:
            self._present.close()
            self._session.close()
            self._answers.forget()

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
    def location(self) -> str:
        """Where it is, as messages name it."""
        return str(self.directory)

    @property
    def read_only(self) -> bool:
        """Whether it can be searched only."""
        return self._session.read_only

    @property
    def space(self) -> Space | None:
        """The active space; None while nothing was ever added.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._session.reading() as connection:
            entry = active(connection)
        return None if entry is None else entry.space

    def __len__(self) -> int:
        with self._session.reading() as connection:
            return schema.read_state(connection).num_items

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
        with self._session.reading() as connection:
            found = rows.select_all(connection, schema.read_state(connection))
        return [item for _, item in found]

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
        with self._session.reading() as connection:
            keys = map(check.encoded_id, wanted)
            found = {item.id: item for _, item in rows.select(connection, "id", keys)}
        self._refuse_unknown(wanted, found.keys())
        return [found[item_id] for item_id in wanted]

    def vectors(self, ids: Iterable[str]) -> NDArray[np.float32]:
        """Stored vectors by id, in the order asked for.

        Args:
            ids: Ids, repeated ones allowed.

        Returns:
            float32 (N, D), with the precision of float16; of an item with moments the first.

        Raises:
            DataError: An id is not in the index or has no vector, or the index is closed or
                damaged.
        """
        found, dim = self._vectors_of(wanted := list(ids))
        for item_id, stored in zip(wanted, found, strict=True):
            if not stored:
                raise DataError(
                    f"item {item_id!r} has no vector in the active space",
                    hint="costream index migrate embeds what is missing",
                )
        return _matrix([stored[0] for stored in found], dim)

    def all_vectors(self, ids: Iterable[str]) -> NDArray[np.float32]:
        """Every stored vector of some items, in the order of the ids and of their moments.

        Args:
            ids: Ids, repeated ones allowed.

        Returns:
            float32 (M, D), with the precision of float16.

        Raises:
            DataError: An id is not in the index, or the index is closed or damaged.
        """
        found, dim = self._vectors_of(ids)
        return _matrix([one for stored in found for one in stored], dim)

    def moments(self, ids: Iterable[str]) -> list[tuple[Moment, ...]]:
        """What the vectors of some items stand for.

        Args:
            ids: Ids, repeated ones allowed.

        Returns:
            Per item one moment a vector, in their order.

        Raises:
            DataError: An id is not in the index, or the index is closed or damaged.
        """
        found, _ = self._vectors_of(ids)
        none = (None, None)
        return [
            tuple(Moment(t_start=start, t_end=end) for start, end in (s.span or none for s in some))
            for some in found
        ]

    def matches(self, where: Filter | None) -> set[str]:
        """Ids of the items for which a filter holds; None for all.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._session.reading() as connection:
            condition, values = conditions.condition(connection, where or Filter())
            query = f"SELECT id FROM items WHERE {condition}"  # noqa: S608  # values are bound
            found = connection.execute(query, values)
            return {check.decoded_id(item_id) for (item_id,) in found}

    def count(self, where: Filter | None = None) -> int:
        """How many items there are for which a filter holds; None for all.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._session.reading() as connection:
            state = schema.read_state(connection)
            keys = self._answers.keys(connection, state, where)
        return state.num_items if keys is None else len(keys)

    def sample_vectors(self, count: int, seed: int, space: Space) -> NDArray[np.float32]:
        """Vectors drawn without repetition.

        Args:
            count: How many; fewer come when fewer are stored.
            seed: The same seed draws the same from the same state.
            space: Must be the active one.

        Returns:
            float32 (count, D).

        Raises:
            SpaceMismatch: The index holds vectors of another space.
            DataError: The index is closed or damaged.
        """

        def sample() -> NDArray[np.float32]:
            with self._session.reading() as connection:
                state = schema.read_state(connection)
                return self._present.of(connection, state, space).sample(count, seed)

        return self._present.ask(sample)

    def token(self) -> str:
        """Names the present state: another one after every change, whoever made it.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._session.reading() as connection:
            return schema.read_state(connection).token.hex()

    def stats(self) -> IndexStats:
        """Size and origin.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._session.reading() as connection:
            state, entry = schema.read_state(connection), active(connection)
        with database.explained(self._session.path, "look at"):
            names = (database.FILE_NAME, f"{database.FILE_NAME}-wal")
            files = [self.directory / name for name in names]
            size_bytes = sum(file.stat().st_size for file in files if file.exists())
            size_bytes += codes.size_bytes(self.directory)
        return IndexStats(
            directory=str(self.directory),
            num_items=state.num_items,
            space=None if entry is None else entry.space,
            size_bytes=size_bytes,
            format=schema.FORMAT,
        )

    def check(self) -> tuple[str, ...]:
        """Read everything and compare it with its checksums; takes seconds for large indexes.

        Returns:
            What is wrong, one sentence each; empty when all is well.

        Raises:
            DataError: The index is closed.
        """
        self._session.connection()
        return integrity.problems(self._session)

    def load(self) -> None:
        """Bring the vectors into memory now, and into a file, so that searching need not.

        Raises:
            DataError: The index is closed or damaged.
        """

        def load() -> None:
            with self._session.reading() as connection:
                entry = active(connection)
                if entry is None:
                    return
                state = schema.read_state(connection)
                loaded = self._present.of(connection, state, entry.space)
            loaded.save()
            loaded.kernel()

        with self._session.lock:
            self._present.ask(load)

    # --- changes ---

    def add(self, items: Sequence[Item], vectors: NDArray[Any], space: Space) -> None:
        """Add items, or replace those with the same ids; all or none, durable on return.

        Args:
            items: What to add; each id once.
            vectors: Floating point (N, D), stored as float16.
            space: Where the vectors live; must be the active one, unless the index is empty.

        Raises:
            SpaceMismatch: The index holds vectors of another space, or the vectors do not fit
                `space`.
            NumericalError: A vector is not finite, zero, too large, or not of length 1 in a
                normalised space; the item is named.
            DataError: The arguments do not fit each other, an item cannot be stored, an id comes
                twice, or the index cannot be written (read-only, disk full, locked, damaged).
            ConfigError: The space is not one of dense vectors.
        """
        batch = check.checked_batch(items, vectors, space)
        self._put(rows.encoded(items), batch, space)

    def add_moments(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        parents: NDArray[Any],
        spans: NDArray[Any],
        space: Space,
    ) -> None:
        """Add items with several vectors each, or replace those with the same ids.

        All or none, durable on return.

        Args:
            items: What to add; each id once, each with at least one vector.
            vectors: Floating point (M, D), stored as float16.
            parents: Integer (M,): which of the items a vector belongs to.
            spans: Floating point (M, 2): start and end in seconds; both NaN for no span.
            space: As of `add`.

        Raises:
            SpaceMismatch, NumericalError, DataError, ConfigError: As of `add`.
        """
        batch = check.checked_moments(items, vectors, parents, spans, space)
        self._put(rows.encoded(items), batch, space)

    def reuse(self, items: Sequence[Item], *, remove: Iterable[str] = ()) -> list[Item]:
        """Add items whose content the index holds, with its vectors.

        All or none, durable on return.

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
        with self._session.writing() as connection:
            known, batches = writing.vectors_by_content(connection, items)
            removed = writing.take_out(connection, schema.read_state(connection), gone)
            added = writing.put(connection, removed.state, rows.encoded(known), batches)
        self._present.take_in(removed, added)
        stored = {item.id for item in known}
        return [item for item in items if item.id not in stored]

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
        with self._session.writing() as connection:
            change = writing.take_out(connection, schema.read_state(connection), gone)
        self._present.take_in(change)
        return len(change.changed)

    def forget(self, ids: Iterable[str]) -> int:
        """Remove items so that no file of the index holds a byte of them any more.

        Thumbnails that the service made of them go, too. Rewrites the database, which takes seconds
        for large indexes and needs as much free space again. After an error or a kill, call it
        again with the same ids. Copies that were made elsewhere, such as backups, are not touched.

        Args:
            ids: Ids; those that are not in the index are ignored.

        Returns:
            How many were removed.

        Raises:
            DataError: The index cannot be written, or another process keeps reading an old state.
        """
        removed = self.remove(ids)
        with self._session.lock:
            self._present.resident = None
            purging.purge(self._session)
        return removed

    def touch(self, items: Sequence[Item]) -> None:
        """Note new sizes, times and dates of files whose content is the same.

        Args:
            items: Items as they should be; those unknown by id and content hash are ignored.

        Raises:
            DataError: The index cannot be written.
        """
        if items:
            with self._session.writing() as connection:
                writing.restamp(connection, schema.read_state(connection), items)

    def _put(self, added: Encoded, batch: Batch, space: Space) -> None:
        if not added.items:
            return
        with self._session.writing() as connection:
            state = schema.read_state(connection)
            number = writing.active_number(connection, state, space, self.location)
            change = writing.put(connection, state, added, {number: batch})
        if not state.num_items:
            self._present.begin(change)
        self._present.take_in(change)

    # --- search ---

    def search(
        self,
        vectors: NDArray[Any],
        space: Space,
        top: int,
        *,
        where: Filter | None = None,
        group: bool = True,
    ) -> Ranking:
        """The best items of each query; equal scores in the order of `ids`.

        Args:
            vectors: Floating point (Q, D), any length but zero.
            space: Where the queries live.
            top: How many are wanted, at least 1; fewer come only when fewer match.
            where: Conditions on the items.
            group: Whether an item comes once, by its best moment; otherwise every moment is a
                result of its own and ids repeat.

        Returns:
            Per query the ids and their scores: dot products with the stored vectors, summed in
            float64 and rounded once to float32. `exact` says whether no better item can have been
            missed; if not, `recall` is what the background audit has measured so far.

        Raises:
            SpaceMismatch: The index holds vectors of another space.
            ConfigError: `top` is below 1.
            DataError: The queries are not floating point (Q, D), or the index is damaged.
            NumericalError: A query is not finite, or zero.
        """
        _check_top(top)
        return self._present.ask(lambda: self._search(vectors, space, top, where, group=group))

    def _search(
        self, vectors: NDArray[Any], space: Space, top: int, where: Filter | None, *, group: bool
    ) -> Ranking:
        with self._session.reading() as connection:
            state = schema.read_state(connection)
            loaded = self._present.of(connection, state, space)
            allowed = loaded.allowed(self._answers.keys(connection, state, where))
            queries = np.asarray(vectors)
            hits = answering.by_vectors(loaded, queries, top, allowed, group=group)
            names = self._answers.names(connection, state, _keys(hits))
            found = answering.ranking(connection, loaded.entry, hits, names, top)
            kernel = loaded.kernel()
        self._watch.note(kernel, queries, top, allowed)
        return replace(
            found, exact=kernel.exact, recall=self._watch.recall(kernel), kernel=kernel.name
        )

    def search_text(self, words: str, top: int, *, where: Filter | None = None) -> Ranking:
        """The items that hold some of the words, by BM25; equal scores in the order of `ids`.

        Args:
            words: Any text; what it holds besides letters and digits has no meaning.
            top: How many are wanted, at least 1.
            where: Conditions on the items.

        Returns:
            The ranking of one query. Searched are file names, captions, tags and texts.

        Raises:
            ConfigError: `top` is below 1.
            DataError: The index is closed or damaged.
        """
        _check_top(top)
        with self._session.reading() as connection:
            state = schema.read_state(connection)
            hits = [answering.by_words(connection, words, top, where)]
            names = self._answers.names(connection, state, _keys(hits))
            found = answering.ranking(connection, None, hits, names, top)
        return replace(found, stage="text", kernel="fts5")

    # --- spaces ---

    def spaces(self) -> tuple[SpaceEntry, ...]:
        """The spaces of which vectors are held, the active one first.

        Raises:
            DataError: The index is closed or damaged.
        """
        with self._session.reading() as connection:
            found = schema.read_spaces(connection)
        return tuple(SpaceEntry(space=e.space, role=e.role, num_items=e.num_items) for e in found)

    def begin_space(self, space: Space) -> None:
        """Make room for a second set of vectors; again for the same space is no error.

        Raises:
            ConfigError: The space is not one of dense vectors, or there are too many.
            DataError: The index cannot be written.
        """
        with self._session.writing() as connection:
            spaces.begin(connection, space)

    def missing(self, space: Space, count: int, *, after: str = "") -> list[Item]:
        """Items that have no vector in a space, in the order of their ids.

        Args:
            space: A space of this index.
            count: How many at most.
            after: Only those with greater ids.

        Raises:
            SpaceMismatch: The index holds no vectors of it.
            DataError: The index is closed or damaged.
        """
        with self._session.reading() as connection:
            entry = spaces.find(connection, space, self.location)
            return spaces.missing(connection, entry, count, after)

    def fill_space(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        space: Space,
        *,
        parents: NDArray[Any] | None = None,
        spans: NDArray[Any] | None = None,
    ) -> int:
        """Store vectors of a space that is not active; all or none, durable on return.

        Args:
            items: What was embedded, as `missing` gave it.
            vectors: Floating point (N, D), or (M, D) with parents and spans.
            space: A space that `begin_space` was called with.
            parents: As of `add_moments`.
            spans: As of `add_moments`.

        Returns:
            How many items got theirs; one that is gone or has other content by now does not.

        Raises:
            SpaceMismatch: The index holds no vectors of it, or they do not fit it.
            ConfigError: It is the active space.
            NumericalError, DataError: As of `add`.
        """
        if parents is None or spans is None:
            batch = check.checked_batch(items, vectors, space)
        else:
            batch = check.checked_moments(items, vectors, parents, spans, space)
        with self._session.writing() as connection:
            entry = spaces.find(connection, space, self.location)
            return spaces.fill(connection, entry, items, batch)

    def switch_space(self, space: Space, *, allow_missing: bool = False) -> None:
        """Make a space the active one in one step; the one before stays, to switch back to.

        Args:
            space: One that is being built, or a retired one.
            allow_missing: Whether items without a vector in it are accepted; they are then found
                by words and conditions only.

        Raises:
            SpaceMismatch: The index holds no vectors of it.
            DataError: Items have no vector in it, or the index cannot be written.
        """
        with self._session.writing() as connection:
            entry = spaces.find(connection, space, self.location)
            state = schema.read_state(connection)
            spaces.switch(connection, state, entry, allow_missing=allow_missing)

    def drop_space(self, space: Space) -> None:
        """Remove the vectors of a space that is not active.

        Raises:
            SpaceMismatch: The index holds no vectors of it.
            ConfigError: It is the active one.
            DataError: The index cannot be written.
        """
        with self._session.writing() as connection:
            spaces.drop(connection, spaces.find(connection, space, self.location))

    # --- behind these ---

    def _vectors_of(self, ids: Iterable[str]) -> tuple[list[list[StoredVector]], int]:
        """Vectors of each item in the active space, and their dimensions."""
        wanted = list(ids)
        with self._session.reading() as connection:
            entry = active(connection)
            items = rows.select_by_id(connection, map(check.encoded_id, wanted))
            found = {
                item.id: [] if entry is None else list(vector_rows.select(connection, entry, [key]))
                for key, item in items.items()
            }
        self._refuse_unknown(wanted, found)
        dim = 0 if entry is None else entry.space.dim
        return [found[item_id] for item_id in wanted], dim

    def _refuse_unknown(self, wanted: Iterable[str], found: Iterable[str]) -> None:
        there = set(found)
        for item_id in wanted:
            if item_id not in there:
                raise DataError(
                    f"the index {self.directory} has no item {item_id!r}",
                    hint="Index.ids() lists what it has",
                )


def _check_top(top: int) -> None:
    if top < 1:
        raise ConfigError(f"got top={top}, expected at least 1")


def _keys(hits: Iterable[Iterable[Hit]]) -> Iterator[int]:
    return (hit.key for some in hits for hit in some)


def _matrix(stored: Sequence[StoredVector], dim: int) -> NDArray[np.float32]:
    joined = b"".join(one.vector for one in stored)
    return np.frombuffer(joined, dtype="<f2").reshape(len(stored), dim).astype(np.float32)
