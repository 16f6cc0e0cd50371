"""Many threads ask an index in PostgreSQL at once, and the server ends their connections."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psycopg
import pytest
from servers import Server, servers, until

from costream.errors import DataError
from costream.index.postgres import PostgresIndex
from costream.index.postgres.connections import MOST
from costream.index.records import Item
from costream.records import Space

SPACE = Space(encoder="toy", weights_hash="0", preprocessing_hash="0", dim=8)
ITEMS = [Item(id=f"i{number}") for number in range(8)]
VECTORS = np.eye(8, dtype=np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with servers(1) as (started,):
        yield started


@pytest.fixture
def index(server: Server) -> Iterator[PostgresIndex]:
    server.execute("DROP SCHEMA IF EXISTS costream CASCADE")
    url = f"{server.url}&application_name=costream%20test"
    with PostgresIndex.open(url, create=True) as opened:
        opened.add(ITEMS, VECTORS, SPACE)
        yield opened


def ask(index: PostgresIndex, number: int) -> str:
    return index.search(VECTORS[number % 8][None], SPACE, 1).ids[0][0]


@contextmanager
def held_up(server: Server) -> Iterator[None]:
    """Nobody else can read items or vectors while the block runs."""
    with psycopg.connect(server.url) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE nspname = 'costream' AND relkind = 'r' AND relname LIKE 'moments%'"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"LOCK TABLE costream.{table} IN ACCESS EXCLUSIVE MODE")
        yield


def ours(server: Server, what: str, also: str = "true") -> list[tuple[object, ...]]:
    """Something about the connections of the index."""
    mine = "pg_stat_activity WHERE application_name = 'costream test'"
    return server.execute(f"SELECT {what} FROM {mine} AND {also}")  # noqa: S608  our own words


def waiting(server: Server) -> int:
    """Connections of the index that wait for a lock."""
    return len(ours(server, "pid", "wait_event_type = 'Lock'"))


def connected(server: Server) -> int:
    return len(ours(server, "pid"))


def end_all(server: Server) -> None:
    ours(server, "pg_terminate_backend(pid)")
    until(lambda: connected(server) == 0)


def test_searches_overlap(server: Server, index: PostgresIndex) -> None:
    with ThreadPoolExecutor(2 * MOST) as threads:
        with held_up(server):
            answers = [threads.submit(ask, index, number) for number in range(2 * MOST)]
            until(lambda: waiting(server) == MOST)
            assert connected(server) == MOST
            # Another table is read meanwhile by nobody of ours: all connections are taken.
            assert not any(answer.done() for answer in answers)
        assert [answer.result() for answer in answers] == [f"i{n % 8}" for n in range(2 * MOST)]
    assert connected(server) == MOST


def test_a_reader_does_not_wait_for_a_writer(server: Server, index: PostgresIndex) -> None:
    with psycopg.connect(server.url) as writer:
        writer.execute("UPDATE costream.items SET caption = 'new'")
        assert [ask(index, number) for number in range(8)] == [item.id for item in ITEMS]
        assert {item.caption for item in index.items()} == {""}


def test_connections_that_the_server_has_ended_are_replaced(
    server: Server, index: PostgresIndex
) -> None:
    with ThreadPoolExecutor(MOST) as threads:
        with held_up(server):
            answers = [threads.submit(ask, index, number) for number in range(MOST)]
            until(lambda: waiting(server) == MOST)
        assert len({answer.result() for answer in answers}) == 8
        end_all(server)
        assert list(threads.map(ask, [index] * 16, range(16))) == [f"i{n % 8}" for n in range(16)]
        end_all(server)
    index.add([Item(id="new")], VECTORS[:1], SPACE)
    end_all(server)
    assert len(index) == 9
    assert index.forget(["new"]) == 1


def test_a_request_whose_connection_is_ended_says_so_and_the_next_succeeds(
    server: Server, index: PostgresIndex
) -> None:
    with ThreadPoolExecutor(3) as threads:
        with held_up(server):
            answers = [threads.submit(ask, index, number) for number in range(3)]
            until(lambda: waiting(server) == 3)
            end_all(server)
            for answer in answers:
                with pytest.raises(DataError, match=r"terminating connection.*\n?.*try again"):
                    answer.result()
        assert list(threads.map(ask, [index] * 8, range(8))) == [item.id for item in ITEMS]


def test_a_change_whose_connection_is_ended_is_not_made(
    server: Server, index: PostgresIndex
) -> None:
    with ThreadPoolExecutor(1) as threads:
        with held_up(server):
            change = threads.submit(index.remove, ["i0", "i1"])
            until(lambda: waiting(server) == 1)
            end_all(server)
            with pytest.raises(DataError, match="cannot write"):
                change.result()
        assert len(index) == 8
        assert index.check() == ()


def test_an_error_in_a_transaction_leaves_no_trace_on_its_connection(
    server: Server, index: PostgresIndex
) -> None:
    token = index.token()
    for _ in range(2 * MOST):
        with pytest.raises(DataError), index._writing() as connection:
            connection.execute("DELETE FROM costream.items")
            connection.execute("SELECT 1 / 0")
    assert (len(index), index.token()) == (8, token)
    assert ours(server, "DISTINCT state") == [("idle",)]


def test_a_closed_index_says_so_and_ends_what_is_still_in_use(
    server: Server, index: PostgresIndex
) -> None:
    with ThreadPoolExecutor(2) as threads:
        with held_up(server):
            answers = [threads.submit(ask, index, number) for number in range(2)]
            until(lambda: waiting(server) == 2)
            index.close()
        assert [answer.result() for answer in answers] == ["i0", "i1"]
    until(lambda: connected(server) == 0)
    with pytest.raises(DataError, match="is closed"):
        ask(index, 0)
