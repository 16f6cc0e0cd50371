"""One open video: its times, its pictures in order or from a moment on, within limits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
from PIL import Image

from costream.config import Range
from costream.data.container import check_codec, refuse
from costream.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Small pictures are decoded faster than threads can be told about them.
_THREADS = 4
_THREADED_PIXELS = 640 * 480
# A clip that ends this much before the end that its header announces is cut off. The other kinds
# of file have no header with a length; FFmpeg guesses one from their size.
_ANNOUNCING = frozenset({"mov", "matroska", "avi", "asf"})
_CUT_OFF_SHARE = 0.05
_CUT_OFF_S = 1.0
# From this rate on, pictures that no other one is decoded from can be left out: half of the work.
_FAST_RATE = 12.0
_UNSPECIFIED_COLOURS = 2
_HD_PX = 720

MAX_ASPECT = 8
"""Pixels that are told to be more oblong than this are taken to be square."""

# Display matrix (a, b, c, d), x' = a x + c y, y' = b x + d y, to what Pillow calls it.
_UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLimits:
    """What a clip may cost before it is refused.

    Attributes:
        max_pixels: Most pixels of one picture.
        max_seconds: Longest time of decoding.
    """

    max_pixels: Annotated[int, Range(1)] = 8192 * 4320
    max_seconds: Annotated[float, Range(0, low_included=False)] = 600.0


DEFAULT_LIMITS = ClipLimits()


class Clip:
    """The pictures of an open container. Times are seconds from the first picture on.

    Args:
        container: As `open_container` gives it.
        name: For messages.
        limits: What it may cost; the clock starts now.

    Attributes:
        duration_s: Length that the header announces, else that was found by reading all packets;
            0 when there is none.
        end_s: End of the last picture that was read.

    Raises:
        DataError: There is no picture track, its decoder is not allowed, or its pictures are too
            large.
    """

    def __init__(self, container: InputContainer, name: str, limits: ClipLimits) -> None:
        from av.video.reformatter import VideoReformatter

        self.name = name
        self.limits = limits
        self.end_s = 0.0
        self._container = container
        self._scaler = VideoReformatter()
        self._stream = _picture_stream(container, name)
        self._deadline = time.monotonic() + limits.max_seconds
        self._reached_s = 0.0
        self._last_s = -1.0
        context = self._stream.codec_context
        self._check_size(context.width, context.height)
        context.options = {"max_pixels": str(limits.max_pixels)}
        self._tick_s = self._stream.time_base or Fraction(1, 90_000)
        start = self._stream.start_time
        self._start_s = 0.0 if start is None else self._seconds(start)
        self._announced_s = self._announced_duration()
        self.duration_s = self._announced_s or self._measured_duration()

    @contextlib.contextmanager
    def stopped_clock(self) -> Iterator[None]:
        """What happens meanwhile is no time of decoding."""
        started = time.monotonic()
        yield
        self._deadline += time.monotonic() - started

    @property
    def num_pixels(self) -> float:
        """Pixels of all pictures together, by the header."""
        context = self._stream.codec_context
        return self.duration_s * self._rate * max(context.width * context.height, 1)

    # --- pictures in time ---

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Every picture (of fast clips, every one that others need) with its time, in order.

        Raises:
            DataError: It takes too long, or the clip ends before the end that it announces.
        """
        context = self._stream.codec_context
        if context.width * context.height > _THREADED_PIXELS:
            context.thread_type, context.thread_count = "AUTO", _THREADS
        if self._rate >= _FAST_RATE:
            context.skip_frame = "NONREF"
        yield from self._decoded(self._packets())
        self._check_end()

    def key_frames(self, times_s: Sequence[float]) -> Iterator[tuple[float, VideoFrame]]:
        """The last key frame at or before each of some times, each once, in order.

        Where the file has no usable index it is read through, still without decoding the rest.

        Args:
            times_s: Rising.

        Raises:
            DataError: As for `frames`.
        """
        for packet in self._key_packets(times_s):
            yield from self._decoded_alone(packet)
        for _ in self._packets():
            pass  # to know where the file really ends
        self._check_end()

    def frames_from(self, t: float) -> Iterator[tuple[float, VideoFrame]]:
        """Pictures from the key frame before a moment on; from the begin if need be."""
        self._seek(t)
        yield from self._decoded(self._packets())

    def refuse_empty(self) -> NoReturn:
        """Raise the error of a clip without pictures.

        Raises:
            DataError: Always.
        """
        refuse(self.name, "has no picture that can be decoded", "restore it or leave it out")

    def picture(self, frame: VideoFrame, smallest_side: int | None) -> Image.Image:
        """A decoded picture as it is shown: upright, with square pixels, RGB.

        Args:
            frame: Of this clip.
            smallest_side: Larger pictures are made smaller until the shorter side has so many
                pixels.

        Raises:
            DataError: It has more pixels than allowed.
        """
        from av.video.reformatter import Colorspace

        self._check_size(frame.width, frame.height)
        width, height = self._shown_size(frame)
        share = 1.0
        if smallest_side is not None:
            share = min(1.0, smallest_side / min(width, height))
        is_untagged_hd = frame.colorspace == _UNSPECIFIED_COLOURS and frame.height >= _HD_PX
        shown = self._scaler.reformat(
            frame,
            width=max(round(width * share), 1),
            height=max(round(height * share), 1),
            format="rgb24",
            # What players take for granted, too.
            src_colorspace=Colorspace.ITU709 if is_untagged_hd else None,
            interpolation="AREA" if share < 1 else "BICUBIC",
            threads=1,
        )
        image = Image.fromarray(shown.to_ndarray())
        upright = _UPRIGHT.get(_display_matrix(frame))
        return image if upright is None else image.transpose(upright)

    def _shown_size(self, frame: VideoFrame) -> tuple[float, float]:
        aspect = float(self._stream.sample_aspect_ratio or 1)
        if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
            aspect = 1.0
        # Only ever made larger along one side, so that nothing is lost.
        return frame.width * max(aspect, 1.0), frame.height * max(1 / aspect, 1.0)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            raise DataError(
                f"{self.name}: has pictures of {width} x {height} pixels, expected at most "
                f"{self.limits.max_pixels:,} pixels",
                hint="make it smaller or allow more with max_pixels",
            )

    # --- packets ---

    def _packets(self) -> Iterator[Packet[Stream]]:
        """Packets of the pictures, noting where every track ends; the last ones are empty."""
        for packet in self._container.demux():
            if time.monotonic() > self._deadline:
                raise DataError(
                    f"{self.name}: took more than {self.limits.max_seconds:g} s to decode, "
                    "expected a clip that is decoded in that time",
                    hint="make it shorter or allow more with max_seconds",
                )
            is_picture = packet.stream.index == self._stream.index
            if packet.pts is not None and packet.time_base is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._reached_s = max(self._reached_s, end_s - self._start_s)
                if is_picture:
                    shortest_s = 0.0 if packet.duration else 1 / self._rate
                    self.end_s = max(self.end_s, end_s - self._start_s + shortest_s)
            if is_picture:
                yield packet

    def _decoded(
        self, packets: Iterator[Packet[Stream] | None]
    ) -> Iterator[tuple[float, VideoFrame]]:
        """Pictures that are later than all before; packets that cannot be decoded are left out."""
        from av.error import FFmpegError

        for packet in packets:
            try:
                frames = self._stream.codec_context.decode(packet)
            except FFmpegError:
                continue
            for frame in frames:
                t = self._last_s + 1 / self._rate
                if frame.pts is not None:
                    t = max(self._seconds(frame.pts) - self._start_s, 0.0)
                if t > self._last_s and not frame.is_corrupt:
                    self._last_s = t
                    self.end_s = max(self.end_s, t + 1 / self._rate)
                    yield t, frame

    def _key_packets(self, times_s: Sequence[float]) -> Iterator[Packet[Stream]]:
        """The last packet at or before each time that is decoded without others, each once."""
        can_seek, chosen_s = True, -1.0
        ahead: Packet[Stream] | None = None
        for target_s in times_s:
            if target_s < chosen_s:
                continue
            if can_seek:
                self._seek(target_s)
                ahead = None
            landed_s, newest, newest_s = math.inf, None, chosen_s
            for packet in chain([] if ahead is None else [ahead], self._packets()):
                if packet.pts is None:
                    continue
                t = self._seconds(packet.pts) - self._start_s
                landed_s = min(landed_s, t)
                # Some files can be entered only past the time: then the next one must do.
                if t > target_s and (newest is not None or landed_s <= target_s):
                    ahead = packet if packet.is_keyframe else None
                    break
                if packet.is_keyframe and t > newest_s:
                    newest, newest_s = packet, t
            if newest is not None:
                # Thrown back to where we had been: there is no index. Reading on is faster.
                can_seek = can_seek and not landed_s <= chosen_s < newest_s
                chosen_s = newest_s
                yield newest

    def _decoded_alone(self, packet: Packet[Stream]) -> Iterator[tuple[float, VideoFrame]]:
        """The picture of one packet, which a decoder holds back until it is told of the end."""
        yield from islice(self._decoded(iter([packet, None])), 1)
        self._stream.codec_context.flush_buffers()

    def _seek(self, t: float) -> None:
        from av.error import FFmpegError

        ticks = round((t + self._start_s) / self._tick_s)
        # A file without an index is read on from where we are.
        with contextlib.suppress(FFmpegError):
            self._container.seek(ticks, stream=self._stream)

    # --- length ---

    @property
    def _rate(self) -> float:
        """Pictures a second: what the header says, kept within reason."""
        return min(max(float(self._stream.average_rate or 25), 1.0), 240.0)

    def _seconds(self, ticks: int) -> float:
        return float(ticks * self._tick_s)

    def _announced_duration(self) -> float:
        import av

        if self._stream.duration:
            return self._seconds(self._stream.duration)
        whole = self._container.duration
        return whole / av.time_base if whole and whole > 0 else 0.0

    def _measured_duration(self) -> float:
        """Read every packet, decoding none; browsers record clips whose header has no length."""
        for _ in self._packets():
            pass
        self._container.seek(0)
        return self.end_s

    def _check_end(self) -> None:
        if not _ANNOUNCING & set(self._container.format.name.split(",")):
            return
        missing_s = self._announced_s - self._reached_s
        if missing_s > max(_CUT_OFF_S, _CUT_OFF_SHARE * self._announced_s):
            refuse(
                self.name,
                f"is cut off after {self._reached_s:.1f} of {self._announced_s:.1f} s",
                "restore it or leave it out",
            )


def _picture_stream(container: InputContainer, name: str) -> VideoStream:
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song
            check_codec(stream, name)
            return stream
    got = "holds sound only" if container.streams.audio else "has no picture track"
    refuse(name, got, "leave it out")


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """How the file wants its pictures turned and mirrored, as signs."""
    from av.sidedata.sidedata import Type

    sides: Any = frame.side_data  # a mapping, whatever its types say
    try:
        data = sides[Type.DISPLAYMATRIX]
    except KeyError:
        return (1, 0, 0, 1)
    a, b, _, c, d = np.sign(np.frombuffer(bytes(data), dtype="<i4")[:5]).tolist()
    return (a, b, c, d)
