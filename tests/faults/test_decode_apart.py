"""Law: whatever a file does to its decoder, it costs that file and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_decoder import MARK
from index_worker import ColourHistogram
from numpy.typing import NDArray
from PIL import Image

from clip_maker import clip_bytes, cuts
from costream.cli.demo import GALLERY
from costream.data import Sampling, decode_apart, open_image, sample_frames, sound_windows
from costream.data.decode_apart import Decoders
from costream.errors import CostreamError, DataError
from costream.index import Index, update_index

BAD_DECODER = Path(__file__).with_name("bad_decoder.py")


@pytest.fixture
def bad_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are decoded where one of the decoders misbehaves."""
    monkeypatch.setattr(decode_apart, "_COMMAND", (sys.executable, "-P", str(BAD_DECODER)))
    monkeypatch.setattr(decode_apart, "_LIMIT_S", 1.0)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", create=True) as opened:
        yield opened


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:02d}.png")
    return folder


def children() -> set[int]:
    """Processes that this one has started and that are there."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="no /proc to see processes in"
)


# --- one bad file among good ones ---


@needs_proc
@pytest.mark.usefixtures("bad_decoder")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("abort", "crashed its decoder (SIGABRT), expected a picture"),
        ("segfault", "crashed its decoder (SIGSEGV), expected a picture"),
        ("exit", "ended its decoder (exit code 3), expected a picture"),
        ("sleep", "kept its decoder busy for more than 1 s, expected a picture"),
        ("spin", "kept its decoder busy for more than 1 s, expected a picture"),
        ("hoard", "needs more memory to decode than there is, expected a picture"),
        ("chatter", "is damaged or cut off (the end), expected a picture"),
        ("nonsense", "made its decoder answer nonsense, expected a picture"),
    ],
)
def test_only_the_bad_file_fails(
    what: str, words: str, index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = draw(tmp_path / "pictures", 12)
    bad = folder / "05b.ppm"
    bad.write_bytes(MARK + what.encode())
    before = children()
    report = update_index(index, ColourHistogram(), folder, batch_size=4)
    assert report.added == 12
    assert [failure.path for failure in report.failures] == [str(bad)]
    assert words in report.failures[0].reason
    assert children() == before
    # The next run tries it again, and only it.
    again = update_index(index, ColourHistogram(), folder)
    assert (again.added, len(again.failures)) == (0, 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("bad_decoder")
def test_many_bad_files_cost_only_themselves(index: Index, tmp_path: Path) -> None:
    folder = draw(tmp_path / "pictures", 6)
    for number in range(6):
        (folder / f"{number:02d}b.ppm").write_bytes(MARK + b"abort")
    report = update_index(index, ColourHistogram(), folder)
    assert (report.added, len(report.failures)) == (6, 6)


@needs_proc
@pytest.mark.usefixtures("bad_decoder")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("segfault", "crashed its decoder (SIGSEGV), expected a video"),
        ("spin", "kept its decoder busy for more than 1 s, expected a video"),
        ("hoard", "is damaged or cut off (MemoryError), expected a video"),
        ("nonsense", "made its decoder answer nonsense, expected a video"),
    ],
)
def test_only_the_bad_clip_fails(what: str, words: str, index: Index, tmp_path: Path) -> None:
    folder = draw(tmp_path / "pictures", 6)
    clip = clip_bytes(cuts(("crab", "bison"), 1.0))
    for number in range(3):
        (folder / f"{number:02d}.mp4").write_bytes(clip + bytes(number))
    (folder / "01.mp4").write_bytes(clip + MARK + what.encode())
    before = children()
    report = update_index(index, ColourHistogram(), folder, batch_size=4)
    assert report.added == 8
    assert [failure.path for failure in report.failures] == [str(folder / "01.mp4")]
    assert words in report.failures[0].reason
    assert children() == before


# --- the same answer as without ---


def test_a_clip_is_the_same_decoded_apart(tmp_path: Path) -> None:
    clip = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    clip.write_bytes(clip_bytes(cuts(("crab", "bison", "dolphin"), 1.0), sound=True))
    with Decoders() as decoders:
        for sampling in (Sampling(), Sampling(max_walk_pixels=0), Sampling(every_s=0.3)):
            for side in (None, 32):
                apart = list(decoders.frames(str(clip), sampling=sampling, smallest_side=side))
                here = list(sample_frames(clip, sampling=sampling, smallest_side=side))
                assert [(f.t, f.t_start, f.t_end) for f in apart] == [
                    (f.t, f.t_start, f.t_end) for f in here
                ]
                assert [f.image.tobytes() for f in apart] == [f.image.tobytes() for f in here]
        apart_windows = list(decoders.windows(str(clip), rate_hz=8_000, window_s=0.7))
        here_windows = list(sound_windows(clip, rate_hz=8_000, window_s=0.7))
        assert [(w.t_start, w.t_end) for w in apart_windows] == [
            (w.t_start, w.t_end) for w in here_windows
        ]
        assert all(
            (a.samples == b.samples).all() for a, b in zip(apart_windows, here_windows, strict=True)
        )
        assert len(decoders._all) == 1


def test_a_broken_clip_gets_the_same_words_apart(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    clip.write_bytes(clip_bytes(cuts(("crab", "bison"), 1.0))[:-700])
    with pytest.raises(DataError) as here:
        list(sample_frames(clip))
    with Decoders() as decoders:
        for _ in range(2):
            with pytest.raises(DataError) as apart:
                list(decoders.frames(str(clip)))
            assert (apart.value.message, apart.value.hint) == (here.value.message, here.value.hint)
        assert len(decoders._all) == 1


@needs_proc
def test_who_wants_no_more_frames_gets_none_of_another_clip(tmp_path: Path) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    first.write_bytes(clip_bytes(cuts(("crab", "bison", "dolphin"), 1.0)))
    second.write_bytes(clip_bytes(cuts(("airplane",), 1.0)))
    want = [frame.image.tobytes() for frame in sample_frames(second)]
    with Decoders() as decoders:
        frames = decoders.frames(str(first))
        next(frames)
        frames.close()
        assert [frame.image.tobytes() for frame in decoders.frames(str(second))] == want


def test_a_picture_is_the_same_decoded_apart() -> None:
    with Decoders() as decoders:
        for path in sorted(GALLERY.glob("*.jpg"))[:20]:
            for side in (None, 100):
                apart = decoders.decode(path.read_bytes(), str(path), smallest_side=side)
                here = open_image(path, smallest_side=side)
                assert apart.size == here.size
                assert apart.tobytes() == here.tobytes()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 no more"])
def test_a_broken_picture_gets_the_same_words_apart(content: bytes, tmp_path: Path) -> None:
    name = tmp_path / "caf\udce9.jpg"
    name.write_bytes(content)
    with pytest.raises(DataError) as here:
        open_image(name)
    with Decoders() as decoders, pytest.raises(DataError) as apart:
        decoders.decode(content, str(here.value).split(": ")[0])
    assert (apart.value.message, apart.value.hint) == (here.value.message, here.value.hint)


def test_threads_share_decoders() -> None:
    paths = sorted(GALLERY.glob("*.jpg"))[:40]
    with Decoders() as decoders, ThreadPoolExecutor(4) as threads:
        contents = [path.read_bytes() for path in paths]
        sizes = list(
            threads.map(lambda c: decoders.decode(c, "x", smallest_side=50).size, contents)
        )
        assert len(decoders._all) <= 4
    assert sizes == [open_image(path, smallest_side=50).size for path in paths]


# --- ends ---


class Interrupted(ColourHistogram):
    """A model that is interrupted at its first batch."""

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        raise KeyboardInterrupt


@needs_proc
@pytest.mark.usefixtures("bad_decoder")
def test_an_interrupt_does_not_wait_for_a_decoder(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_apart, "_LIMIT_S", 3600.0)
    folder = draw(tmp_path / "pictures", 8)
    (folder / "05b.ppm").write_bytes(MARK + b"sleep")
    before, threads = children(), threading.active_count()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        update_index(index, Interrupted(), folder, batch_size=2)
    assert time.monotonic() - start < 60
    assert (children(), threading.active_count()) == (before, threads)


ORPHAN = """
import os, sys, time
from costream.data.decode_apart import Decoders
decoders = Decoders()
decoders.decode(b"P6 1 1 255 abc", "a.ppm")
sys.stdout.write(f"{decoders._all[0]._popen.pid}\\n")
sys.stdout.flush()
time.sleep(3600)
"""


@needs_proc
def test_decoders_end_with_a_process_that_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    with parent:
        assert parent.stdout is not None
        decoder = int(parent.stdout.readline())
        assert Path(f"/proc/{decoder}").exists()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while is_running(decoder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(decoder)


def is_running(pid: int) -> bool:
    try:
        # Without a parent that asks, one that has ended may stay listed as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((sys.executable, "-c", "raise SystemExit(3)"), "exit code 3"),
        ((sys.executable, "-c", "print('hello')"), "exit code"),
        (("/no/such/python",), "No such file or directory"),
    ],
)
def test_decoders_that_cannot_start_stop_the_run(
    command: tuple[str, ...],
    reason: str,
    index: Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or every file would be listed as broken."""
    monkeypatch.setattr(decode_apart, "_COMMAND", command)
    with pytest.raises(CostreamError, match=rf"to decode pictures \({reason}") as caught:
        update_index(index, ColourHistogram(), draw(tmp_path / "pictures", 3))
    assert not isinstance(caught.value, DataError)


def test_closed_decoders_say_so() -> None:
    decoders = Decoders()
    decoders.close()
    with pytest.raises(CostreamError, match="are closed"):
        decoders.decode(b"", "x")


def test_a_decoder_that_ended_while_idle_costs_nothing() -> None:
    """Killed by the system to save memory, say, between two files."""
    content = next(GALLERY.glob("*.jpg")).read_bytes()
    with Decoders() as decoders:
        before = decoders.decode(content, "a.jpg")
        (idle,) = decoders._all
        os.kill(idle._popen.pid, signal.SIGKILL)
        idle._popen.wait()
        assert np.array_equal(decoders.decode(content, "b.jpg"), before)
        assert len(decoders._all) == 1
