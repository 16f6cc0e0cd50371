"""`costream caption`: a line a picture, what cannot be read is listed, and remedies are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from costream.train import train
from tiny_world import write_scenes

SMALL = {"language_model": "tiny", "queries": "2", "feed_forward": "16", "beams": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a model that writes captions of some kind."""
    folder = tmp_path_factory.mktemp("captions")
    manifest = write_scenes(folder / "pictures", 4)
    loop = {"start": "random", "preset": "tiny", "steps": "2", "batch_size": "4"}
    train("maccap", manifest, folder / "run", loop | SMALL)
    return folder


def caption(world: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "costream", "caption", *words],
        cwd=world,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def names(world: Path) -> list[str]:
    return [f"pictures/{path.name}" for path in sorted((world / "pictures").glob("*.png"))]


def test_a_line_a_picture(world: Path) -> None:
    shown = caption(world, *names(world), "--model", "run/model").stdout.splitlines()
    assert [line.partition(":")[0] for line in shown] == names(world)


def test_json_has_all_samples_and_what_was_not_read(world: Path) -> None:
    (world / "broken.png").write_bytes(b"no picture")
    words = (names(world)[0], "broken.png", "--model", "run/model", "--samples", "3", "--json")
    found = json.loads(caption(world, *words, code=1).stdout)
    (picture,) = found["pictures"]
    assert picture["path"].endswith(names(world)[0])
    scores = [each["score"] for each in picture["captions"]]
    assert 1 <= len(scores) <= 3
    assert scores == sorted(scores, reverse=True)
    (failure,) = found["failures"]
    assert failure["path"] == "broken.png"


def test_what_cannot_be_captioned_is_refused_with_a_remedy(world: Path) -> None:
    done = caption(world, names(world)[0], "--model", "cots-mini", code=2)
    assert "writes no captions" in done.stderr
    assert "costream train" in done.stderr
    (world / "notes.png").write_text("no picture")
    done = caption(world, "notes.png", "absent.png", "--model", "run/model", code=2)
    assert "none of 2 pictures" in done.stderr
