"""An index moves to another model: in one step, resumably, and back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from costream.index import Index

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


def scores(costream: Program, folder: Path) -> dict[str, float]:
    found = costream.here("search", "red", "--json", cwd=folder).json["results"]
    return {Path(each["path"]).name: each["score"] for each in found}


def test_there_and_back_and_the_old_vectors_dropped(
    indexed: Path, other_model_dir: Path, tiny_model_dir: Path, costream: Program
) -> None:
    before = scores(costream, indexed)
    moved = costream.here("migrate", "--model", other_model_dir, "--json", cwd=indexed).json
    assert (moved["embedded"], moved["switched"], moved["failures"]) == (3, True, [])
    after = scores(costream, indexed)
    assert set(after) == set(before)
    assert after != before
    # What comes later is embedded by the new model only, and by the old one on the way back.
    Image.new("RGB", (40, 40), "white").save(indexed / "pictures" / "white.png")
    assert "1 added" in costream.here("index", "pictures", cwd=indexed).stdout
    back = costream.here("migrate", "--rollback", "--json", cwd=indexed).json
    assert (back["embedded"], back["switched"]) == (1, True)
    assert back["model"] == str(tiny_model_dir)
    assert {n: s for n, s in scores(costream, indexed).items() if n in before} == before
    again = costream.here("migrate", "--rollback", "--json", cwd=indexed).json
    assert (again["embedded"], again["model"]) == (0, str(other_model_dir))
    assert {n: s for n, s in scores(costream, indexed).items() if n in after} == after
    assert "dropped the vectors of tiny" in costream.here("migrate", "--drop", cwd=indexed).stdout
    refused = costream.here("migrate", "--rollback", cwd=indexed, code=2)
    assert "holds no vectors of an earlier model" in refused.stderr
    with Index.open(indexed / ".costream") as index:
        assert len(index.spaces()) == 1
        assert index.check() == ()


def test_items_that_cannot_be_embedded_keep_the_old_model_in_use(
    indexed: Path, other_model_dir: Path, costream: Program
) -> None:
    before = scores(costream, indexed)
    (indexed / "pictures" / "red.png").unlink()
    Image.new("RGB", (40, 40), "white").save(indexed / "pictures" / "blue.png")
    words = ("migrate", "--model", other_model_dir)
    done = costream.here(*words, cwd=indexed, code=1)
    assert "1 embedded; .costream does not answer with" in done.stdout
    assert "red.png: vanished after it was found" in done.stderr
    assert "blue.png: has changed since it was indexed" in done.stderr
    assert scores(costream, indexed) == before
    again = costream.here(*words, "--allow-missing", "--json", cwd=indexed, code=1).json
    assert (again["embedded"], again["switched"]) == (0, True)
    with Index.open(indexed / ".costream") as index:
        assert len(index) == 3
        assert (
            len(index.search(index.sample_vectors(1, 0, index.space), index.space, 9).ids[0]) == 1
        )
        assert index.search_text("red", 9).ids[0] == (str(indexed / "pictures" / "red.png"),)


def test_what_cannot_be_done_is_refused(
    indexed: Path, other_model_dir: Path, tiny_model_dir: Path, costream: Program
) -> None:
    for words in ((), ("--rollback", "--drop"), ("--model", other_model_dir, "--drop")):
        refused = costream.here("migrate", *words, cwd=indexed, code=2)
        assert "--model, --rollback and --drop, expected one" in refused.stderr
    refused = costream.here("migrate", "--model", tiny_model_dir, cwd=indexed, code=2)
    assert "already" in refused.stderr
    assert "nothing to drop" in costream.here("migrate", "--drop", cwd=indexed).stdout


def test_a_killed_move_goes_on_and_the_old_model_answers_meanwhile(
    indexed: Path, other_model_dir: Path, costream: Program
) -> None:
    for number in range(500):
        colour = (number % 256, number // 256, 7)
        Image.new("RGB", (32, 32), colour).save(indexed / "pictures" / f"{number:03d}.png")
    costream.here("index", "pictures", cwd=indexed)
    before = scores(costream, indexed)
    words = ("migrate", "--model", str(other_model_dir), "--json")
    command = [sys.executable, "-m", "costream", *words]
    process = subprocess.Popen(command, cwd=indexed, stdout=subprocess.PIPE)
    filled = 0
    try:
        with Index.open(indexed / ".costream") as index:
            while not filled and process.poll() is None:
                filled = sum(e.num_items for e in index.spaces() if e.role == "building")
                time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        out, _ = process.communicate(timeout=60)
    assert scores(costream, indexed) == before
    with Index.open(indexed / ".costream") as index:
        filled = index.spaces()[1].num_items
        assert index.check() == ()
    assert 0 < filled < 503, out
    moved = costream.here(*words, cwd=indexed).json
    assert (moved["embedded"], moved["switched"]) == (503 - filled, True)
    assert json.loads((indexed / ".costream" / "model.json").read_text())["previous"]
