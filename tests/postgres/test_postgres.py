"""The index in PostgreSQL finds what a full scan finds, on one server and over two shards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from servers import Server, discard, new_server, servers, until

from costream.errors import ConfigError, DataError, SpaceMismatch
from costream.index.copy import copy_index
from costream.index.filters import Filter, parse_filter
from costream.index.postgres import PostgresIndex, create_shards, move_shard
from costream.index.records import Item
from costream.records import Space

DIM = 24
SPACE = Space(encoder="toy", weights_hash="0", preprocessing_hash="0", dim=DIM)
OTHER = Space(encoder="new", weights_hash="1", preprocessing_hash="0", dim=8)


@pytest.fixture(scope="module")
def three() -> Iterator[list[Server]]:
    """Servers that the tests share; each test starts from empty databases."""
    with servers(3) as started:
        yield started


@pytest.fixture(params=["one server", "two shards"])
def index(three: list[Server], request: pytest.FixtureRequest) -> Iterator[PostgresIndex]:
    for server in three:
        empty(server)
    if request.param == "two shards":
        create_shards(three[0].url, [three[1].url, three[2].url])
    with PostgresIndex.open(three[0].url, create=True) as opened:
        yield opened


def empty(server: Server) -> None:
    for (name,) in server.execute("SELECT srvname FROM pg_foreign_server"):
        server.execute(f"DROP SERVER {name} CASCADE")
    server.execute("DROP SCHEMA IF EXISTS costream CASCADE")


def unit(rows: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def made_items(count: int) -> list[Item]:
    return [
        Item(
            id=f"/pictures/{number % 7}/IMG_{number:04d}.jpg",
            path=f"/pictures/{number % 7}/IMG_{number:04d}.jpg",
            content_hash=f"{number:064x}",
            size=number,
            mtime_ns=number * 10**9,
            modality="video" if number % 5 == 0 else "image",
            date=float(number) if number % 2 else None,
            tags=("even",) if number % 2 == 0 else ("odd", f"n{number}"),
            caption=f"a picture of number {number}",
            meta={"camera": {"iso": 100 * (number % 4)}, "flash": number % 3 == 0},
        )
        for number in range(count)
    ]


def best(
    items: list[Item],
    vectors: NDArray[np.float32],
    query: NDArray[np.float32],
    top: int,
    where: Filter | None = None,
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Ids and scores by scoring everything in float64."""
    kept = [row for row, item in enumerate(items) if where is None or where.matches(item)]
    stored = vectors[kept].astype(np.float16).astype(np.float64)
    scores = (stored * query.astype(np.float64)).sum(axis=1).astype(np.float32)
    names = [items[row].id.encode() for row in kept]
    order = sorted(range(len(kept)), key=lambda row: (-scores[row], names[row]))[:top]
    return tuple(items[kept[row]].id for row in order), scores[order]


def test_what_is_found_is_what_a_full_scan_finds(index: PostgresIndex) -> None:
    items, vectors = made_items(300), unit(300)
    index.add(items[:200], vectors[:200], SPACE)
    index.add(items[150:], vectors[150:], SPACE)
    assert len(index) == 300 and index.space == SPACE and index.check() == ()
    for top in (1, 10, 1000):
        ranking = index.search(unit(4, seed=1), SPACE, top)
        for ids, scores, query in zip(ranking.ids, ranking.scores, unit(4, seed=1), strict=True):
            wanted, wanted_scores = best(items, vectors, query, top)
            assert tuple(ids) == wanted
            np.testing.assert_array_equal(scores, wanted_scores)
    assert ranking.exact


def test_equal_scores_come_in_the_order_of_ids(index: PostgresIndex) -> None:
    vector = np.repeat(unit(1), 40, axis=0)
    items = [Item(id=name) for name in "zyxwvutsrqponmlkjihgfedcba" + "0123456789ABCD"]
    index.add(items, vector, SPACE)
    (ids,) = index.search(unit(1), SPACE, 7).ids
    assert list(ids) == sorted(item.id for item in items)[:7]


@pytest.mark.parametrize(
    "conditions",
    [
        ["path=/pictures/3/"],
        ["modality=video"],
        ["tag=odd", "tag=n7"],
        ["after=1970-01-01T00:01:00", "before=1970-01-01T00:03:00"],
        ["camera.iso=300"],
        ["flash=true", "tag=even"],
        ["camera.lens=50"],
        ["path=/pictures/3/", "modality=video", "tag=even", "camera.iso=0"],
    ],
)
def test_filters_lose_nothing(index: PostgresIndex, conditions: list[str]) -> None:
    items, vectors = made_items(300), unit(300)
    index.add(items, vectors, SPACE)
    where = parse_filter(conditions)
    matching = {item.id for item in items if where.matches(item)}
    assert index.matches(where) == matching
    assert index.count(where) == len(matching)
    (ids,) = index.search(unit(1, seed=1), SPACE, 10, where=where).ids
    assert tuple(ids) == best(items, vectors, unit(1, seed=1)[0], 10, where)[0]
    assert len(ids) == min(10, len(matching))


def test_a_clip_is_found_by_its_best_moment(index: PostgresIndex) -> None:
    vectors = unit(6)
    spans = np.array([[0, 1], [1, 2], [2, 3.5], [np.nan] * 2, [0, 4], [4, 8]])
    items = [Item(id="clip", modality="video"), Item(id="still"), Item(id="film")]
    index.add_moments(items, vectors, np.array([0, 0, 0, 1, 2, 2]), spans, SPACE)
    ranking = index.search(vectors[2:4], SPACE, 3)
    assert ranking.ids[0][0] == "clip" and ranking.spans[0][0] == (2.0, 3.5)
    assert ranking.ids[1][0] == "still" and ranking.spans[1][0] is None
    assert sorted(ranking.ids[0]) == ["clip", "film", "still"]
    every = index.search(vectors[2:3], SPACE, 10, group=False)
    assert len(every.ids[0]) == 6 and list(every.ids[0]).count("clip") == 3
    assert [len(each) for each in index.moments(["film", "still"])] == [2, 1]


def test_words_find_names_captions_and_tags(index: PostgresIndex) -> None:
    index.add(made_items(50), unit(50), SPACE)
    assert index.search_text("IMG_0042", 5).ids[0][0].endswith("IMG_0042.jpg")
    assert index.search_text("n7 ; DROP TABLE items --", 5).ids[0] == ("/pictures/0/IMG_0007.jpg",)
    assert index.search_text("zebra", 5).ids == ((),)
    assert index.search_text("", 5).ids == ((),)
    only = Filter(modality=("video",))
    found = index.search_text("number", 50, where=only).ids[0]
    assert set(found) == index.matches(only)


def test_what_was_added_comes_back_and_what_was_removed_is_gone(index: PostgresIndex) -> None:
    name = "/odd\udcff/\N{SNOWMAN}'\"\n.jpg"
    odd = Item(id=name, path=name, tags=("ä",), caption="nul\0", text="x", meta={"a": [1, None]})
    index.add([odd, *made_items(3)], unit(4), SPACE)
    (back,) = index.get([name])
    assert (back.id, back.path, back.tags, back.meta) == (name, name, ("ä",), {"a": [1, None]})
    np.testing.assert_array_equal(index.vectors([name]), unit(4)[:1].astype(np.float16))
    assert index.remove([name, "never there"]) == 1
    assert index.forget([made_items(1)[0].id]) == 1
    assert index.ids() == [item.id for item in made_items(3)[1:]]
    with pytest.raises(DataError, match="no item"):
        index.get([name])


def test_content_that_is_known_is_used_again(index: PostgresIndex) -> None:
    items = made_items(3)
    index.add(items, unit(3), SPACE)
    moved = Item(id="/new.jpg", path="/new.jpg", content_hash=items[1].content_hash)
    new = Item(id="/other.jpg", content_hash="f" * 64)
    assert index.reuse([moved, new], remove=[items[1].id]) == [new]
    assert index.ids() == ["/new.jpg", items[0].id, items[2].id]
    np.testing.assert_array_equal(index.vectors(["/new.jpg"]), unit(3)[1:2].astype(np.float16))


def test_a_foreign_space_is_refused_until_it_was_filled_and_switched_to(
    index: PostgresIndex,
) -> None:
    items = made_items(5)
    index.add(items, unit(5), SPACE)
    with pytest.raises(SpaceMismatch):
        index.add(items, unit(5, 8), OTHER)
    with pytest.raises(SpaceMismatch):
        index.search(unit(1, 8), OTHER, 1)
    index.begin_space(OTHER)
    index.begin_space(OTHER)
    first = index.missing(OTHER, 3)
    assert [item.id for item in first] == index.ids()[:3]
    assert index.fill_space(first, unit(3, 8), OTHER) == 3
    with pytest.raises(DataError, match="2 of 5 items have no vector"):
        index.switch_space(OTHER)
    rest = index.missing(OTHER, 9)
    index.fill_space(rest, unit(5, 8)[3:], OTHER)
    assert index.search(unit(1), SPACE, 1).ids
    index.switch_space(OTHER)
    assert index.search(unit(5, 8)[:1], OTHER, 1).ids[0] == (index.ids()[0],)
    assert [entry.role for entry in index.spaces()] == ["active", "retired"]
    index.switch_space(SPACE)
    assert index.search(unit(5)[:1], SPACE, 1).ids[0] == (items[0].id,)
    index.drop_space(OTHER)
    assert [entry.space for entry in index.spaces()] == [SPACE]


def test_every_change_gives_the_index_another_token(index: PostgresIndex) -> None:
    items = made_items(3)
    with PostgresIndex.open(index.url) as watcher:
        seen = [watcher.token()]
        for change in (
            lambda: index.add(items, unit(3), SPACE),
            lambda: index.touch(items),
            lambda: index.reuse([Item(id="copy", content_hash=items[0].content_hash)]),
            lambda: index.remove(["copy"]),
            lambda: index.begin_space(OTHER),
            lambda: index.fill_space(items, unit(3, 8), OTHER),
            lambda: index.switch_space(OTHER),
            lambda: index.drop_space(SPACE),
        ):
            change()
            seen.append(watcher.token())
            assert index.token() == watcher.token()
    assert len(set(seen)) == 9


def test_two_writers_wait_for_each_other(index: PostgresIndex) -> None:
    from threading import Thread

    items, vectors = made_items(120), unit(120)

    def write(start: int) -> None:
        with PostgresIndex.open(index.url) as mine:
            for first in range(start, 120, 20):
                mine.add(items[first : first + 10], vectors[first : first + 10], SPACE)

    writers = [Thread(target=write, args=(start,)) for start in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(index) == 120 and index.check() == ()


class Stopped(Exception):
    """Ends a copy in the middle."""


def test_a_copy_that_was_stopped_goes_on_and_ends_up_the_same(
    index: PostgresIndex, three: list[Server]
) -> None:
    spans = np.array([[np.nan] * 2] * 2000 + [[0, 1], [1, 2]])
    items = [*made_items(2000), Item(id="clip", modality="video")]
    with new_index(three[0]) as source:
        source.add_moments(items, unit(2002), np.array([*range(2001), 2000]), spans, SPACE)

        def stop(done: int) -> None:
            raise Stopped

        with pytest.raises(Stopped):
            copy_index(source, index, progress=stop)
        assert 0 < len(index) < 2001
        index.remove([items[3].id])
        index.add([Item(id="foreign")], unit(1), SPACE)
        index.add([items[7]], -unit(1), SPACE)
        report = copy_index(source, index)
        assert (report.removed, report.kept) == (1, 998)
        assert index.items() == source.items()
        np.testing.assert_array_equal(index.all_vectors(["clip"]), source.all_vectors(["clip"]))
        np.testing.assert_array_equal(
            index.all_vectors(index.ids()), source.all_vectors(source.ids())
        )
        assert copy_index(source, index).copied == 0


def test_the_program_indexes_into_a_database_and_searches_it(
    three: list[Server], tmp_path: Path
) -> None:
    empty(three[0])
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    words = ("index", tmp_path, "--index", three[0].url, "--json")
    first, again = program(*words), program(*words)
    assert (first["added"], again["added"], again["unchanged"]) == (2, 0, 2)
    (tmp_path / "blue.png").unlink()
    assert program(*words, "--prune")["removed"] == 1
    found = program("search", "--image", tmp_path / "red.png", "--index", three[0].url, "--json")
    assert [Path(each["path"]).name for each in found["results"]] == ["red.png"]


def program(*words: str | Path) -> dict[str, Any]:
    """What the program prints as JSON."""
    command = [sys.executable, "-m", "costream", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@contextmanager
def new_index(server: Server) -> Iterator[PostgresIndex]:
    """An index in a database of its own."""
    server.execute("CREATE DATABASE another")
    url = server.url.replace("/postgres?", "/another?")
    try:
        with PostgresIndex.open(url, create=True) as opened:
            yield opened
    finally:
        server.execute("DROP DATABASE another")


def test_bad_arguments_are_refused_and_change_nothing(index: PostgresIndex) -> None:
    items = made_items(2)
    index.add(items, unit(2), SPACE)
    with pytest.raises(DataError, match="twice"):
        index.add([items[0], items[0]], unit(2), SPACE)
    with pytest.raises(ConfigError, match="top=0"):
        index.search(unit(1), SPACE, 0)
    with pytest.raises(DataError, match="JSON"):
        index.add([Item(id="x", meta={"bad": float("nan")})], unit(1), SPACE)
    assert len(index) == 2


def test_no_server_no_index_and_no_password_in_messages(three: list[Server]) -> None:
    with pytest.raises(DataError, match="cannot open the PostgreSQL index") as told:
        PostgresIndex.open("postgresql://me:secret@/db?host=/nowhere")
    assert "secret" not in str(told.value)
    empty(three[0])
    with pytest.raises(DataError, match="no index in"):
        PostgresIndex.open(three[0].url)


def test_a_graph_is_used_for_many_and_not_for_few(three: list[Server]) -> None:
    """pgvector's own plan lost 96 % of the results of a filter that 1.4 % of the rows pass."""
    empty(three[0])
    count = 3000
    items, vectors = made_items(count), unit(count)
    with PostgresIndex.open(three[0].url, create=True) as index:
        index.add(items, vectors, SPACE)
        index.build_graph()
        ranking = index.search(unit(20, seed=1), SPACE, 10)
        assert not ranking.exact
        hits = [
            len(set(ids) & set(best(items, vectors, query, 10)[0]))
            for ids, query in zip(ranking.ids, unit(20, seed=1), strict=True)
        ]
        assert sum(hits) >= 0.95 * 200
        where = Filter(tags=("n17",))
        few = index.search(unit(1, seed=1), SPACE, 10, where=where)
        assert few.exact and few.ids[0] == ("/pictures/3/IMG_0017.jpg",)
        whole = index.search(unit(1, seed=1), SPACE, 10, exact=True)
        assert tuple(whole.ids[0]) == best(items, vectors, unit(1, seed=1)[0], 10)[0]


def test_no_acknowledged_item_is_lost_when_a_primary_is_killed_and_its_replica_promoted() -> None:
    """The replica is synchronous: what was acknowledged is on both."""
    with servers(3) as (coordinator, first, second):
        create_shards(coordinator.url, [first.url, second.url])
        replica = second.replicate(name="replica")
        try:
            second.execute("ALTER SYSTEM SET synchronous_standby_names = 'replica'")
            second.execute("SELECT pg_reload_conf()")
            until(
                lambda: second.execute("SELECT sync_state FROM pg_stat_replication")[0][0] == "sync"
            )
            items, vectors = made_items(400), unit(400)
            with PostgresIndex.open(coordinator.url) as index:
                for start in range(0, 400, 50):
                    index.add(items[start : start + 50], vectors[start : start + 50], SPACE)
                second.kill()
                with pytest.raises(DataError):
                    index.search(unit(1), SPACE, 10)
            replica.promote()
            replica.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            replica.execute("SELECT pg_reload_conf()")
            move_shard(coordinator.url, 1, replica.url)
            with PostgresIndex.open(coordinator.url) as index:
                assert index.ids() == [item.id for item in sorted(items, key=lambda i: i.id)]
                (ids,) = index.search(unit(1, seed=1), SPACE, 10).ids
                assert tuple(ids) == best(items, vectors, unit(1, seed=1)[0], 10)[0]
                index.add(made_items(401)[400:], unit(1), SPACE)
                assert len(index) == 401
        finally:
            discard(replica)


def test_a_killed_server_keeps_what_was_acknowledged(three: list[Server]) -> None:
    server = new_server()
    try:
        with PostgresIndex.open(server.url, create=True) as index:
            index.add(made_items(64), unit(64), SPACE)
            server.kill()
            with pytest.raises(DataError, match="cannot write"):
                index.add(made_items(65)[64:], unit(1), SPACE)
        server.start()
        with PostgresIndex.open(server.url) as index:
            assert len(index) == 64 and index.check() == ()
    finally:
        discard(server)
