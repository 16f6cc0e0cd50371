"""Laws: every picture of a clip is upright and right for its time; spans partition the clip."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_maker
from clip_maker import SIZE, clip_bytes, cuts, gallery, pan, still, write_clip
from costream.data.video import Frame, Sampling, frame_at, sample_frames
from costream.errors import ConfigError

NAMES = ("airplane", "cat_face", "broccoli")
LEAP = Sampling(max_walk_pixels=0)


def closest(image: Image.Image, names: tuple[str, ...] = NAMES) -> str:
    """Which picture of the gallery a frame shows."""
    small = np.asarray(image.resize(SIZE), dtype=np.float64)
    errors = [np.abs(np.asarray(gallery(name), dtype=np.float64) - small).mean() for name in names]
    assert min(errors) < 25, errors
    return names[int(np.argmin(errors))]


def assert_partition(frames: list[Frame], duration_s: float, slack_s: float = 0.15) -> None:
    assert frames[0].t_start == 0
    assert all(before.t_end == after.t_start for before, after in pairwise(frames))
    assert all(frame.t_start <= frame.t < frame.t_end for frame in frames)
    assert frames[-1].t_end == pytest.approx(duration_s, abs=slack_s)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(suffix, "") for suffix in clip_maker.CODECS]
    + [("mp4", "libsvtav1"), ("mp4", "libx265"), ("mkv", "ffv1"), ("avi", "mjpeg")],
)
def test_every_kind_of_clip_shows_each_second_its_picture(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    rate = 25 if suffix in ("ts", "mpg") else 10
    write_clip(path, cuts(NAMES, 2.0, rate), rate=rate, codec=codec)
    frames = list(sample_frames(path))
    assert_partition(frames, 6.0)
    assert len(frames) == 6
    for name, pair in zip(NAMES, (frames[:2], frames[2:4], frames[4:]), strict=True):
        assert [closest(frame.image) for frame in pair] == [name, name]
    assert frames[0].image.mode == "RGB"


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "clip.jpg"
    path.write_bytes(clip_bytes(cuts(NAMES, 1.0)))
    assert [closest(frame.image) for frame in sample_frames(path)] == list(NAMES)


def test_sound_beside_the_pictures_changes_nothing(tmp_path: Path) -> None:
    write_clip(tmp_path / "mute.mp4", cuts(NAMES, 1.0))
    write_clip(tmp_path / "loud.mp4", cuts(NAMES, 1.0), sound=True)
    mute, loud = (list(sample_frames(tmp_path / f"{name}.mp4")) for name in ("mute", "loud"))
    assert [(f.t, f.t_start, f.t_end) for f in mute] == [(f.t, f.t_start, f.t_end) for f in loud]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(mute, loud, strict=True))


def test_a_shot_begins_a_span_of_its_own() -> None:
    names = ("airplane", "cat_face", "broccoli", "bison", "crab")
    clip = clip_bytes(cuts(names, 0.7))
    frames = list(sample_frames(clip))
    assert_partition(frames, 3.5)
    assert [closest(frame.image, names) for frame in frames] == list(names)
    np.testing.assert_allclose([f.t_start for f in frames], [0, 0.7, 1.4, 2.1, 2.8], atol=0.11)
    assert len(list(sample_frames(clip, sampling=Sampling(cuts=False)))) == 4


def test_a_moving_camera_is_no_cut() -> None:
    clip = clip_bytes(pan("canyon_river", 3.0))
    assert [frame.t_start for frame in sample_frames(clip)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("walk_pixels", [3e10, 0.0])
@pytest.mark.parametrize("most", [1, 4, 7])
def test_a_long_clip_gets_as_many_pictures_as_allowed_spread_over_it(
    most: int, walk_pixels: float
) -> None:
    names = ("airplane", "cat_face", "broccoli", "bison", "crab", "dolphin")
    clip = clip_bytes(
        cuts(names, 10.0, rate=2), rate=2, prepare=lambda s: setattr(s.codec_context, "gop_size", 4)
    )
    sampling = Sampling(max_frames=most, max_walk_pixels=walk_pixels)
    frames = list(sample_frames(clip, sampling=sampling))
    assert_partition(frames, 60.0, 0.6)
    assert len(frames) == most
    assert max(frame.t_end - frame.t_start for frame in frames) <= 60 / most * 1.5


def test_cuts_never_exceed_the_limit() -> None:
    names = ("airplane", "cat_face", "broccoli", "bison", "crab") * 4
    frames = list(sample_frames(clip_bytes(cuts(names, 0.5)), sampling=Sampling(max_frames=14)))
    assert_partition(frames, 10.0)
    assert 10 < len(frames) <= 14


@pytest.mark.parametrize("form", ["mp4", "mkv", "webm", "ts"])
def test_key_frames_alone_show_the_right_pictures(form: str) -> None:
    rate = 25 if form == "ts" else 10
    clip = clip_bytes(cuts(NAMES, 2.0, rate), form, rate=rate, prepare=short_gops)
    frames = list(sample_frames(clip, sampling=LEAP))
    assert_partition(frames, 6.0)
    assert len(frames) >= 5
    for frame in frames:
        assert closest(frame.image) == NAMES[int(frame.t // 2)]


def short_gops(stream: object) -> None:
    stream.codec_context.gop_size = 10  # type: ignore[attr-defined]


def test_a_still_picture_is_one_frame_however_long_it_is_shown() -> None:
    clip = clip_bytes([gallery(name) for name in NAMES], times=[0.0, 6.3, 7.1])
    frames = list(sample_frames(clip))
    assert [closest(frame.image) for frame in frames] == list(NAMES)
    assert_partition(frames, 8.1, 1.0)  # no file says how long its last picture is shown
    assert [frame.t for frame in frames] == pytest.approx([0.0, 6.3, 7.1], abs=0.002)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("webm", {"live": "1"}),  # what browsers record: neither length nor index
        ("mkv", {"live": "1"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
@pytest.mark.parametrize("sampling", [Sampling(), LEAP])
def test_clips_without_length_or_index_are_read_through(
    form: str, options: dict[str, str], sampling: Sampling
) -> None:
    clip = clip_bytes(cuts(NAMES, 2.0), form, prepare=short_gops, options=options)
    frames = list(sample_frames(clip, sampling=sampling))
    assert_partition(frames, 6.0)
    assert len(frames) >= 5
    for frame in frames:
        assert closest(frame.image) == NAMES[int(frame.t // 2)]


# Signs a, b, c, d of the display matrix: (x, y) of the stored picture is shown at
# (a x + c y, b x + d y), from the definition in ISO/IEC 14496-12, 6.2.2.
UPRIGHT = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: p[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("signs", UPRIGHT)
def test_rotation_and_mirroring_are_obeyed(signs: tuple[int, int, int, int]) -> None:
    clip = clip_bytes(still(gallery("cat_face"), 0.5))
    a, b, c, d = (65536 * sign for sign in signs)
    at = clip.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = clip[:at] + matrix + clip[at + 36 :]
    (plain,), (shown,) = list(sample_frames(clip)), list(sample_frames(turned))
    want = UPRIGHT[signs](np.asarray(plain.image))
    assert (np.asarray(shown.image) == want).all()
    assert frame_at(turned, 0.2).size == shown.image.size


def test_pixels_that_are_not_square_are_made_so() -> None:
    def wide(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = 2  # type: ignore[attr-defined]

    (frame,) = sample_frames(clip_bytes(still(gallery("cat_face"), 0.5), prepare=wide))
    assert frame.image.size == (SIZE[0] * 2, SIZE[1])


@pytest.mark.parametrize("matrix", [1, 2, 5])  # BT.709, not said, BT.601
def test_colours_are_those_that_were_encoded(matrix: int) -> None:
    import av

    picture = Image.new("RGB", (1280, 720), (200, 40, 30))
    frame = av.VideoFrame.from_image(picture).reformat(
        format="yuv420p", dst_colorspace="ITU601" if matrix == 5 else "ITU709"
    )

    def tagged(stream: object) -> None:
        stream.codec_context.colorspace = matrix  # type: ignore[attr-defined]

    clip = clip_bytes([frame, frame], prepare=tagged)
    (shown,) = sample_frames(clip)
    np.testing.assert_allclose(shown.image.getpixel((640, 360)), (200, 40, 30), atol=4)


def test_pictures_are_made_smaller_only() -> None:
    clip = clip_bytes(still(gallery("cat_face"), 0.5))
    assert next(sample_frames(clip, smallest_side=32)).image.size == (48, 32)
    assert next(sample_frames(clip, smallest_side=500)).image.size == SIZE


def test_a_moment_is_shown_as_it_is() -> None:
    clip = clip_bytes(cuts(NAMES, 1.0))
    for t, name in ((0.0, 0), (0.95, 0), (1.05, 1), (2.9, 2), (1e9, 2)):
        assert closest(frame_at(clip, t)) == NAMES[name]


def test_the_same_bytes_give_the_same_frames() -> None:
    clip = clip_bytes(cuts(NAMES, 1.0))
    first, second = list(sample_frames(clip)), list(sample_frames(clip))
    assert [f.image.tobytes() for f in first] == [f.image.tobytes() for f in second]


def test_what_is_no_moment_or_size_is_refused() -> None:
    clip = clip_bytes(still(gallery("cat_face"), 0.5))
    for t in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="expected seconds from 0 on"):
            frame_at(clip, t)
    with pytest.raises(ConfigError, match="smallest_side=0"):
        next(sample_frames(clip, smallest_side=0))
    with pytest.raises(ConfigError, match="every_s"):
        next(sample_frames(clip, sampling=Sampling(every_s=0.0)))
