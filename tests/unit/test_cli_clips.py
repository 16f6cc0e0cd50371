"""Clips on the command line: what is indexed, found at its moment, shown, and left out.

Laws: a result names the moment and a page shows it; a filter by modality holds; what is not indexed
is said with the reason; the options of sampling reach the decoder.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_maker import cuts, sound_bytes, still, tone, write_clip
from costream.cli import index as verb
from costream.index import Index
from costream.index import left_out as left_out_module

Program = Any  # of tests/conftest.py, which cannot be imported

SHADES = ("red", "green", "blue")


@pytest.fixture
def costream(costream_program: Program) -> Program:
    return costream_program


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder `media` with a video of three shots, one of one shot, a picture and a sound."""
    folder = tmp_path / "media"
    folder.mkdir()
    shots = [Image.new("RGB", (96, 64), shade) for shade in SHADES]
    write_clip(folder / "shades.mp4", [frame for shot in shots for frame in still(shot, 1.5)])
    write_clip(folder / "bison.mkv", cuts(["bison"], 1.0))
    Image.new("RGB", (96, 64), "white").save(folder / "white.png")
    (folder / "tone.wav").write_bytes(sound_bytes(tone(1.0), "wav"))
    return tmp_path


@pytest.fixture
def indexed(media: Path, tiny_model_dir: Path, costream: Program) -> Path:
    costream.here("index", "media", "--model", tiny_model_dir, cwd=media)
    return media


def test_clips_are_counted_and_what_is_left_out_is_said(
    media: Path, tiny_model_dir: Path, costream: Program
) -> None:
    (media / "media" / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    done = costream("index", "media", "--model", tiny_model_dir, cwd=media, code=1)
    assert done.stdout == "3 added, 1 failed; 1 picture and 2 videos in .costream\n"
    assert "1 sound left out: the model has no tower for sounds" in done.stderr
    assert "media/broken.mp4: " in done.stderr
    report = costream.here("index", "media", "--json", cwd=media, code=1).json
    assert (report["pictures"], report["videos"], report["sounds"]) == (1, 2, 0)
    (left,) = report["left_out"]
    assert (left["what"], left["count"]) == ("sounds", 1)


def test_a_folder_of_videos_only_is_a_folder_to_index(
    media: Path, tiny_model_dir: Path, costream: Program
) -> None:
    (media / "media" / "white.png").unlink()
    (media / "media" / "tone.wav").unlink()
    done = costream.here("index", "media", "--model", tiny_model_dir, cwd=media)
    assert done.stdout == "2 added; 2 videos in .costream\n"


def test_without_the_decoder_videos_are_left_out_with_the_command_that_helps(
    media: Path, tiny_model_dir: Path, costream: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_out_module, "find_spec", lambda name: None)
    done = costream.here("index", "media", "--model", tiny_model_dir, cwd=media)
    assert done.stdout == "1 added; 1 picture in .costream\n"
    assert "2 videos left out: no decoder for them is installed: pip install costream[video]" in (
        done.stderr
    )


def test_a_result_names_the_moment(indexed: Path, costream: Program) -> None:
    Image.new("RGB", (96, 64), "blue").save(indexed / "blue.png")
    words = ("search", "--image", "blue.png")
    found = costream.here(*words, "--json", cwd=indexed).json["results"]
    assert [result["modality"] for result in found].count("video") == 2
    (video,) = [result for result in found if result["path"].endswith("shades.mp4")]
    start, end = video["span"]
    assert 3.0 <= start < end <= 4.5  # the third shot
    table = costream.here(*words, cwd=indexed).stdout
    assert re.search(r"media/shades\.mp4 at 0:0[34](\.\d)?-0:0[45](\.\d)?", table)
    only = costream.here(*words, "--where", "modality=video", "--json", cwd=indexed).json
    assert {result["modality"] for result in only["results"]} == {"video"}
    assert only["total"] == 2


@pytest.mark.parametrize("shade", SHADES)
def test_a_page_shows_the_moment_and_plays_from_there(
    indexed: Path, shade: str, costream: Program
) -> None:
    Image.new("RGB", (96, 64), shade).save(indexed / "asked.png")
    where = f"path={(indexed / 'media' / 'shades').resolve()}"
    words = ("search", "--image", "asked.png", "--where", where, "--html", "page.html")
    costream.here(*words, cwd=indexed)
    page = (indexed / "page.html").read_text(encoding="utf-8")
    (card,) = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    encoded = re.search(r"data:image/jpeg;base64,([^\"]+)", card)
    assert encoded is not None
    with Image.open(io.BytesIO(base64.b64decode(encoded[1]))) as shown:
        mean = np.asarray(shown.convert("RGB"), dtype=np.float64).mean(axis=(0, 1))
    want = np.asarray(Image.new("RGB", (1, 1), shade), dtype=np.float64)[0, 0]
    assert np.abs(mean - want).max() < 12
    assert re.search(r'shades\.mp4#t=\d+\.\d\d"', card)
    assert re.search(r'class="when">0:0\d', card)


def test_sampling_is_an_option(media: Path, tiny_model_dir: Path, costream: Program) -> None:
    words = ("index", "media/shades.mp4", "--model", tiny_model_dir)
    for options, count in (((), 5), (("--every", "0.5"), 9), (("--max-moments", "2"), 2)):
        place = media / f"index{count}"
        costream.here(*words, *options, "--index", place, cwd=media)
        with Index.open(place) as index:
            (moments,) = index.moments([str((media / "media" / "shades.mp4").resolve())])
        assert len(moments) == count, options


@pytest.mark.parametrize(
    "options", [("--every", "0"), ("--every", "nan"), ("--every", "-1"), ("--max-moments", "0")]
)
def test_a_number_out_of_range_is_refused_before_anything_is_made(
    media: Path, options: tuple[str, str], costream: Program
) -> None:
    done = costream.here("index", "media", *options, cwd=media, code=2)
    assert "expected" in done.stderr
    assert not (media / ".costream").exists()


def test_kinds_are_counted_in_words() -> None:
    all_kinds = {"pictures": 2, "videos": 1, "sounds": 3}
    assert verb.in_all(all_kinds) == "2 pictures, 1 video and 3 sounds"
