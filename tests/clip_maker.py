"""Small real clips and sounds for tests, made with PyAV of pictures of the gallery."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

GALLERY = Path(str(resources.files("costream"))) / "assets" / "gallery"
SIZE = (96, 64)
CODECS = {
    "mp4": "libx264",
    "mov": "libx264",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "ts": "mpeg2video",
    "mpg": "mpeg2video",
    "flv": "flv1",
    "asf": "wmv2",
}
SOUND_CODECS = {
    "wav": "pcm_s16le",
    "flac": "flac",
    "mp3": "mp3",
    "ogg": "libopus",
    "m4a": "aac",
    "aac": "aac",
    "aiff": "pcm_s16be",
    "caf": "pcm_s16le",
}
_FORMATS = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg"}
_FAST: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "12"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "30"},
    "mpeg4": {"qscale": "2"},
}


def gallery(name: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of the gallery, by name without suffix."""
    with Image.open(GALLERY / f"{name}.jpg") as picture:
        return picture.convert("RGB").resize(size)


def still(picture: Image.Image, seconds: float, rate: int = 10) -> list[Image.Image]:
    """The same picture for a while."""
    return [picture] * round(seconds * rate)


def cuts(names: Sequence[str], seconds: float, rate: int = 10) -> list[Image.Image]:
    """Pictures of the gallery, one after the other."""
    return [frame for name in names for frame in still(gallery(name), seconds, rate)]


def pan(name: str, seconds: float, rate: int = 10) -> list[Image.Image]:
    """A slow pan with a zoom over a picture of the gallery."""
    whole = gallery(name, (SIZE[0] * 2, SIZE[1] * 2))
    count = round(seconds * rate)
    steps = np.linspace(0, 1, count)
    return [
        whole.resize(
            SIZE, box=(share * SIZE[0] / 2, share * SIZE[1] / 2, *_corner(share, whole.size))
        )
        for share in steps
    ]


def _corner(share: float, size: tuple[int, int]) -> tuple[float, float]:
    return (size[0] * (0.7 + 0.3 * share), size[1] * (0.7 + 0.3 * share))


def write_clip(
    path: Path,
    pictures: Sequence[Image.Image | av.VideoFrame],
    *,
    rate: int = 10,
    codec: str = "",
    times: Sequence[float] | None = None,
    sound: bool = False,
    prepare: Callable[[Any], None] = lambda stream: None,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Encode pictures.

    Args:
        path: Where to; its suffix names the container.
        pictures: Of one size.
        rate: Pictures a second.
        codec: Default by the container.
        times: When each picture is shown, instead of `rate`.
        sound: Whether a tone of two seconds is added.
        prepare: Called with the stream of pictures before the first one.
        options: Of the container.
        metadata: Of the container.
    """
    form = path.suffix[1:]
    codec = codec or CODECS[form]
    with av.open(path, "w", format=_FORMATS.get(form, form), options=options or {}) as container:
        container.metadata.update(metadata or {})
        stream: Any = container.add_stream(codec, rate=rate, options=_FAST.get(codec, {}))
        first = pictures[0] if pictures else None
        width, height = SIZE if first is None else (first.width, first.height)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 if times else rate)
        prepare(stream)
        track: Any = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number, picture in enumerate(pictures):
            is_frame = isinstance(picture, av.VideoFrame)
            frame = picture if is_frame else av.VideoFrame.from_image(picture)
            frame.pts = round(times[number] * 1000) if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            for part in _sound_frames(tone(2.0)[None], 16_000):
                container.mux(track.encode(part))
            container.mux(track.encode())


def clip_bytes(
    pictures: Sequence[Image.Image | av.VideoFrame], form: str = "mp4", **options: Any
) -> bytes:
    """Encode pictures in memory, with the options of `write_clip`."""
    with tempfile.TemporaryDirectory() as folder:  # some options need a file
        path = Path(folder, f"clip.{form}")
        write_clip(path, pictures, **options)
        return path.read_bytes()


def sound_bytes(samples: NDArray[Any], form: str, *, rate: int = 16_000, codec: str = "") -> bytes:
    """Encode a sound in memory.

    Args:
        samples: (S,) or (C, S), full scale 1.
        form: Suffix of the container.
        rate: Samples a second.
        codec: Default by the container.
    """
    stream = io.BytesIO()
    channels = np.atleast_2d(np.asarray(samples, dtype=np.float32))
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
    codec = codec or SOUND_CODECS[form]
    container_form = {"m4a": "ipod", "aac": "adts"}.get(form, form)
    with av.open(stream, "w", format=container_form) as container:
        track: Any = container.add_stream(codec, rate=rate, layout=layout)
        for part in _sound_frames(channels, rate):
            container.mux(track.encode(part))
        container.mux(track.encode())
    return stream.getvalue()


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> NDArray[np.float32]:
    """A sine of half of the full scale."""
    t = np.arange(round(seconds * rate)) / rate
    return np.float32(0.5 * np.sin(2 * np.pi * hertz * t))


def _sound_frames(samples_CS: NDArray[Any], rate: int) -> Iterator[av.AudioFrame]:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples_CS)]
    for start in range(0, samples_CS.shape[1], 1024):
        piece = np.ascontiguousarray(samples_CS[:, start : start + 1024])
        part = av.AudioFrame.from_ndarray(piece, "fltp", layout)
        part.sample_rate, part.pts = rate, start
        part.time_base = Fraction(1, rate)
        yield part
