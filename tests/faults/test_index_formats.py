"""Laws: an index of an earlier version opens with all it held, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from format_1 import write_format_1
from index_worker import DIM, ColourHistogram, unit
from test_index_faults import worker

from costream.errors import DataError
from costream.index import Index, Item
from costream.records import Space

GOLDEN = Path(__file__).parents[1] / "golden" / "index_format_1" / "index.sqlite"
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=8)
UNDECODABLE = os.fsdecode(b"/pictures/caf\xe9 \xff.jpg")
HELD = [
    Item(id="a", path="/a/dog_sea.jpg", content_hash="c0ffee", size=3, mtime_ns=2**62),
    Item(id="two\nlines", path="/a/two\nlines.jpg", meta={"nested": [1, {"x": None}], "é": "🦊"}),
    Item(id=UNDECODABLE, path=UNDECODABLE, meta={"name": UNDECODABLE}),
    Item(id="nul \0 inside"),
    Item(id="last", mtime_ns=-5),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The index that version 0.1.0 wrote."""
    directory = tmp_path / "old"
    directory.mkdir()
    shutil.copy(GOLDEN, directory)
    return directory


def test_an_index_of_the_first_version_opens_with_all_it_held(old: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    want = np.delete(vectors, 4, axis=0).astype(np.float32).astype(np.float16)
    for _ in range(2):
        with Index.open(old) as index:
            assert index.get([item.id for item in HELD]) == HELD
            assert len(index) == 5
            assert (index.vectors([item.id for item in HELD]) == want).all()
            assert index.space == SPACE
            assert index.search(want[:1].astype("f4"), SPACE, 1).ids == (("a",),)
            assert index.search_text("sea dog", 9).ids == (("a",),)
            assert index.stats().format == 2
            assert index.check() == ()
            index.add([Item(id="a")], unit(np.random.default_rng(1), 1, 8), SPACE)
            index.add(HELD[:1], want[:1].astype("f4"), SPACE)


def test_an_empty_index_of_the_first_version_opens(tmp_path: Path) -> None:
    write_format_1(tmp_path / "old", [], np.empty((0, 8), np.float32), SPACE)
    with Index.open(tmp_path / "old") as index:
        assert (len(index), index.check()) == (0, ())


def test_a_damaged_index_of_the_first_version_is_left_as_it_is(old: Path) -> None:
    whole = bytearray((old / "index.sqlite").read_bytes())
    whole[whole.index(b"c0ffee")] ^= 1
    (old / "index.sqlite").write_bytes(whole)
    for _ in range(2):
        with pytest.raises(DataError, match="the row of item b'a' is not what was written"):
            Index.open(old)
    connection = sqlite3.connect(old / "index.sqlite")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


def test_an_index_of_the_first_version_that_may_not_be_written_says_so(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match=r"earlier format.*open it once with write permission"):
        Index.open(old)


def test_a_kill_while_converting_loses_nothing(tmp_path: Path) -> None:
    items = [Item(id=f"{row:05d}", path=f"/p/{row}.jpg", size=row) for row in range(2000)]
    vectors = unit(np.random.default_rng(0), len(items), DIM)
    write_format_1(tmp_path / "whole", items, vectors, ColourHistogram.space)

    def convert(kill_after_s: float | None) -> tuple[bool, float]:
        """Whether the conversion came to its end, and the seconds until it did or was killed."""
        directory = tmp_path / "old"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", directory)
        with worker("open", directory) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"
            begin = time.monotonic()
            if kill_after_s is not None:
                time.sleep(kill_after_s)
                process.send_signal(signal.SIGKILL)
            ended = process.stdout.read() == "end\n"
            seconds = time.monotonic() - begin
        with Index.open(directory) as index:
            assert index.items() == items
            assert (index.vectors(index.ids()) == vectors.astype(np.float16)).all()
            assert index.check() == ()
        return ended, seconds

    ended, whole_s = convert(None)
    assert ended
    killed = [not convert(part * whole_s)[0] for part in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert any(killed)
