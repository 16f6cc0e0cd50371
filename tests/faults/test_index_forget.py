"""Law: of what was forgotten no byte is in any file; of what was not, everything is there."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from index_worker import WIDE, unit

from costream.errors import DataError
from costream.index import Index, Item, database, resident
from costream.index.thumbnails import thumbnail_folder

NUM_ITEMS = 600


def item(number: int) -> Item:
    return Item(
        id=f"id-{number:05d}-secret{number}",
        path=f"/private/folder{number}/picture{number}.jpg",
        content_hash=f"{number:04x}" * 16,
        caption=f"caption{number} of somebody",
        tags=(f"person{number}",),
        text=f"letter{number} " * 3,
        meta={"place": f"home{number}"},
    )


def traces(number: int, vector: np.ndarray) -> list[bytes]:
    """Everything that gives an item away, as it can be written in a file."""
    words = ("secret", "folder", "picture", "caption", "person", "letter", "home")
    stored = vector.astype("<f2").tobytes()
    pieces = [stored[start : start + 64] for start in range(0, len(stored), 64)]
    # FTS5 writes a word's beginning once for all words that share it; what is left is the number.
    return [f"{word}{number}".encode() for word in words] + [b"%04x" % number * 16] + pieces


def found_in(directory: Path, wanted: list[bytes]) -> list[tuple[str, bytes]]:
    files = [file for file in directory.rglob("*") if file.is_file()]
    contents = [(file.name, file.read_bytes()) for file in files]
    return [(name, trace) for name, content in contents for trace in wanted if trace in content]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Grown and changed in many steps, with derived files and a second space, still open."""
    monkeypatch.setattr(resident, "WORTH_A_FILE_BYTES", 1)
    opened = Index.open(tmp_path / "index", create=True)
    opened._session.connection().execute("PRAGMA synchronous = OFF")
    vectors = all_vectors()
    order = np.random.default_rng(1).permutation(NUM_ITEMS).tolist()
    for start in range(0, NUM_ITEMS, 40):
        part = order[start : start + 40]
        opened.add([item(number) for number in part], vectors[part], WIDE)
        opened.load()
    for number in range(0, NUM_ITEMS, 9):  # rewritten: older copies are in pages and in the log
        opened.add([item(number)], vectors[number][None], WIDE)
    opened.load()
    return opened


def all_vectors() -> np.ndarray:
    return unit(np.random.default_rng(0), NUM_ITEMS, WIDE.dim)


# Of three digits, so that no other number begins like them; some are multiples of nine.
GONE = [108, 153, 250, 333, 599]


def test_nothing_is_left_of_what_was_forgotten(index: Index) -> None:
    vectors = all_vectors()
    wanted = [trace for number in GONE for trace in traces(number, vectors[number])]
    before = {trace for _, trace in found_in(index.directory, wanted)}
    assert len(before) > 0.8 * len(wanted), "the test does not see what it looks for"
    assert index.forget(item(number).id for number in GONE) == len(GONE)
    assert found_in(index.directory, wanted) == []
    index.load()
    assert found_in(index.directory, wanted) == []
    index.close()
    assert found_in(index.directory, wanted) == []
    with Index.open(index.directory) as again:
        left = [number for number in range(NUM_ITEMS) if number not in GONE]
        assert again.items() == sorted((item(n) for n in left), key=lambda one: one.id)
        stored = again.vectors([item(number).id for number in left])
        assert (stored == vectors[left].astype(np.float16)).all()
        assert again.search_text("person153", 9).ids == ((),)
        assert again.search_text("person154", 9).ids == ((item(154).id,),)
        assert again.check() == ()


def test_what_is_only_removed_is_no_longer_in_the_database_either(index: Index) -> None:
    """Not proven as forgetting is, but what is removed is overwritten, not only unlinked."""
    index.remove([item(153).id])
    index.close()
    pieces = [piece for piece in traces(153, all_vectors()[153]) if not piece.isascii()]
    whole = (index.directory / database.FILE_NAME).read_bytes()
    assert [piece for piece in pieces if piece in whole] == []


def test_forgetting_goes_on_where_it_was_stopped(index: Index) -> None:
    """Removed, but not rewritten: the same call finishes the work though the id is gone."""
    index.remove([item(153).id])
    assert index.forget([item(153).id]) == 0
    assert found_in(index.directory, traces(153, all_vectors()[153])) == []


def test_a_reader_that_holds_the_past_is_told(index: Index) -> None:
    index._session.connection().execute("PRAGMA busy_timeout = 100")
    reader = sqlite3.connect(index.directory / database.FILE_NAME, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM state").fetchall()
    with pytest.raises(DataError, match=r"another process reads it; end that process and forget"):
        index.forget([item(153).id])
    reader.execute("COMMIT")
    reader.close()
    index.forget([item(153).id])
    assert found_in(index.directory, traces(153, all_vectors()[153])) == []


def test_a_rewrite_that_fails_is_told_and_made_up_for(index: Index) -> None:
    in_the_way = thumbnail_folder(index.directory) / "ab" / "no thumbnail but a folder"
    in_the_way.mkdir(parents=True)
    with pytest.raises(DataError, match=r"removed, but traces are left: .*forget the same again"):
        index.forget([item(153).id])
    assert item(153).id not in index.ids()
    in_the_way.rmdir()
    index.forget([])
    assert not found_in(index.directory, traces(153, all_vectors()[153]))
