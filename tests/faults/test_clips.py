"""Laws: a broken or hostile clip fails soon and says why; it makes nobody read another file."""

from __future__ import annotations

import io
import os
import struct
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_maker import clip_bytes, cuts, gallery, sound_bytes, still
from costream.data.audio import SoundLimits, read_sound, sound_windows
from costream.data.clip import ClipLimits
from costream.data.video import Sampling, frame_at, sample_frames
from costream.errors import ConfigError, DataError

NAMES = ("airplane", "cat_face", "broccoli")
LEAP = Sampling(max_walk_pixels=0)


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    pictures = cuts(NAMES, 2.0)
    return {
        form: clip_bytes(pictures, form, prepare=_short_gops, options=options)
        for form, options in (("mp4", {"movflags": "faststart"}), ("mkv", {}), ("avi", {}))
    }


def _short_gops(stream: object) -> None:
    stream.codec_context.gop_size = 10  # type: ignore[attr-defined]


def failure(source: bytes | Path, sampling: Sampling = Sampling()) -> str:  # noqa: B008
    with pytest.raises(DataError) as caught:
        list(sample_frames(source, sampling=sampling))
    return str(caught.value)


@pytest.mark.parametrize("sampling", [Sampling(), LEAP])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("form", ["mp4", "mkv", "avi"])
def test_a_clip_that_is_cut_off_is_refused(
    clips: dict[str, bytes], form: str, share: float, sampling: Sampling
) -> None:
    clip = clips[form][: int(len(clips[form]) * share)]
    assert "cut off" in failure(clip, sampling)


def test_a_clip_without_its_index_box_is_refused() -> None:
    clip = clip_bytes(still(gallery("crab"), 2.0))  # the index is at the end of such a file
    assert "damaged or cut off" in failure(clip[: clip.index(b"moov") - 4])


def test_a_clip_without_its_index_is_read_through(clips: dict[str, bytes]) -> None:
    clip = clips["avi"]
    broken = clip.replace(b"idx1", b"JUNK")
    assert broken != clip
    for sampling in (Sampling(), LEAP):
        frames = list(sample_frames(broken, sampling=sampling))
        assert len(frames) >= 5
        assert frames[-1].t_end == pytest.approx(6.0, abs=0.2)


@pytest.mark.parametrize("sampling", [Sampling(), LEAP])
def test_a_clip_of_no_picture_is_refused(sampling: Sampling) -> None:
    clip = clip_bytes(cuts(NAMES, 0.5))
    at = clip.index(b"mdat") + 4
    size = int.from_bytes(clip[at - 8 : at - 4], "big") - 8
    blank = clip[:at] + bytes(size) + clip[at + size :]
    assert "has no picture that can be decoded" in failure(blank, sampling)
    header = clip_bytes(still(gallery("crab"), 0.1), "mkv", options={"live": "1"})
    assert "End of file" in failure(header[: header.index(b"\x1fC\xb6u")], sampling)


def test_a_sound_is_no_clip() -> None:
    assert "holds sound only" in failure(sound_bytes(np.zeros(16_000), "m4a"))
    assert "holds sound only" in failure(sound_bytes(np.zeros(16_000), "wav"))


def test_the_cover_of_a_song_is_no_clip() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        tone = container.add_stream("aac", rate=16_000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_image(gallery("crab", (64, 64)))))
        container.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16_000
        container.mux(tone.encode(silence))
        container.mux(tone.encode())
    assert "holds sound only" in failure(stream.getvalue())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 5000,
        b"\x00\x00\x00\x18ftypisom" + b"\x00" * 5000,
        b"\x1aE\xdf\xa3" + b"\xff" * 5000,
        b"RIFF\xff\xff\xff\xffAVI " + b"LIST" * 1000,
        b"OggS" + b"\x00" * 5000,
    ],
)
def test_what_is_no_clip_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert failure(path).startswith(f"{path}: ")
    with pytest.raises(DataError):
        read_sound(path)
    with pytest.raises(DataError):
        frame_at(path, 0.0)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6.0,\n{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {secret}\n",
        "<?xml version='1.0'?><MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_a_file_that_names_other_files_opens_none(playlist: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip_bytes(still(gallery("crab"), 1.0)))
    path = tmp_path / "clip.mp4"
    path.write_text(playlist.format(secret=secret))
    assert "is text beginning" in failure(path)


def test_a_clip_whose_track_is_in_another_file_opens_none(tmp_path: Path) -> None:
    # A QuickTime data reference of kind "alis"/"url " names the file that holds the samples.
    clip = clip_bytes(still(gallery("crab"), 2.0))
    at = clip.index(b"url \x00\x00\x00\x01")
    outside = bytearray(clip)
    outside[at + 4 : at + 8] = b"\x00\x00\x00\x00"  # no longer "in this very file"
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(outside))
    opened: list[str] = []
    hook = _record_opens(opened)
    try:
        list(sample_frames(path))  # the reference is ignored, the samples of this file are read
    finally:
        hook.clear()
    assert [name for name in opened if name != str(path) and "costream" not in name] == []


def _record_opens(opened: list[str]) -> list[bool]:
    """Note files that Python opens below temporary folders until the result is cleared."""
    active = [True]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if active and event == "open" and str(arguments[0]).endswith(".mp4"):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    return active


def test_folders_pipes_and_absent_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is a folder, pipe, socket or device" in failure(tmp_path / "pipe.mp4")
    assert "is a folder" in failure(tmp_path)
    assert "is not there" in failure(tmp_path / "absent.mp4")
    (tmp_path / "shut.mp4").write_bytes(b"x")
    (tmp_path / "shut.mp4").chmod(0)
    if not os.access(tmp_path / "shut.mp4", os.R_OK):  # root may read it
        assert "permission denied" in failure(tmp_path / "shut.mp4")


def test_names_that_are_no_text_can_be_read(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 http:x|y.mp4")
    Path(name).write_bytes(clip_bytes(still(gallery("crab"), 0.5)))
    assert len(list(sample_frames(name))) == 1


def test_pictures_and_times_have_limits(clips: dict[str, bytes]) -> None:
    small = Sampling(limits=ClipLimits(max_pixels=1000))
    assert "has pictures of 96 x 64 pixels, expected at most 1,000" in failure(clips["mp4"], small)
    short = Sampling(limits=ClipLimits(max_seconds=1e-9))
    assert "took more than 1e-09 s" in failure(clips["mp4"], short)
    with pytest.raises(DataError, match="is longer than 1 s"):
        read_sound(sound_bytes(np.zeros(48_000), "wav"), limits=SoundLimits(max_duration_s=1))
    with pytest.raises(DataError, match="took more than"):
        read_sound(sound_bytes(np.zeros(48_000), "wav"), limits=SoundLimits(max_seconds=1e-9))


def test_a_picture_that_is_larger_than_its_header_says_is_refused() -> None:
    clip = clip_bytes(still(gallery("crab", (640, 480)), 0.5), "avi")
    lying = bytearray(clip)
    for at in (clip.index(b"strf") + 12,):
        lying[at : at + 8] = struct.pack("<ii", 16, 16)
    sampling = Sampling(limits=ClipLimits(max_pixels=10_000))
    assert "clip of" in failure(bytes(lying), sampling)


def test_a_length_that_is_a_lie_costs_no_time(clips: dict[str, bytes]) -> None:
    clip = clips["mkv"]
    lying = bytearray(clip)
    at = clip.index(b"\x44\x89\x88") + 3  # the element Duration, 8 bytes long, in milliseconds
    assert struct.unpack(">d", clip[at : at + 8]) == (6000.0,)
    lying[at : at + 8] = struct.pack(">d", 1e15)
    started = time.monotonic()
    for sampling in (Sampling(), LEAP):
        assert "cut off" in failure(bytes(lying), sampling)
    assert time.monotonic() - started < 30


def test_a_first_picture_that_comes_late_is_in_its_span(clips: dict[str, bytes]) -> None:
    """A changed unit of time: the first picture is shown from 2.4 s on, the second from 2.5 s."""
    clip = bytearray(clips["mkv"])
    clip[433] = 22
    frames = list(sample_frames(bytes(clip)))
    assert frames[0].t > 1
    assert all(frame.t_start <= frame.t < frame.t_end for frame in frames)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_anywhere_gives_frames_or_an_error(
    clips: dict[str, bytes], data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(sorted(clips)))
    clip = bytearray(clips[form])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(clip) - 1))
        clip[at] = data.draw(st.integers(0, 255))
    sampling = data.draw(st.sampled_from([Sampling(), LEAP]))
    try:
        frames = list(islice(sample_frames(bytes(clip), sampling=sampling), 1000))
    except DataError:
        return
    assert frames[0].t_start == 0
    assert all(frame.t_start <= frame.t < frame.t_end for frame in frames)


@pytest.mark.parametrize(
    ("read", "extra"),
    [
        (lambda: list(sample_frames(b"\x1aE\xdf\xa3" + b"\x00" * 99)), "video"),
        (lambda: read_sound(b"fLaC" + b"\x00" * 99), "audio"),
    ],
)
def test_without_pyav_the_error_names_the_extra(
    read: Callable[[], object], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=rf"pip install costream\[{extra}\]"):
        read()


def test_without_soxr_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = sound_bytes(np.zeros(16_000), "wav")
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert len(read_sound(sound, rate_hz=16_000)) == 16_000
    with pytest.raises(DataError, match=r"pip install costream\[audio\]"):
        read_sound(sound, rate_hz=48_000)


# --- sounds ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sound_with_what_is_no_number_is_refused(value: float) -> None:
    samples = np.zeros(16_000, dtype=np.float32)
    samples[9_000] = value
    with pytest.raises(DataError, match="holds samples that are no numbers"):
        read_sound(sound_bytes(samples, "wav", codec="pcm_f32le"))


@pytest.mark.parametrize("form", ["wav", "flac", "mp3"])
def test_a_sound_of_no_length_is_refused(form: str) -> None:
    with pytest.raises(DataError, match=r"has no sound|is empty"):
        read_sound(sound_bytes(np.zeros(0), form))


def test_a_header_without_sound_is_refused() -> None:
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    sound = b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + form + b"data" + struct.pack("<I", 0)
    with pytest.raises(DataError, match=r"has no sound \(0 s\)"):
        read_sound(sound)


@pytest.mark.parametrize("rate", [1, 999, 800_000, 2**31 - 1])
def test_a_rate_out_of_reason_is_refused(rate: int) -> None:
    sound = bytearray(sound_bytes(np.zeros(16_000), "wav"))
    at = sound.index(b"fmt ") + 12
    sound[at : at + 8] = struct.pack("<II", rate, min(rate * 2, 2**32 - 1))
    with pytest.raises(DataError, match=r"samples a second|damaged"):
        read_sound(bytes(sound))


def test_a_clip_without_sound_has_none(clips: dict[str, bytes]) -> None:
    with pytest.raises(DataError, match="has no sound track"):
        read_sound(clips["mp4"])


def test_options_of_sounds_are_checked() -> None:
    sound = sound_bytes(np.zeros(1600), "wav")
    for rate in (0, 999, 10**9):
        with pytest.raises(ConfigError, match="rate_hz"):
            read_sound(sound, rate_hz=rate)
    for window_s in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="window_s"):
            next(sound_windows(sound, window_s=window_s))
    with pytest.raises(ConfigError, match="max_seconds"):
        read_sound(sound, limits=SoundLimits(max_seconds=-1))
