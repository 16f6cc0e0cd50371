"""The verbs that keep an index healthy, as people and scripts use them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from costream.index import Index
from costream.index.database import FILE_NAME
from costream.index.thumbnails import thumbnail_folder, thumbnail_path

Program = Any  # of tests/conftest.py, which cannot be imported


@pytest.fixture
def costream(costream_program: Program) -> Program:
    return costream_program


@pytest.fixture
def indexed(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream_program: Program
) -> Path:
    """A folder with three pictures in `pictures` and an index of them."""
    costream_program.here("index", "pictures", "--model", tiny_model_dir, cwd=tmp_path)
    return tmp_path


def test_a_sound_index_is_said_to_be_and_a_damaged_one_is_not(
    indexed: Path, costream: Program
) -> None:
    assert "all is well with 3 items" in costream.here("index", "check", cwd=indexed).stdout
    got = costream.here("index", "check", "--json", cwd=indexed).json
    assert got == {"index": str(indexed / ".costream"), "items": 3, "problems": []}
    file = indexed / ".costream" / FILE_NAME
    with Index.open(indexed / ".costream") as index:
        vector = index.vectors(index.ids()[:1]).astype("<f2").tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(vector)] ^= 1
    file.write_bytes(content)
    told = costream.here("index", "check", cwd=indexed, code=1).stdout
    assert "the vector of item number 1 is not what was written" in told
    assert "costream index repair --index .costream" in told
    assert len(costream.here("index", "check", "--json", cwd=indexed, code=1).json["problems"]) == 1


def test_what_cannot_be_checked_is_refused(indexed: Path, costream: Program) -> None:
    done = costream.here("index", "check", "--index", "absent", cwd=indexed, code=2)
    assert "absent (no index.sqlite there)" in done.stderr
    (indexed / ".costream" / FILE_NAME).write_bytes(b"")
    done = costream.here("index", "check", cwd=indexed, code=2)
    assert "is damaged: the file is empty" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("index", "backup", "new", "--index", "absent"),
        ("index", "restore", "absent", "--index", "new"),
        ("index", "copy", "absent", "new"),
    ],
)
def test_of_nothing_no_copy_is_begun(
    words: tuple[str, ...], tmp_path: Path, costream: Program
) -> None:
    assert "no index in" in costream.here(*words, cwd=tmp_path, code=2).stderr
    assert not list(tmp_path.iterdir())


def test_a_note_of_the_model_that_cannot_be_kept_is_told_with_a_remedy(
    indexed: Path, tiny_model_dir: Path, costream: Program
) -> None:
    note = indexed / ".costream" / "model.json"
    note.unlink()
    note.mkdir()
    for words in (("index", "pictures", "--model", tiny_model_dir), ("search", "red")):
        told = costream.here(*words, cwd=indexed, code=2).stderr
        assert "model.json" in told.splitlines()[0]
        assert "check" in told.splitlines()[1]
    assert not list(indexed.glob(".costream/*.tmp"))


def test_a_backup_is_an_index_and_takes_the_place_of_another(
    indexed: Path, costream: Program
) -> None:
    done = costream.here("index", "backup", "safe", cwd=indexed)
    assert done.stdout == "3 items in safe, checked\n"
    # With the note of the model, which is a folder, beside it.
    found = costream.here("search", "red", "--index", "safe", "--json", cwd=indexed).json
    assert len(found["results"]) == 3
    (indexed / "pictures" / "red.png").unlink()
    costream.here("index", "pictures", "--prune", cwd=indexed)
    refused = costream.here("index", "restore", "safe", cwd=indexed, code=2)
    assert "--replace gives that one up" in refused.stderr
    done = costream.here("index", "restore", "safe", "--replace", cwd=indexed)
    assert done.stdout == "3 items in .costream, as in safe\n"
    fresh = costream.here("index", "restore", "safe", "--index", "new", "--json", cwd=indexed).json
    assert fresh == {"index": str(indexed / "new"), "items": 3}
    refused = costream.here("index", "backup", "safe", cwd=indexed, code=2)
    assert "name a new folder for each backup" in refused.stderr


def test_a_copy_is_compared_and_copying_again_writes_nothing(
    indexed: Path, costream: Program
) -> None:
    done = costream.here("index", "copy", ".costream", "twin", cwd=indexed)
    assert "3 items copied" in done.stdout
    again = costream.here("index", "copy", ".costream", "twin", "--json", cwd=indexed).json
    assert (again["copied"], again["kept"], again["removed"]) == (0, 3, 0)
    assert len(costream.here("search", "red", "--index", "twin", cwd=indexed).stdout) > 50
    refused = costream.here("index", "copy", "twin", "./twin", cwd=indexed, code=2)
    assert "expected two places" in refused.stderr
    refused = costream.here("index", "copy", "absent", "other", cwd=indexed, code=2)
    assert "absent (no index.sqlite there)" in refused.stderr
    assert not (indexed / "other").exists()


def test_a_folder_that_is_called_like_a_verb_is_indexed_by_its_path(
    indexed: Path, tiny_model_dir: Path, costream: Program
) -> None:
    shutil.copytree(indexed / "pictures", indexed / "copy")
    words = ("index", "./copy", "--index", "other", "--model", tiny_model_dir, "--json")
    assert costream.here(*words, cwd=indexed).json["added"] == 3
    refused = costream.here("index", "copy", cwd=indexed, code=2)
    assert "see costream index copy --help" in refused.stderr
    assert "./NAME" in costream.here("index", "--help", cwd=indexed).stdout.replace("\n", " ")


# --- forgetting ---


def make_thumbnails(directory: Path) -> dict[str, Path]:
    """A file where the service would put it, for each item; by name."""
    with Index.open(directory) as index:
        items = index.items()
    made = {}
    for item in items:
        path = thumbnail_path(thumbnail_folder(directory), item.content_hash, 320)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff small \xff\xd9")
        made[Path(item.path or "").name] = path
    return made


def test_a_forgotten_picture_is_in_no_file_and_its_thumbnail_is_gone(
    indexed: Path, costream: Program
) -> None:
    thumbnails = make_thumbnails(indexed / ".costream")
    done = costream.here("forget", "pictures/red.png", cwd=indexed)
    assert done.stdout.startswith("1 item forgotten; ")
    assert done.stdout.endswith("none is left\n")
    assert {name: path.exists() for name, path in thumbnails.items()} == {
        "red.png": False,
        "green.png": True,
        "blue.png": True,
    }
    files = [file for file in (indexed / ".costream").rglob("*") if file.is_file()]
    assert [file for file in files if b"red.png" in file.read_bytes()] == []
    assert (indexed / "pictures" / "red.png").exists()


def test_folders_ids_and_unknown_names(indexed: Path, costream: Program) -> None:
    make_thumbnails(indexed / ".costream")
    item_id = str(indexed / "pictures" / "green.png")
    got = costream.here("forget", item_id, "nobody.png", "--json", cwd=indexed, code=1).json
    assert (got["forgotten"], got["unknown"], got["found"]) == (1, [{"path": "nobody.png"}], [])
    done = costream.here("forget", "pictures", cwd=indexed)
    assert "2 items forgotten" in done.stdout
    assert costream.here("index", "check", "--json", cwd=indexed).json["items"] == 0
    assert list(thumbnail_folder(indexed / ".costream").glob("*/*")) == []
    assert "Missing argument" in costream.here("forget", cwd=indexed, code=2).stderr


def test_the_copy_of_a_forgotten_picture_keeps_what_it_shares_with_it(
    indexed: Path, costream: Program
) -> None:
    shutil.copy(indexed / "pictures" / "red.png", indexed / "pictures" / "twin.png")
    costream.here("index", "pictures", cwd=indexed)
    thumbnails = make_thumbnails(indexed / ".costream")
    done = costream.here("forget", "pictures/red.png", cwd=indexed)
    assert "none is left" in done.stdout
    assert thumbnails["twin.png"].exists()
    with Index.open(indexed / ".costream") as index:
        assert str(indexed / "pictures" / "twin.png") in index.ids()


def test_what_is_left_of_a_forgotten_picture_is_named(indexed: Path, costream: Program) -> None:
    aside = indexed / ".costream" / "damaged-20260101-000000"
    aside.mkdir()
    shutil.copy(indexed / ".costream" / FILE_NAME, aside)
    done = costream.here("forget", "pictures/red.png", cwd=indexed, code=1)
    assert "the path in .costream/damaged-20260101-000000/index.sqlite" in done.stdout
    assert "the vector in .costream/damaged-20260101-000000/index.sqlite" in done.stdout
    assert "delete the files that are named" in done.stderr
