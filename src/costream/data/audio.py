"""Sounds to mono samples at the rate that a model wants, in windows with their span of time.

Decoded a piece at a time, so that memory does not grow with the length of the sound.

Shape letters: C channels, S samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray

from costream.config import Range, check_config
from costream.data.container import ClipSource, check_codec, clip_name, open_container, refuse
from costream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Samples = NDArray[np.float32]

# What one instrument in a laboratory may still write, and what no one can hear anything in.
_MOST_HZ = 768_000
_LEAST_HZ = 1_000
_MOST_CHANNELS = 64
# Full scale of the integer forms of samples.
_FULL_SCALE = {"uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31, "int64": 2.0**63}


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundLimits:
    """What a sound may cost before it is refused.

    Attributes:
        max_duration_s: Longest sound.
        max_seconds: Longest time of decoding.
    """

    max_duration_s: Annotated[float, Range(0, low_included=False)] = 24 * 3600.0
    max_seconds: Annotated[float, Range(0, low_included=False)] = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A piece of a sound.

    Attributes:
        samples: float32 (S,), one channel; full scale is 1.
        t_start: When it begins, in seconds.
        t_end: When it ends. The windows of a sound follow each other without gap, from 0 to its
            end; the last one may be shorter than the others.
    """

    samples: Samples
    t_start: float
    t_end: float


DEFAULT_SOUND_LIMITS = SoundLimits()


def sound_windows(
    source: ClipSource,
    *,
    rate_hz: int = 48_000,
    window_s: float = 10.0,
    limits: SoundLimits = DEFAULT_SOUND_LIMITS,
) -> Iterator[Window]:
    """Decode a sound, or the sound of a video, in windows.

    Args:
        source: Path, encoded bytes, or a sound stored in an archive.
        rate_hz: Samples a second that are wanted.
        window_s: Length of a window.
        limits: When the sound is refused.

    Yields:
        At least one window; channels are averaged.

    Raises:
        DataError: The sound is absent, damaged, empty (0 s), too long or too slow, holds samples
            that are no numbers, has a rate or number of channels out of reason, or PyAV or soxr is
            not installed. The message begins with its name. Windows may have come before.
        ConfigError: `rate_hz`, `window_s` or a limit is out of range.

    Example:
        >>> next(sound_windows(b"no sound"))
        Traceback (most recent call last):
        costream.errors.DataError: clip of 8 bytes: is text beginning 'no sound', expected ...
    """
    check_config(limits)
    if not _LEAST_HZ <= rate_hz <= _MOST_HZ:
        raise ConfigError(f"got rate_hz={rate_hz}, expected {_LEAST_HZ:,} to {_MOST_HZ:,}")
    if not 1 <= window_s * rate_hz < np.inf:
        raise ConfigError(f"got window_s={window_s}, expected at least one sample")
    size = round(window_s * rate_hz)
    first, waiting, num_waiting = 0, list[Samples](), 0
    for piece in _resampled(source, rate_hz, limits):
        waiting.append(piece)
        num_waiting += len(piece)
        if num_waiting < size:
            continue
        joined = np.concatenate(waiting)
        for start in range(0, num_waiting - size + 1, size):
            yield _window(joined[start : start + size], first + start, rate_hz)
        num_waiting %= size
        first += len(joined) - num_waiting
        waiting = [joined[len(joined) - num_waiting :]]
    if num_waiting:
        yield _window(np.concatenate(waiting), first, rate_hz)
    elif not first:
        refuse(clip_name(source), "has no sound (0 s)", "leave it out")


def read_sound(
    source: ClipSource, *, rate_hz: int = 48_000, limits: SoundLimits = DEFAULT_SOUND_LIMITS
) -> Samples:
    """Decode a whole sound, or the sound of a video.

    Args:
        source: Path, encoded bytes, or a sound stored in an archive.
        rate_hz: Samples a second that are wanted.
        limits: When the sound is refused.

    Returns:
        float32 (S,), one channel; full scale is 1.

    Raises:
        DataError: As for `sound_windows`.
        ConfigError: As for `sound_windows`.

    Example:
        >>> read_sound("no/such/sound.wav")
        Traceback (most recent call last):
        costream.errors.DataError: no/such/sound.wav: is not there, expected a video or a sound; ...
    """
    windows = sound_windows(source, rate_hz=rate_hz, limits=limits)
    return np.concatenate([window.samples for window in windows])


def _window(samples: Samples, first: int, rate_hz: int) -> Window:
    return Window(samples=samples, t_start=first / rate_hz, t_end=(first + len(samples)) / rate_hz)


def _resampled(source: ClipSource, rate_hz: int, limits: SoundLimits) -> Iterator[Samples]:
    name = clip_name(source)
    convert: Callable[[Samples, bool], Samples] | None = None
    rate_in = 0
    for rate, piece in _decoded(source, limits):
        if convert is None:
            rate_in, convert = rate, _converter(rate, rate_hz, name)
        if rate != rate_in:
            refuse(name, f"changes its rate from {rate_in} to {rate} Hz", "convert it")
        yield convert(piece, False)
    if convert is not None:
        yield convert(np.zeros(0, dtype=np.float32), True)


def _converter(rate_in: int, rate_out: int, name: str) -> Callable[[Samples, bool], Samples]:
    if rate_in == rate_out:
        return lambda piece, last: piece
    try:
        from soxr import ResampleStream  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(
            f"{name}: has {rate_in:,} samples a second, expected {rate_out:,}, and nothing that "
            "converts it is installed",
            hint="pip install costream[audio]",
        ) from error
    stream = ResampleStream(rate_in, rate_out, 1, dtype="float32")

    def convert(piece: Samples, last: bool) -> Samples:
        return np.asarray(stream.resample_chunk(piece, last=last), dtype=np.float32)

    return convert


def _decoded(source: ClipSource, limits: SoundLimits) -> Iterator[tuple[int, Samples]]:
    """Pieces of one channel, each with its rate."""
    name = clip_name(source)
    deadline = time.monotonic() + limits.max_seconds
    with open_container(source) as container:
        stream = _sound_stream(container, name)
        length_s = 0.0
        for frame in _frames(container, stream):
            _check_rate(frame, name)
            length_s += frame.samples / frame.sample_rate
            if length_s > limits.max_duration_s:
                refuse(name, f"is longer than {limits.max_duration_s:g} s", "cut it in parts")
            if time.monotonic() > deadline:
                refuse(name, f"took more than {limits.max_seconds:g} s", "cut it in parts")
            piece = _mono(frame)
            if not np.isfinite(piece).all():
                refuse(name, "holds samples that are no numbers", "restore it or leave it out")
            paused = time.monotonic()
            yield frame.sample_rate, piece
            deadline += time.monotonic() - paused


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    from av.error import InvalidDataError

    for packet in container.demux(stream):
        # One damaged packet is a click in a song, not the end of it.
        try:
            yield from packet.decode()
        except InvalidDataError:
            continue


def _sound_stream(container: InputContainer, name: str) -> AudioStream:
    if not container.streams.audio:
        refuse(name, "has no sound track", "leave it out")
    stream = container.streams.audio[0]
    check_codec(stream, name)
    return stream


def _check_rate(frame: AudioFrame, name: str) -> None:
    if not _LEAST_HZ <= frame.sample_rate <= _MOST_HZ:
        refuse(
            name,
            f"has {frame.sample_rate:,} samples a second, not {_LEAST_HZ:,} to {_MOST_HZ:,}",
            "convert it",
        )
    if frame.layout.nb_channels > _MOST_CHANNELS:
        refuse(name, f"has {frame.layout.nb_channels} channels", "convert it")


def _mono(frame: AudioFrame) -> Samples:
    raw = frame.to_ndarray()
    channels_CS = raw if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels).T
    values = channels_CS.mean(axis=0, dtype=np.float64)
    if raw.dtype.name == "uint8":
        values -= _FULL_SCALE["uint8"]
    return np.asarray(values / _FULL_SCALE.get(raw.dtype.name, 1.0), dtype=np.float32)
