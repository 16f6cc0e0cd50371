"""The program under faults: broken files, kills, full disks, damaged models, two at once.

Laws: nothing that was acknowledged is lost; what is broken is named with a reason; whatever cannot
be done ends with one message and exit code 2, never with a traceback.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Program = Any  # of tests/conftest.py, which cannot be imported


@pytest.fixture
def costream(costream_program: Program) -> Program:
    return costream_program


@pytest.fixture
def many_pictures(tmp_path: Path) -> Path:
    """200 pictures, no two alike."""
    folder = tmp_path / "many"
    folder.mkdir()
    random = np.random.default_rng(3)
    for number in range(200):
        pixels = random.integers(0, 255, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def png_bomb(side: int) -> bytes:
    """A valid PNG of side x side black pixels in a few hundred kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = zlib.compressobj(9)
    row = bytes(1 + side * 3)
    data = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


# --- files ---


def test_a_folder_of_everything_that_can_be_wrong(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    good = Image.open(three_pictures[0])
    good.save(folder / "good.jpg")
    whole = (folder / "good.jpg").read_bytes()
    Image.new("RGB", (1, 1), "red").save(folder / "one-pixel.png")
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.save(folder / "bad-exif.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00\x01")
    (folder / "two\nlines.jpg").write_bytes(whole)
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(whole + b"!")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    num_good = 6
    bad = {
        "empty.jpg": b"",
        "truncated.jpg": whole[: len(whole) // 2],
        "text.jpg": b"this is no picture",
        "zeros.png": bytes(1000),
        "bomb.png": png_bomb(20_000),
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")

    words = ("index", "zoo", "--model", tiny_model_dir, "--json")
    report = costream(*words, cwd=tmp_path, code=1).json
    failed = {Path(each["path"]).name: each["reason"] for each in report["failures"]}
    assert set(failed) == {*bad, "dangling.jpg"}
    assert all(failed.values())
    assert report["pictures"] == num_good
    found = costream("search", "red", "--json", cwd=tmp_path).json["results"]
    assert len(found) == num_good


def test_a_folder_without_permission_is_listed(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    locked = tmp_path / "pictures" / "locked"
    locked.mkdir()
    locked.chmod(0)
    try:
        words = ("index", "pictures", "--model", tiny_model_dir, "--json")
        report = costream(*words, cwd=tmp_path, code=1).json
    finally:
        locked.chmod(0o700)
    assert report["added"] == 3
    assert "locked" in json.dumps(report["failures"])


# --- stopped in the middle ---


def start_indexing(folder: Path, model: Path) -> subprocess.Popen[bytes]:
    """Start a run and return as soon as its first batch is durable."""
    words = [sys.executable, "-m", "costream", "index", folder.name, "--model", os.fspath(model)]
    program = subprocess.Popen(
        words, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while program.poll() is None and time.monotonic() < deadline:
        if acknowledged(folder.parent):
            break
        time.sleep(0.002)
    return program


def acknowledged(folder: Path) -> int:
    from costream.errors import CostreamError
    from costream.index import Index

    try:
        with Index.open(folder / ".costream") as index:
            return len(index)
    except CostreamError:
        return 0


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_loses_nothing_it_has_stored(
    many_pictures: Path, tiny_model_dir: Path, sign: signal.Signals, costream: Program
) -> None:
    program = start_indexing(many_pictures, tiny_model_dir)
    program.send_signal(sign)
    _, errors = program.communicate(timeout=300)
    stored = acknowledged(many_pictures.parent)
    assert stored > 0
    if sign == signal.SIGINT and program.returncode:
        assert program.returncode == 130
        assert b"Traceback" not in errors
        assert b"costream: stopped by the keyboard" in errors
    report = costream.here("index", "many", "--json", cwd=many_pictures.parent).json
    assert report["unchanged"] == stored
    assert report["embedded"] == 200 - stored
    assert report["pictures"] == 200


def test_two_runs_at_once_end_with_one_complete_index(
    many_pictures: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = [sys.executable, "-m", "costream", "index", "many", "--model", str(tiny_model_dir)]
    both = [
        subprocess.Popen(words, cwd=many_pictures.parent, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for program in both:
        _, errors = program.communicate(timeout=600)
        assert program.returncode == 0, errors.decode()
    report = costream.here("index", "many", "--json", cwd=many_pictures.parent).json
    assert (report["unchanged"], report["pictures"]) == (200, 200)


def test_a_search_while_indexing_is_answered(
    many_pictures: Path, tiny_model_dir: Path, costream: Program
) -> None:
    program = start_indexing(many_pictures, tiny_model_dir)
    found = costream("search", "red", "--json", cwd=many_pictures.parent).json["results"]
    program.communicate(timeout=600)
    assert len(found) == 10


# --- disks ---


def test_a_full_disk_is_refused_and_the_index_survives(
    many_pictures: Path, tiny_model_dir: Path, costream: Program
) -> None:
    folder = many_pictures.parent
    costream.here("index", "many/000.png", "--model", tiny_model_dir, cwd=folder)

    def limit_files() -> None:
        # No file may grow beyond this: to the program it is as if the disk were full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-m", "costream", "index", "many"],
        cwd=folder,
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("costream: ")
    report = costream.here("index", "many", "--json", cwd=folder).json
    assert report["pictures"] == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_refused(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "costream", "methods"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("costream: ")
    assert "Traceback" not in done.stderr


def test_an_index_that_cannot_be_made_is_refused(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    (tmp_path / "file").touch()
    words = ("index", "pictures", "--model", tiny_model_dir, "--index", "file/index", "--json")
    assert costream.here(*words, cwd=tmp_path, code=2).json["error"]["message"]


# --- models ---


@pytest.fixture
def copied_model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)


def _damages() -> Iterator[tuple[str, Any]]:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        yield name, _cut
        yield name, Path.unlink
        yield name, lambda path: path.write_bytes(b"")
    yield "model.safetensors", _flip


@pytest.mark.parametrize(("name", "damage"), list(_damages()))
def test_a_damaged_model_is_refused(
    tmp_path: Path,
    copied_model: Path,
    three_pictures: list[Path],
    name: str,
    damage: Any,
    costream: Program,
) -> None:
    costream.here("index", "pictures", "--model", copied_model, cwd=tmp_path)
    damage(copied_model / name)
    for words in (("index", "pictures"), ("search", "--image", "pictures/red.png")):
        error = costream.here(*words, "--json", cwd=tmp_path, code=2).json["error"]
        assert error["kind"] == "WeightsError"
        assert "copy" in error["message"]


def test_a_model_that_moved_away_is_named(
    tmp_path: Path, copied_model: Path, three_pictures: list[Path], costream: Program
) -> None:
    costream.here("index", "pictures", "--model", "copy", cwd=tmp_path)
    copied_model.rename(tmp_path / "moved")
    error = costream("search", "red", "--json", cwd=tmp_path, code=2).json["error"]
    assert str(copied_model) in error["message"]
    found = costream("search", "red", "--model", "moved", "--json", cwd=tmp_path).json
    assert len(found["results"]) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 5}', "\x00"])
def test_a_damaged_note_of_the_model_is_refused(
    tmp_path: Path,
    tiny_model_dir: Path,
    three_pictures: list[Path],
    content: str,
    costream: Program,
) -> None:
    costream.here("index", "pictures", "--model", tiny_model_dir, cwd=tmp_path)
    (tmp_path / ".costream" / "model.json").write_text(content)
    error = costream.here("search", "red", "--json", cwd=tmp_path, code=2).json["error"]
    assert "model.json" in error["message"]
    words = ("search", "red", "--model", tiny_model_dir, "--json")
    assert len(costream.here(*words, cwd=tmp_path).json["results"]) == 3


# --- data ---


def test_empty_and_endless_captions(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    captions = [["word " * 10_000, ""], ["red", "  "], ["🎈 赤い دائرة"]]
    lines = [
        {"image": f"pictures/{picture.name}", "captions": texts}
        for picture, texts in zip(three_pictures, captions, strict=True)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    words = ("evaluate", "--model", tiny_model_dir, "--data", "data.jsonl", "--json")
    report = costream.here(*words, cwd=tmp_path).json
    assert (report["data"]["images"], report["data"]["captions"]) == (3, 3)
