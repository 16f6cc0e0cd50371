"""`PostgresIndex`: an index in a PostgreSQL database with pgvector.

Shape letters: Q queries, N items, M moments, D dimensions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from costream.errors import ConfigError, DataError
from costream.index import check
from costream.index.filters import Filter
from costream.index.postgres import integrity, rows, schema, spaces
from costream.index.postgres.connections import Connections, connect
from costream.index.postgres.search import by_words, checked_queries, nearest, target_of
from costream.index.postgres.spaces import active_space
from costream.index.records import IndexStats, Item, Moment, SpaceEntry
from costream.records import Ranking, Space


class PostgresIndex:
    """Items with one or more vectors each, in a database that others may share.

    What `add` and `remove` have returned from is committed. Any number of processes and threads may
    read and write; writers wait for each other, readers for nobody. Made by `PostgresIndex.open`.

    Example:
        >>> index = PostgresIndex.open("postgresql://localhost/pictures")  # doctest: +SKIP
    """

    def __init__(self, url: str, connection: schema.Connection, *, sharded: bool) -> None:
        self.url = url
        self.sharded = sharded
        self._connections = Connections(url, public_url(url), connection)

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> PostgresIndex:
        """Connect to an index.

        Args:
            url: `postgresql://user@host/database`.
            create: Whether to make it, empty, when there is none.

        Returns:
            The index; close it, or use it in a `with` statement.

        Raises:
            DataError: The server does not answer, lacks pgvector 0.8.6, or holds no index or one of
                a newer version.
            ConfigError: The address cannot be read.
        """
        name = public_url(url)
        with schema.explained("open"):
            connection = connect(url)
            try:
                if create:
                    with connection.transaction():
                        schema.create(connection)
                elif not schema.exists(connection):
                    raise DataError(
                        f"no index in {name}",
                        hint=f"make one: costream index PICTURES --index {name}",
                    )
                sharded = schema.check_format(connection)
                register_vector(connection)
            except BaseException:
                connection.close()
                raise
        return cls(url, connection, sharded=sharded)

    def close(self) -> None:
        """End the connections; closing again is no error."""
        self._connections.close()

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
        """Where the vectors live that are searched; None while nothing was ever added."""
        with self._reading() as connection:
            found = active_space(connection)
        return None if found is None else found[1]

    @property
    def location(self) -> str:
        """Where it is, without a password."""
        return public_url(self.url)

    def __len__(self) -> int:
        with self._reading() as connection:
            return int(schema.one(connection, sql.SQL("SELECT count(*) FROM costream.items")))

    def ids(self) -> list[str]:
        """Every id, by their UTF-8 bytes."""
        with self._reading() as connection:
            found = connection.execute("SELECT id FROM costream.items ORDER BY id").fetchall()
        return [check.decoded_id(bytes(row[0])) for row in found]

    def items(self) -> list[Item]:
        """Every item, in the order of `ids`."""
        with self._reading() as connection:
            found = connection.execute(rows.SELECT_ITEMS + " ORDER BY id").fetchall()
        return [rows.decoded(row) for row in found]

    def get(self, ids: Iterable[str]) -> list[Item]:
        """Items by id, in the order asked for.

        Raises:
            DataError: An id is not in the index.
        """
        wanted = list(ids)
        keys = [check.encoded_id(item_id) for item_id in wanted]
        with self._reading() as connection:
            query = rows.SELECT_ITEMS + " WHERE id = ANY(%s)"
            found = {
                item.id: item
                for item in map(rows.decoded, connection.execute(query, [keys]).fetchall())
            }
        self._refuse_unknown(wanted, found.keys())
        return [found[item_id] for item_id in wanted]

    def vectors(self, ids: Iterable[str]) -> NDArray[np.float32]:
        """First vector of each item, in the order asked for: float32 (N, D).

        Raises:
            DataError: An id is not in the index.
        """
        held, dim = self._vectors_of(wanted := list(ids), first_only=True)
        return rows.matrix((held[item_id][0] for item_id in wanted), dim).astype(np.float32)

    def all_vectors(self, ids: Iterable[str]) -> NDArray[np.float32]:
        """Every vector of the items, float32 (M, D), in the order of `moments`.

        Raises:
            DataError: An id is not in the index.
        """
        held, dim = self._vectors_of(wanted := list(ids), first_only=False)
        every = (vector for item_id in wanted for vector in held[item_id])
        return rows.matrix(every, dim).astype(np.float32)

    def _vectors_of(
        self, ids: Sequence[str], *, first_only: bool
    ) -> tuple[dict[str, list[HalfVector]], int]:
        held: dict[str, list[HalfVector]] = {}
        with self._reading() as connection:
            active = active_space(connection)
            if active is not None:
                query = sql.SQL(
                    "SELECT id, vector FROM {} WHERE id = ANY(%s) AND part {} ORDER BY part"
                )
                of = query.format(
                    schema.moments_table(active[0]), sql.SQL("= 0" if first_only else ">= 0")
                )
                keys = [check.encoded_id(item_id) for item_id in ids]
                for key, vector in connection.cursor(binary=True).execute(of, [keys]).fetchall():
                    held.setdefault(check.decoded_id(bytes(key)), []).append(vector)
        self._refuse_unknown(ids, held.keys())
        return held, 0 if active is None else active[1].dim

    def count(self, where: Filter | None = None) -> int:
        """How many items match."""
        test, values = rows.condition(where)
        with self._reading() as connection:
            query = sql.SQL("SELECT count(*) FROM costream.items WHERE {}").format(test)
            return int(schema.one(connection, query, values))

    def moments(self, ids: Iterable[str]) -> list[tuple[Moment, ...]]:
        """Per item what its vectors stand for, in their order.

        Raises:
            DataError: An id is not in the index.
        """
        wanted = list(ids)
        keys = [check.encoded_id(item_id) for item_id in wanted]
        found: dict[str, list[Moment]] = {item.id: [] for item in self.get(dict.fromkeys(wanted))}
        with self._reading() as connection:
            active = active_space(connection)
            if active is not None:
                query = sql.SQL(
                    "SELECT id, t_start, t_end FROM {} WHERE id = ANY(%s) ORDER BY id, part"
                ).format(schema.moments_table(active[0]))
                for key, start, end in connection.execute(query, [keys]).fetchall():
                    moment = Moment(t_start=start, t_end=end)
                    found[check.decoded_id(bytes(key))].append(moment)
        return [tuple(found[item_id]) for item_id in wanted]

    def matches(self, where: Filter | None) -> set[str]:
        """Ids of the items for which the conditions hold."""
        test, values = rows.condition(where)
        query = sql.SQL("SELECT id FROM costream.items WHERE {}").format(test)
        with self._reading() as connection:
            found = connection.execute(query, values).fetchall()
        return {check.decoded_id(bytes(row[0])) for row in found}

    def sample_vectors(self, count: int, seed: int, space: Space) -> NDArray[np.float32]:
        """Vectors drawn without repetition: float32 (count, D); fewer when fewer are stored.

        Raises:
            SpaceMismatch: The space is not the active one.
        """
        with self._reading() as connection:
            active = active_space(connection)
            if active is None:
                return np.empty((0, space.dim), dtype=np.float32)
            check.check_same(active[1], space, self.location)
            # The order of a hash that depends on the seed: the same for the same rows.
            query = sql.SQL(
                "SELECT vector FROM {} ORDER BY hashtextextended(encode(id, 'hex') || ' ' || "
                "part::text, %s) LIMIT %s"
            ).format(schema.moments_table(active[0]))
            found = connection.execute(query, [seed, count]).fetchall()
        return rows.matrix((row[0] for row in found), space.dim).astype(np.float32)

    def check(self) -> tuple[str, ...]:
        """Read everything and compare; what is wrong, one sentence each.

        PostgreSQL has checksums of its own pages (`initdb --data-checksums`).
        """
        with self._reading() as connection:
            return integrity.problems(connection)

    def load(self) -> None:
        """Nothing: the server keeps in memory what it uses."""

    def token(self) -> str:
        """Names the present state: another one after every change, whoever made it."""
        with self._reading() as connection:
            return str(schema.one(connection, sql.SQL("SELECT token FROM costream.state")))

    def stats(self) -> IndexStats:
        """Size and origin."""
        with self._reading() as connection:
            active = active_space(connection)
            size = schema.one(
                connection,
                sql.SQL(
                    "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c "
                    "JOIN pg_namespace n ON n.oid = c.relnamespace "
                    "WHERE n.nspname = 'costream' AND c.relkind = 'r'"
                ),
            )
            count = schema.one(connection, sql.SQL("SELECT count(*) FROM costream.items"))
        return IndexStats(
            directory=self.location,
            num_items=int(count),
            space=None if active is None else active[1],
            size_bytes=int(size),
            format=schema.FORMAT,
        )

    # --- changes ---

    def add(self, items: Sequence[Item], vectors: NDArray[Any], space: Space) -> None:
        """Add items, or replace those with the same ids; all or none, committed on return.

        On a coordinator of shards "all or none" holds shard by shard; after an error add the same
        items again.

        Args:
            items: What to add; each id once.
            vectors: Floating point (N, D), stored in half precision.
            space: Where the vectors live; must be that of the index, unless it is empty.

        Raises:
            SpaceMismatch: The index holds vectors of another space.
            NumericalError: A vector is not finite, zero, too large, or not of length 1 in a
                normalised space.
            DataError: The arguments do not fit each other, or the server fails.
        """
        whole = np.full((len(items), 2), np.nan)
        self.add_moments(items, vectors, range(len(items)), whole, space)

    def add_moments(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        parents: Sequence[int],
        spans: NDArray[Any],
        space: Space,
    ) -> None:
        """Add items with several vectors each.

        Args:
            items: What to add; each id once, each with at least one vector.
            vectors: Floating point (M, D).
            parents: For each vector the number of its item.
            spans: (M, 2), start and end in seconds; not-a-number for a picture.
            space: Where the vectors live.

        Raises:
            SpaceMismatch, NumericalError, DataError: As `add`.
        """
        owners = [items[number] for number in parents]
        stored_MD = check.checked_vectors(owners, vectors, space)
        check.refuse_repeated(items)
        if set(parents) != set(range(len(items))):
            raise DataError("an item has no vector, expected at least one each")
        if not items:
            return
        parts = rows.part_numbers(parents)
        ids = [check.encoded_id(item.id) for item in items]
        with self._writing() as connection:
            key = spaces.space_to_write(connection, space, self.location, sharded=self.sharded)
            rows.delete(connection, ids)
            rows.insert_items(connection, items)
            rows.insert_moments(
                connection,
                schema.moments_table(key),
                [ids[number] for number in parents],
                [(part, *rows.stored_span(span)) for part, span in zip(parts, spans, strict=True)],
                stored_MD,
            )

    def remove(self, ids: Iterable[str]) -> int:
        """Remove items; ids that are not there are ignored. Returns how many were removed."""
        keys = [check.encoded_id(item_id) for item_id in ids]
        if not keys:
            return 0
        with self._writing() as connection:
            return rows.delete(connection, keys)

    def forget(self, ids: Iterable[str]) -> int:
        """Remove items and let the server give their space back; returns how many were there.

        The write-ahead log and replicas keep copies until the server recycles them.
        """
        removed = self.remove(ids)
        with schema.explained("clean"), self._connections.after("SELECT 1") as connection:
            for (name,) in connection.execute(
                "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = 'costream' AND c.relkind = 'r'"
            ).fetchall():
                connection.execute(
                    sql.SQL("VACUUM FULL {}").format(sql.Identifier("costream", name))
                )
        return removed

    def touch(self, items: Sequence[Item]) -> None:
        """Note size, times and date of files whose content is the same."""
        with self._writing() as connection:
            for item in items:
                connection.execute(
                    "UPDATE costream.items SET size = %s, mtime_ns = %s, date = %s "
                    "WHERE id = %s AND content_hash = %s",
                    [
                        item.size,
                        item.mtime_ns,
                        item.date,
                        check.encoded_id(item.id),
                        item.content_hash,
                    ],
                )

    def reuse(self, items: Sequence[Item], *, remove: Iterable[str] = ()) -> list[Item]:
        """Add items whose content the index holds, with its vectors; all or none.

        Args:
            items: What to add or replace, each id once, with content hashes.
            remove: Ids to remove in the same step.

        Returns:
            The items that were not added because no item has their content hash.
        """
        check.refuse_repeated(items)
        gone = [check.encoded_id(item_id) for item_id in remove]
        hashes = [item.content_hash for item in items]
        with self._writing() as connection:
            found = dict(
                connection.execute(
                    "SELECT DISTINCT ON (content_hash) content_hash, id FROM costream.items "
                    "WHERE content_hash = ANY(%s) AND content_hash <> '' ORDER BY content_hash, id",
                    [hashes],
                ).fetchall()
            )
            known = [item for item in items if item.content_hash in found]
            copies = [
                (check.encoded_id(item.id), bytes(found[item.content_hash])) for item in known
            ]
            held = rows.held_moments(connection, [source for _, source in copies])
            rows.delete(connection, [*gone, *(item_id for item_id, _ in copies)])
            rows.insert_items(connection, known)
            for table, moments in held:
                rows.write_moments(connection, table, rows.copied(copies, moments))
        return [item for item in items if item.content_hash not in found]

    # --- spaces ---

    def spaces(self) -> tuple[SpaceEntry, ...]:
        """The spaces of which vectors are held, the active one first."""
        with self._reading() as connection:
            return spaces.entries(connection)

    def begin_space(self, space: Space) -> None:
        """Make room for a second set of vectors; again for the same space is no error."""
        with self._writing() as connection:
            if spaces.key_of(connection, space) is None:
                spaces.create_space(connection, space, "building", sharded=self.sharded)

    def missing(self, space: Space, count: int, *, after: str = "") -> list[Item]:
        """Items that have no vector in a space, in the order of their ids.

        Raises:
            DataError: The index has no such space.
        """
        with self._reading() as connection:
            key = spaces.known_key(connection, space, self.location)
            return spaces.missing(connection, key, count, after)

    def fill_space(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        space: Space,
        *,
        parents: NDArray[Any] | None = None,
        spans: NDArray[Any] | None = None,
    ) -> int:
        """Store vectors of a space being built.

        Returns:
            How many items got theirs; one that is gone or has other content by now does not.
        """
        owner = range(len(items)) if parents is None else [int(each) for each in parents]
        span = np.full((len(owner), 2), np.nan) if spans is None else spans
        stored_MD = check.checked_vectors([items[number] for number in owner], vectors, space)
        with self._writing() as connection:
            key = spaces.known_key(connection, space, self.location)
            return spaces.fill(connection, key, items, owner, span, stored_MD)

    def switch_space(self, space: Space, *, allow_missing: bool = False) -> None:
        """Make a space the active one in one step; the one before stays, to switch back to.

        Raises:
            DataError: The index has no such space, or items have no vector in it.
        """
        with self._writing() as connection:
            key = spaces.known_key(connection, space, self.location)
            spaces.switch(connection, key, space, allow_missing=allow_missing)

    def drop_space(self, space: Space) -> None:
        """Remove the vectors of a space that is not active.

        Raises:
            DataError: The index has no such space, or it is the active one.
        """
        with self._writing() as connection:
            key = spaces.known_key(connection, space, self.location)
            active = active_space(connection)
            if active is not None and active[0] == key:
                raise DataError(
                    f"{check.in_words(space)} is the active space", hint="switch to another first"
                )
            spaces.drop_space(connection, key, sharded=self.sharded)

    # --- search ---

    def search(
        self,
        vectors: NDArray[Any],
        space: Space,
        top: int,
        *,
        where: Filter | None = None,
        group: bool = True,
        exact: bool = False,
    ) -> Ranking:
        """The best items of each query.

        Args:
            vectors: Floating point (Q, D), any length but zero.
            space: Where the queries live.
            top: How many are wanted, at least 1.
            where: What the items have to be.
            group: Whether only the best moment of each item counts.
            exact: Whether to look at every vector even where there is a graph.

        Returns:
            Per query ids and scores; `exact` says whether every vector was looked at.

        Raises:
            SpaceMismatch: The index holds vectors of another space.
            ConfigError: `top` is below 1.
        """
        if top < 1:
            raise ConfigError(f"got top={top}, expected at least 1")
        queries_QD = checked_queries(vectors, space)
        with self._reading() as connection:
            active = active_space(connection)
            if active is None:
                return _nothing(len(queries_QD))
            check.check_same(active[1], space, self.location)
            target = target_of(connection, active, where, exact=exact)
            found = [
                nearest(connection, target, query_D, top, group=group) for query_D in queries_QD
            ]
        return Ranking(
            ids=tuple(each.ids for each in found),
            scores=tuple(each.scores for each in found),
            spans=tuple(each.spans for each in found),
            exact=not target.graph,
            kernel="pgvector graph" if target.graph else "pgvector scan",
        )

    def search_text(self, words: str, top: int, *, where: Filter | None = None) -> Ranking:
        """Items whose file name, caption, tags or found text have any of these words.

        Returns:
            One ranking by how many words match and how close together; empty when none do.
        """
        with self._reading() as connection:
            return by_words(connection, words, top, where)

    def build_graph(self) -> None:
        """Build a graph over the vectors (HNSW), for more of them than can be scanned quickly.

        Searches then are approximate, unless a filter leaves few or `exact` is asked for. Takes
        minutes for a million vectors; the index can be used meanwhile.

        Raises:
            DataError: The index is empty or sharded (build it on each shard), or the server fails.
        """
        with (
            schema.explained("build a graph in"),
            self._connections.after("SELECT 1") as connection,
        ):
            active = active_space(connection)
            if active is None or self.sharded:
                what = "sharded" if self.sharded else "empty"
                raise DataError(f"the index {self.location} is {what}, nothing was built")
            name = f"{schema.moments_name(active[0])}_graph"
            connection.execute(
                sql.SQL(
                    "CREATE INDEX CONCURRENTLY IF NOT EXISTS {} ON {} USING hnsw "
                    "(vector halfvec_ip_ops)"
                ).format(sql.Identifier(name), schema.moments_table(active[0]))
            )

    # --- PostgreSQL ---

    @contextlib.contextmanager
    def _reading(self) -> Iterator[schema.Connection]:
        """One state of the database, whatever others write meanwhile."""
        with schema.explained("read"), self._connections.reading() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[schema.Connection]:
        with schema.explained("write"), self._connections.writing() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [schema.WRITER_LOCK])
            yield connection
            connection.execute("UPDATE costream.state SET token = gen_random_uuid()")

    def _refuse_unknown(self, wanted: Iterable[str], found: Iterable[str]) -> None:
        there = set(found)
        for item_id in wanted:
            if item_id not in there:
                raise DataError(
                    f"the index {self.location} has no item {item_id!r}",
                    hint="ids() lists what it has",
                )


def public_url(url: str) -> str:
    """An address without its password, for messages and for another program to connect to.

    Raises:
        ConfigError: It is no address of a PostgreSQL database.

    Example:
        >>> public_url("postgresql://me:secret@db.example:5433/pictures")
        'postgresql://me@db.example:5433/pictures'
    """
    try:
        known = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        # What follows in the message may be the password.
        reason = str(error).strip().partition(': "')[0]
        raise ConfigError(
            f"got an address that cannot be read ({reason}), expected "
            "postgresql://USER@HOST:PORT/DATABASE",
            hint="letters that mean something in an address are written as in %40 for @",
        ) from error
    hosts, ports = (str(known.get(key, "")).split(",") for key in ("host", "port"))
    if len(ports) < len(hosts):
        ports = ports[:1] * len(hosts)  # one port for all
    places = [
        _host(host) + (f":{port}" if port else "") for host, port in zip(hosts, ports, strict=False)
    ]
    user = f"{quote(str(known['user']), safe='')}@" if "user" in known else ""
    return f"postgresql://{user}{','.join(places)}/{quote(str(known.get('dbname', '')), safe='')}"


def _host(host: str) -> str:
    """A host as addresses have it; the folder of a socket is one, too."""
    return f"[{host}]" if ":" in host else quote(host, safe="")


def _nothing(count: int) -> Ranking:
    empty = tuple(np.empty(0, dtype=np.float32) for _ in range(count))
    return Ranking(ids=((),) * count, scores=empty, spans=((),) * count)
