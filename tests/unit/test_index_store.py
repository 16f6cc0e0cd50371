"""Laws: what goes in comes out; the derived file is never trusted; misuse is told."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError
from costream.index import Index, Item, answering, codes, resident
from costream.records import Space

DIM = 16
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=DIM)


def unit(rows: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def filled(directory: Path, rows: int = 30) -> Index:
    index = Index.open(directory, create=True)
    index.add([Item(id=f"{row:05d}") for row in range(rows)], unit(rows), SPACE)
    return index


def test_items_come_back_as_they_went_in(tmp_path: Path) -> None:
    undecodable = os.fsdecode(b"/pictures/caf\xe9 \xff.jpg")
    stored = [
        Item(id="plain", path="/a/b.jpg", content_hash="c0ffee", size=3, mtime_ns=2**62),
        Item(
            id="two\nlines", path="/a/two\nlines.jpg", meta={"nested": [1, {"x": None}], "é": "🦊"}
        ),
        Item(id=undecodable, path=undecodable, meta={"name": undecodable}),
        Item(id="nul \0 inside", path=None),
        Item(id="🦊" * 5000, mtime_ns=-5),
    ]
    with Index.open(tmp_path, create=True) as index:
        index.add(stored, unit(5), SPACE)
    with Index.open(tmp_path) as index:
        assert index.get([item.id for item in stored]) == stored
        assert sorted(index.ids()) == sorted(item.id for item in stored)
        assert index.space == SPACE
        assert set(index.search(unit(1), SPACE, 9).ids[0]) == {item.id for item in stored}
        assert index.check() == ()


def test_replacing_an_item_leaves_one(tmp_path: Path) -> None:
    with Index.open(tmp_path, create=True) as index:
        index.add([Item(id="a", size=1)], unit(1, seed=1), SPACE)
        index.add([Item(id="a", size=2)], unit(1, seed=2), SPACE)
        assert index.get(["a"]) == [Item(id="a", size=2)]
        assert len(index) == 1
        want = unit(1, seed=2).astype(np.float16).astype(np.float32)
        assert (index.vectors(["a"]) == want).all()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item(id=""), "empty id"),
        (Item(id="a", size=2**63), "size=9223372036854775808"),
        (Item(id="a", meta={"x": float("nan")}), "'a' cannot be stored as JSON"),
        (Item(id="a", meta={"x": object()}), "'a' cannot be stored as JSON"),
        (Item(id="\ud800"), "no valid Unicode"),
    ],
)
def test_items_that_cannot_be_stored_are_refused(tmp_path: Path, item: Item, message: str) -> None:
    with Index.open(tmp_path, create=True) as index:
        with pytest.raises(DataError, match=message):
            index.add([Item(id="good"), item], unit(2), SPACE)
        assert len(index) == 0


def test_only_dense_vectors(tmp_path: Path) -> None:
    sparse = Space(encoder="s", weights_hash="", preprocessing_hash="", dim=DIM, kind="sparse")
    with Index.open(tmp_path, create=True) as index, pytest.raises(ConfigError, match="sparse"):
        index.add([Item(id="a")], unit(1), sparse)


def test_reuse_gives_the_vector_of_the_same_content(tmp_path: Path) -> None:
    with Index.open(tmp_path, create=True) as index:
        index.add([Item(id="old", content_hash="h")], unit(1), SPACE)
        fresh = [Item(id="new", content_hash="h"), Item(id="unknown", content_hash="other")]
        assert index.reuse(fresh, remove=["old"]) == fresh[1:]
        assert index.ids() == ["new"]
        assert (index.vectors(["new"]) == unit(1).astype(np.float16)).all()
        assert index.search(unit(1), SPACE, 5).ids == (("new",),)
        with pytest.raises(DataError, match="no content hash"):
            index.reuse([Item(id="x")])


def test_touch_changes_size_and_time_of_the_same_content_only(tmp_path: Path) -> None:
    with Index.open(tmp_path, create=True) as index:
        index.add([Item(id="a", content_hash="h", meta={"k": 1})], unit(1), SPACE)
        index.touch([Item(id="a", content_hash="h", size=7, mtime_ns=8)])
        want = Item(id="a", content_hash="h", size=7, mtime_ns=8, meta={"k": 1})
        assert index.get(["a"]) == [want]
        index.touch([Item(id="a", content_hash="else", size=9), Item(id="b", content_hash="h")])
        assert index.get(["a"]) == [want]
        assert index.check() == ()


def test_absent_items_and_a_closed_index_are_errors(tmp_path: Path) -> None:
    index = filled(tmp_path)
    for read in (index.get, index.vectors):
        with pytest.raises(DataError, match="no item 'nobody'"):
            read(["00001", "nobody"])
    index.close()
    index.close()
    with pytest.raises(DataError, match="is closed"):
        len(index)
    with pytest.raises(DataError, match="is closed"):
        index.check()


def test_there_must_be_an_index_unless_asked_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no index in .*make one: costream index"):
        Index.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with Index.open(tmp_path / "deep" / "down", create=True) as index:
        assert len(index) == 0
    assert sorted(file.name for file in (tmp_path / "deep" / "down").iterdir()) == ["index.sqlite"]


def test_durability_settings(tmp_path: Path) -> None:
    with filled(tmp_path) as index:
        connection = index._session.connection()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_stats(tmp_path: Path) -> None:
    with filled(tmp_path) as index:
        stats = index.stats()
    assert (stats.num_items, stats.space, stats.format) == (30, SPACE, 2)
    assert stats.directory == str(tmp_path)
    assert stats.size_bytes > 30 * DIM * 2


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    filled(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(DataError, match=r"has format 3, .* reads up to 2; pip install --upgrade"):
        Index.open(tmp_path)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(DataError, match="not an index of costream"):
        Index.open(tmp_path, create=True)


def test_several_threads_may_use_one_object(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with Index.open(tmp_path, create=True) as index:

        def work(number: int) -> None:
            try:
                for step in range(10):
                    index.add([Item(id=f"{number}-{step}")], unit(1, seed=number), SPACE)
                    assert index.search(unit(1), SPACE, 3).ids[0]
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(index) == 40


def test_a_fork_must_open_its_own(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index._session._process += 1  # what a forked child sees
    with pytest.raises(DataError, match="open the index again in this process"):
        len(index)
    index._session._process -= 1
    index.close()


# --- the derived file ---


@pytest.fixture
def with_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(resident, "WORTH_A_FILE_BYTES", 1)
    with filled(tmp_path) as index:
        index.load()
    assert len(codes.files(tmp_path)) == 1
    return tmp_path


def the_file(directory: Path) -> Path:
    (file,) = codes.files(directory)
    return file


def ranked(directory: Path) -> list[tuple[str, ...]]:
    with Index.open(directory) as index:
        return [tuple(ids) for ids in index.search(unit(4, seed=9), SPACE, 10).ids]


def test_the_file_is_used_and_gives_the_same_answer(
    with_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = the_file(with_file)
    file.rename(with_file / "aside")
    want = ranked(with_file)
    (with_file / "aside").replace(file)

    def forbidden(*_: object) -> None:
        raise AssertionError("the vectors were read from the database")

    monkeypatch.setattr("costream.index.vector_rows.read_all", forbidden)
    assert ranked(with_file) == want


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "longer", "zeroed", "text", "flips"])
def test_a_damaged_file_changes_no_answer_and_is_written_anew(with_file: Path, damage: str) -> None:
    file = the_file(with_file)
    whole = file.read_bytes()
    file.unlink()
    want = ranked(with_file)
    spoilt = {
        "absent": [b""],
        "empty": [b""],
        "cut": [whole[:size] for size in (1, 47, 48, 100, len(whole) // 2, len(whole) - 1)],
        "longer": [whole + b"\0"],
        "zeroed": [bytes(len(whole))],
        "text": [b"not a matrix"],
        "flips": [
            whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :]
            for byte in range(0, len(whole), 37)
        ],
    }[damage]
    for content in spoilt:
        file.write_bytes(content)
        if damage == "absent":
            file.unlink()
        assert ranked(with_file) == want
        # The token is new after no change, so the file made anew is the same.
        assert file.read_bytes() == whole


def test_a_file_of_another_state_is_not_used(with_file: Path) -> None:
    old = the_file(with_file).read_bytes()
    with Index.open(with_file) as index:
        index.load()
        index.add([Item(id="00003")], unit(1, seed=9), SPACE)  # as many items as before
    for file in codes.files(with_file):
        file.write_bytes(old)
    assert ranked(with_file)[0][0] == "00003"


def test_the_file_of_another_index_is_not_used(with_file: Path, tmp_path: Path) -> None:
    with filled(tmp_path / "other") as other:
        other.remove(["00000"])
        other.add([Item(id="zzz")], unit(1, seed=9), SPACE)
        other.load()
    stolen = the_file(tmp_path / "other").read_bytes()
    want = ranked(with_file)
    the_file(with_file).write_bytes(stolen)
    assert ranked(with_file) == want


@pytest.mark.parametrize("many", [0, 20])
def test_rows_with_each_others_keys_give_the_right_answer_or_an_error(
    with_file: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Ids are looked up by key for few results, and taken in order for many."""
    want = ranked(with_file)
    best, second = (name.encode() for name in want[0][:2])
    connection = sqlite3.connect(with_file / "index.sqlite")
    keys = dict(connection.execute("SELECT id, key FROM items WHERE id IN (?, ?)", (best, second)))
    for key, item_id in ((-1, best), (keys[best], second), (keys[second], best)):
        connection.execute("UPDATE items SET key = ? WHERE id = ?", (key, item_id))
    connection.commit()
    connection.close()
    monkeypatch.setattr(answering, "_MANY", many)
    with pytest.raises(DataError, match=r"the row of item .* is not what was written"):
        ranked(with_file)


def test_abandoned_drafts_are_removed_and_fresh_ones_left(with_file: Path) -> None:
    for name, age_s in (("1-a", 3600), ("2-b", 1)):
        draft = with_file / codes.FOLDER / f"1.{name}.new"
        draft.touch()
        when = draft.stat().st_mtime - age_s
        os.utime(draft, (when, when))
    the_file(with_file).unlink()
    ranked(with_file)
    assert not (with_file / codes.FOLDER / "1.1-a.new").exists()
    assert (with_file / codes.FOLDER / "1.2-b.new").exists()


def test_the_store_stays_small_under_churn(tmp_path: Path) -> None:
    with filled(tmp_path, 200) as index:
        before = index.stats().size_bytes
        for step in range(60):
            chosen = [f"{row:05d}" for row in range(step % 5, 200, 5)]
            index.remove(chosen)
            index.add([Item(id=item_id) for item_id in chosen], unit(40, seed=step), SPACE)
    with Index.open(tmp_path) as index:
        assert index.stats().size_bytes < 2 * before
        assert index.check() == ()


def test_metas_of_many_items_are_stored_as_those_of_one(tmp_path: Path) -> None:
    """Many are put into JSON at once: nothing of one may end up with another."""
    metas: list[dict[str, object]] = [
        {},
        {"b": 1, "a": [1, None, {"x": 'y, "z", ['}]},
        {"s": "\ud800ä", "": "], ["},
        {"deep": {"list": [[], [{}], ", "]}},
        {},
    ]
    items = [Item(id=f"meta{number}", meta=meta) for number, meta in enumerate(metas)]
    with Index.open(tmp_path, create=True) as index:
        index.add(items, unit(len(items)), SPACE)
        assert index.get(item.id for item in items) == items
        for item in items:
            index.add([item], unit(1), SPACE)
        assert index.get(item.id for item in items) == items


@pytest.mark.parametrize("meta", [[1], "text", {"a": {1, 2}}, {"a": float("nan")}])
def test_a_meta_that_is_not_json_is_refused_by_name(tmp_path: Path, meta: object) -> None:
    bad = Item(id="bad", meta=meta)  # type: ignore[arg-type]
    with Index.open(tmp_path, create=True) as index:
        with pytest.raises(DataError, match="the meta of item 'bad' cannot be stored"):
            index.add([Item(id="good"), bad], unit(2), SPACE)
        assert index.ids() == []


def test_items_of_every_kind_are_stored_as_they_are_whatever_comes_with_them(
    tmp_path: Path,
) -> None:
    """Those with nothing but an id and a meta are written another way than the others."""
    kinds: list[dict[str, object]] = [
        {},
        {"meta": {"a": 'it\'s "quoted" \\ ä'}},
        {"path": "/a/b.jpg"},
        {"content_hash": "00"},
        {"size": 1},
        {"mtime_ns": -1},
        {"modality": "text"},
        {"date": 0.0},
        {"tags": ("one", "two")},
        {"caption": "a caption"},
        {"text": "words"},
    ]
    names = ["plain", "it's", '"', "\\", "ä", "\udc80", "new\nline"]
    items = [
        Item(id=f"{name}{number}", **kind)  # type: ignore[arg-type]
        for name in names
        for number, kind in enumerate(kinds)
    ]
    with Index.open(tmp_path, create=True) as index:
        index.add(items, unit(len(items)), SPACE)
        index.add([*items[5:9], Item(id="another")], unit(5), SPACE)
        assert index.get(item.id for item in items) == items
        assert index.check() == ()


def test_a_file_is_no_place_for_an_index(tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("mine")
    with pytest.raises(DataError, match=r"notes.txt is a file, expected the folder"):
        Index.open(place, create=True)
    assert place.read_text() == "mine"


def test_many_rows_go_in_with_few_statements_and_are_the_same(tmp_path: Path) -> None:
    items = [Item(id=f"item{n}", caption=f"word{n}", tags=("a", "b")) for n in range(4321)]
    vectors = np.random.default_rng(0).standard_normal((4321, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    space = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=16)
    statements: list[str] = []
    with Index.open(tmp_path, create=True) as index:
        index._session.connection().set_trace_callback(statements.append)
        index.add(items, vectors, space)
        index._session.connection().set_trace_callback(None)
        assert sum("INTO items" in statement for statement in statements) < 2000
        assert sorted(index.items(), key=lambda item: int(item.id[4:])) == items
        assert index.check() == ()
