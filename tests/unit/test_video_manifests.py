"""Laws: a manifest may name videos: trained on, and measured by the mean of their frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import costream as library
from clip_maker import cuts, write_clip
from costream.data import read_data
from costream.data.video import even_frames
from costream.errors import ConfigError, DataError
from costream.evaluate.vectors import evaluate_vectors

Program = Any  # of tests/conftest.py, which cannot be imported
SHOTS = {
    "fly": ("airplane", "airplane"),
    "eat": ("broccoli", "cat_face"),
    "cat": ("cat_face", "airplane"),
    "mix": ("broccoli", "airplane"),
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of two shots each, two captions each."""
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for name, shots in SHOTS.items():
        write_clip(folder / f"{name}.mp4", cuts(shots, 1.0))
        captions = [f"a {shots[0]}", f"a {shots[1]} after a {shots[0]}"]
        lines.append(json.dumps({"video": f"{name}.mp4", "captions": captions, "seconds": 2}))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "clips.jsonl"


def test_a_record_that_names_a_video_is_a_sample_of_it(manifest: Path) -> None:
    data = read_data(manifest)
    first = data.samples[0]
    assert (data.shows, first.id, first.meta) == ("video", "fly.mp4", {"seconds": 2})
    assert first.slots == {
        "video": manifest.parent / "fly.mp4",
        "text": ("a airplane", "a airplane after a airplane"),
    }


def test_every_byte_of_a_video_counts_for_the_hash(manifest: Path, tmp_path: Path) -> None:
    clips = [*manifest.parent.glob("*.mp4")]
    for clip in clips:
        (tmp_path / clip.name).write_bytes(clip.read_bytes())
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(manifest.read_bytes())
    assert read_data(copy).hash == read_data(manifest).hash
    with (tmp_path / "mix.mp4").open("ab") as stream:
        stream.write(b"\0")
    assert read_data(copy).hash != read_data(manifest).hash


def test_a_video_that_is_not_there_is_named(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_bytes(manifest.read_bytes())
    with pytest.raises(DataError, match=r"4 of 4 records .*fly\.mp4 is not there"):
        read_data(tmp_path / "clips.jsonl")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_frames_are_spread_evenly(manifest: Path, count: int) -> None:
    frames = even_frames(manifest.parent / "fly.mp4", count, smallest_side=32)
    assert len(frames) == count
    assert {min(frame.size) for frame in frames} == {32}  # type: ignore[union-attr]
    assert even_frames([b"a", b"b", b"c"], count)[0] == b"a"


def test_no_frame_is_refused(manifest: Path) -> None:
    with pytest.raises(ConfigError, match="got 0 frames"):
        even_frames(manifest.parent / "fly.mp4", 0)


def test_a_video_is_measured_by_the_mean_of_its_frames(
    manifest: Path, tiny_model_dir: Path, costream_program: Program
) -> None:
    words = ("evaluate", "--model", tiny_model_dir, "--data", manifest, "--frames", "3", "--json")
    report = costream_program.here(*words, cwd=manifest.parent).json
    assert (report["data"]["videos"], report["data"]["captions"]) == (4, 8)
    assert report["data"]["frames"] == 3
    model = library.load(tiny_model_dir)
    side = model.config.image_preprocess.decoded_px
    samples = read_data(manifest).samples
    frames = [even_frames(s.slots["video"], 3, smallest_side=side) for s in samples]
    texts = [text for sample in samples for text in sample.slots["text"]]
    want = evaluate_vectors(
        model.encode_videos(frames), model.encode_texts(texts), np.repeat(np.arange(4), 2)
    )
    for way, metrics in want.items():
        assert report[way] == pytest.approx(metrics), way


def test_what_is_trained_on_videos_scores_videos(
    manifest: Path, tmp_path: Path, costream_program: Program
) -> None:
    settings = ["start=random", "preset=tiny", "steps=2", "batch_size=4", "frames=2"]
    words = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "run"
    costream_program.here("train", "x_pool", "--data", manifest, "--out", out, *words, cwd=tmp_path)
    words = ["evaluate", "--model", str(out / "model"), "--data", str(manifest), "--json"]
    report = costream_program.here(*words, cwd=tmp_path).json
    assert report["model"]["methods"] == ["x_pool"]
    assert report["data"]["videos"] == 4


def test_a_method_that_reads_pictures_says_so(
    manifest: Path, tmp_path: Path, costream_program: Program
) -> None:
    words = ("train", "cots", "--data", manifest, "--out", tmp_path / "run")
    ran = costream_program.here(
        *words, "--set", "start=random", "--set", "preset=tiny", cwd=tmp_path, code=2
    )
    assert "cat.mp4 has no picture, expected one" in ran.stderr
