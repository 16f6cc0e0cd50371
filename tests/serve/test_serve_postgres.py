"""An index in PostgreSQL is served like one in a folder, and a server that is gone is told of."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import GALLERY, KEY, PICTURES, serving

import costream
from costream.encoders.dual import DualEncoder
from costream.index import Index, Item, open_index
from costream.index.copy import copy_index
from costream.serve.keys import KeyRing
from costream.serve.settings import Limits, ServeSettings

sys.path.insert(0, str(Path(__file__).parent.parent / "postgres"))
from servers import Server, servers, until


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    with servers(1) as (server,):
        yield server


@pytest.fixture
def filled(database: Server, shared_index_dir: Path) -> str:
    """An index of three pictures in the database."""
    database.execute("DROP SCHEMA IF EXISTS costream CASCADE")
    with Index.open(shared_index_dir) as source, open_index(database.url, create=True) as target:
        copy_index(source, target)
    return database.url


def found(answer: httpx.Response) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(each["name"], round(each["score"], 3)) for each in answer.json()["results"]]


def test_both_kinds_of_index_answer_alike(
    filled: str, client: httpx.Client, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with serving(filled, tiny_model_dir, cache=tmp_path / "cache") as served:
        assert served.get("ready").json() == {"status": "ready"}
        for parameters in (
            {"q": "red"},
            {"q": "a field", "minus": "blue", "top": 2},
            {"q": "red", "where": "before=2023-11-16", "offset": 1},
            {"q": "red", "where": "modality=video"},
        ):
            assert found(served.get("search", params=parameters)) == found(
                client.get("search", params=parameters)
            )
        for parameters in ({"sort": "name"}, {"sort": "date", "limit": 2, "offset": 1}):
            one, other = (each.get("items", params=parameters).json() for each in (served, client))
            assert one == other
        (item,) = (i for i in served.get("items").json()["items"] if i["name"] == "red.png")
        assert served.get(item["thumbnail"]).headers["content-type"] == "image/jpeg"
        assert len(list((tmp_path / "cache").rglob("*.jpg"))) == 1
        answer = served.post("explain", json={"id": item["id"], "terms": [{"text": "red"}]})
        assert answer.json()["grid"]


def test_without_a_folder_the_users_caches_are_used(
    filled: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the secret of the ids: links outlive a restart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    settings = ServeSettings(port=0, keys=KeyRing([KEY]))
    ids = []
    for _ in range(2):
        with serving(filled, tiny_model_dir, settings) as served:
            served.headers["Authorization"] = f"Bearer {KEY}"
            items = served.get("items").json()["items"]
            ids.append([item["id"] for item in items])
            assert served.get(items[0]["thumbnail"]).status_code == 200
    assert ids[0] == ids[1]
    folders = list((tmp_path / "home" / "costream").iterdir())
    assert len(folders) == 1
    assert folders[0].stat().st_mode & 0o777 == 0o700


def test_changes_by_others_are_noticed(
    filled: str, tiny_model: DualEncoder, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with serving(filled, tiny_model_dir, cache=tmp_path) as served:
        assert served.get("items").json()["total"] == 3
        with open_index(filled) as index:
            index.add([Item(id="new")], tiny_model.encode_texts(["red"]), tiny_model.space)
        assert "new" in dict(found(served.get("search?q=red")))
        until(lambda: served.get("items").json()["total"] == 4)
        until(lambda: "costream_items 4.0" in served.get("metrics").text)


def test_a_database_that_is_gone_is_told_of_and_come_back_to(
    database: Server, filled: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Killed, started again: a typed error meanwhile, and the right answer without a restart."""
    with serving(filled, tiny_model_dir, cache=tmp_path) as served:
        before = found(served.get("search?q=red"))
        database.kill()
        for address in ("search?q=red", "search?q=never+asked", "items", "about"):
            answer = served.get(address)
            assert answer.status_code == 503, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["retry-after"]
            assert filled not in answer.text
        assert served.get("ready").status_code == 503
        assert served.get("health").status_code == 200
        assert served.get("metrics").status_code == 200
        database.start()
        assert found(served.get("search?q=red")) == before
        until(lambda: served.get("ready").status_code == 200)


def test_a_database_that_hangs_holds_up_nobody_for_ever(
    database: Server, filled: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = ServeSettings(port=0, limits=Limits(answer_s=0.5))
    with serving(filled, tiny_model_dir, settings, cache=tmp_path) as served:
        before = found(served.get("search?q=red"))
        processes = database_processes(database)
        try:
            for process in processes:
                os.kill(process, signal.SIGSTOP)
            begin = time.monotonic()
            for number in range(4):
                answer = served.get(f"search?q=red{number}")
                assert answer.status_code == 503, answer.text
                assert "too long" in answer.json()["detail"]
            assert time.monotonic() - begin < 10
            assert served.get("health").status_code == 200
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)
        until(lambda: served.get("search?q=red").status_code == 200)
        assert found(served.get("search?q=red")) == before


def database_processes(database: Server) -> list[int]:
    """The server and all that it has started."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink() == database.data:
                found.append(int(process.name))
        except OSError:
            continue
    assert len(found) > 1
    return found


def test_the_shipped_model_is_found_by_the_name_in_the_database(
    database: Server, gallery_dir: Path, tmp_path: Path
) -> None:
    """`costream serve --index postgresql://...`, as people start it."""
    from test_serve_faults import program

    database.execute("DROP SCHEMA IF EXISTS costream CASCADE")
    with Index.open(gallery_dir) as source, open_index(database.url, create=True) as target:
        copy_index(source, target)
    assert len(PICTURES) == 24
    with program(database.url, None, "--cache", str(tmp_path)) as (_, url):
        answer = httpx.get(f"{url}search?q=a+husky+dog", timeout=60).json()
        assert answer["total"] == 24
        assert answer["kernel"].startswith("pgvector")
        assert answer["results"][0]["path"] == str(GALLERY / "husky.jpg")
        assert httpx.get(f"{url}about").json()["model"] == costream.load("cots-mini").space.encoder
