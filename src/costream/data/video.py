"""Videos to the pictures that stand for them: upright, each with the span of time it speaks for.

A clip is walked from its begin to its end where that is affordable, and one picture is taken of
each second and of each shot. Of a longer clip only key frames are decoded, spread over its length.
Which of the two happens depends on nothing but the file, so that the same bytes give the same
pictures on every machine. Times are seconds from the clip's first picture on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from costream.config import Range, check_config
from costream.data.clip import DEFAULT_LIMITS, Clip, ClipLimits
from costream.data.container import ClipSource, clip_name, open_container
from costream.data.picture import PictureSource
from costream.errors import ConfigError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

    # A picture, when it is shown, and the begin of its span.
    _Taken: TypeAlias = tuple[float, float, VideoFrame]

VideoSource: TypeAlias = ClipSource | list[PictureSource] | tuple[PictureSource, ...]
"""A clip, or the pictures that were taken of it."""

# Of a span's pictures so many are kept until its end is known and the middle one is taken.
_HELD = 4
# A shot, and what is left at the end of a clip, gets its own span when it is at least this share
# of a whole one.
_LEAST_SHARE = 0.25
_SIGNATURE_PX = 32
# Mean change of brightness, of 255, between pictures of different shots, and how many times the
# usual change of the clip it is at least.
_CUT_CHANGE = 25.0
_CUT_RATIO = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which pictures of a clip are taken, and how much work a clip may be.

    Attributes:
        every_s: Seconds that one picture stands for, unless `max_frames` makes it more.
        max_frames: Most pictures of a clip; those of a longer one are spread over its length.
        cuts: Whether a shot that begins within a span begins a new one.
        max_walk_pixels: Clips with more pixels (of all their pictures together) are not walked;
            only key frames are decoded. The default is eight minutes of 1920 x 1080 at 30 a second.
        limits: When a clip is refused.
    """

    every_s: Annotated[float, Range(0, low_included=False)] = 1.0
    max_frames: Annotated[int, Range(1)] = 600
    cuts: bool = True
    max_walk_pixels: Annotated[float, Range(0)] = 3e10
    limits: ClipLimits = DEFAULT_LIMITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One picture of a clip and the time it stands for.

    Attributes:
        image: Upright RGB, in the form in which it is shown (not in that in which it is stored).
        t: When it is shown, in seconds.
        t_start: Begin of its span, at most `t`.
        t_end: End of its span, not included and later than `t`. The spans of a clip's frames follow
            each other without gap, from 0 to its end.
    """

    image: Image.Image
    t: float
    t_start: float
    t_end: float


DEFAULT_SAMPLING = Sampling()


def sample_frames(
    source: ClipSource, *, sampling: Sampling = DEFAULT_SAMPLING, smallest_side: int | None = None
) -> Iterator[Frame]:
    """Decode the pictures that stand for a clip, one at a time, in their order.

    Rotation and mirroring that the file asks for are obeyed, as is the shape of its pixels. A still
    picture that is shown for long is one frame.

    Args:
        source: Path, encoded bytes, or a clip stored in an archive.
        sampling: Which pictures are taken.
        smallest_side: When given, larger pictures are made smaller until their shorter side has
            this many pixels.

    Yields:
        At least one frame; memory is needed for a few pictures, whatever the length of the clip.

    Raises:
        DataError: The clip is absent, damaged, cut off, too large or too slow, has no picture, or
            PyAV is not installed. The message begins with its name. Frames may have come before.
        ConfigError: A number of `sampling`, or `smallest_side`, is out of its range.

    Example:
        >>> next(sample_frames(b"no clip"))
        Traceback (most recent call last):
        costream.errors.DataError: clip of 7 bytes: is text beginning 'no clip', expected ...
    """
    _check(sampling, smallest_side)
    with open_container(source) as container:
        clip = Clip(container, clip_name(source), sampling.limits)
        waiting: tuple[Image.Image, float, float] | None = None
        for t_start, t, frame in _taken(clip, sampling):
            if waiting is not None:
                with clip.stopped_clock():
                    yield _frame(waiting, t_start)
            waiting = clip.picture(frame, smallest_side), t, t_start
        if waiting is None:
            clip.refuse_empty()
        yield _frame(waiting, clip.end_s)


def frame_at(
    source: ClipSource,
    t: float,
    *,
    smallest_side: int | None = None,
    limits: ClipLimits = DEFAULT_LIMITS,
) -> Image.Image:
    """The picture that a clip shows at a moment.

    Args:
        source: Path, encoded bytes, or a clip stored in an archive.
        t: Seconds from the begin; past the end means the last picture.
        smallest_side: As for `sample_frames`.
        limits: When the clip is refused.

    Returns:
        The picture, upright RGB.

    Raises:
        DataError: As for `sample_frames`.
        ConfigError: `t` is negative or not finite, or `smallest_side` or a limit is below 1.

    Example:
        >>> frame_at("no/such/clip.mp4", 1.5)
        Traceback (most recent call last):
        costream.errors.DataError: no/such/clip.mp4: is not there, expected a video or a sound; ...
    """
    _check(limits, smallest_side)
    if not (math.isfinite(t) and t >= 0):
        raise ConfigError(f"got t={t}, expected seconds from 0 on")
    with open_container(source) as container:
        clip = Clip(container, clip_name(source), limits)
        shown: VideoFrame | None = None
        for at, frame in clip.frames_from(min(t, clip.duration_s)):
            if shown is not None and at > t:
                break
            shown = frame
        if shown is None:
            clip.refuse_empty()
        return clip.picture(shown, smallest_side)


def even_frames(
    video: VideoSource, count: int, *, smallest_side: int | None = None
) -> list[PictureSource]:
    """As many pictures of a video as are asked for, spread evenly over it.

    Args:
        video: A clip, or its frames as pictures.
        count: How many; a video that has fewer shows some of them more than once.
        smallest_side: As for `sample_frames`; frames that are given stay as they are.

    Returns:
        `count` pictures, in their order.

    Raises:
        DataError: As for `sample_frames`.
        ConfigError: `count` or `smallest_side` is below 1.

    Example:
        >>> even_frames(["a.jpg", "b.jpg", "c.jpg"], 2)
        ['a.jpg', 'c.jpg']
    """
    if count < 1:
        raise ConfigError(f"got {count} frames a video, expected at least 1")
    pictures: list[PictureSource]
    if isinstance(video, list | tuple):
        pictures = [*video]
    else:
        sampling = Sampling(max_frames=count)
        sampled = sample_frames(video, sampling=sampling, smallest_side=smallest_side)
        pictures = [frame.image for frame in sampled]
    places = np.linspace(0, len(pictures) - 1, count).round().astype(int)
    return [pictures[place] for place in places]


def _check(config: Sampling | ClipLimits, smallest_side: int | None) -> None:
    check_config(config)
    if smallest_side is not None and smallest_side < 1:
        raise ConfigError(f"got smallest_side={smallest_side}, expected at least 1")


def _frame(taken: tuple[Image.Image, float, float], t_end: float) -> Frame:
    image, t, t_start = taken
    return Frame(image=image, t=t, t_start=t_start, t_end=t_end)


def _taken(clip: Clip, sampling: Sampling) -> Iterator[_Taken]:
    every_s = max(sampling.every_s, clip.duration_s / sampling.max_frames)
    if clip.num_pixels <= sampling.max_walk_pixels:
        return _walk(clip, sampling, every_s)
    return _leap(clip, max(int(clip.duration_s / every_s), 1))


def _leap(clip: Clip, count: int) -> Iterator[_Taken]:
    """Key frames spread over the clip; each speaks for what follows, as shots begin with one."""
    step_s = clip.duration_s / count
    times_s = [step_s * (number + 0.5) for number in range(count)]
    for number, (t, frame) in enumerate(clip.key_frames(times_s)):
        yield (t if number else 0.0), t, frame


def _walk(clip: Clip, sampling: Sampling, every_s: float) -> Iterator[_Taken]:
    """A picture from the middle of each span, where a span ends after `every_s` or with its shot.

    Shots may add as many spans as `max_frames` leaves, evenly over the length of the clip.
    """
    from av.video.reformatter import VideoReformatter

    spare = sampling.max_frames - clip.duration_s / every_s
    cuts = _Cuts(scaler=VideoReformatter())
    start_s, count, num_cuts, held = 0.0, 1, 0, _Held()
    for t, frame in clip.frames():
        elapsed_s = t - start_s
        is_cut = (
            sampling.cuts
            and cuts.begins_shot(frame)
            and elapsed_s >= _LEAST_SHARE * every_s
            and num_cuts < int(spare * t / max(clip.duration_s, t))
        )
        if held and count < sampling.max_frames and (is_cut or elapsed_s >= every_s):
            # A still picture is shown until another one comes: it keeps all whole spans till then.
            end_s = t if is_cut else start_s + every_s * (elapsed_s // every_s)
            if end_s <= held.frames[0][0]:
                end_s = t  # the first picture of the clip came late
            yield start_s, *held.middle(end_s)
            start_s, held = end_s, _Held()
            count, num_cuts = count + 1, num_cuts + is_cut
        held.add(t, frame)
    if held and (start_s == 0 or clip.end_s - start_s >= _LEAST_SHARE * every_s):
        yield start_s, *held.middle(clip.end_s)


@dataclass(kw_only=True, slots=True)
class _Held:
    """A few of a span's pictures, evenly spread over what has come of it."""

    frames: list[tuple[float, VideoFrame]] = field(default_factory=list)
    stride: int = 1
    num_seen: int = 0

    def __len__(self) -> int:
        return len(self.frames)

    def add(self, t: float, frame: VideoFrame) -> None:
        if self.num_seen % self.stride == 0:
            if len(self.frames) == _HELD:
                self.frames, self.stride = self.frames[::2], self.stride * 2
            self.frames.append((t, frame))
        self.num_seen += 1

    def middle(self, end_s: float) -> tuple[float, VideoFrame]:
        """The picture nearest the middle between the first one and the end."""
        middle_s = (self.frames[0][0] + end_s) / 2
        return min(self.frames, key=lambda held: abs(held[0] - middle_s))


@dataclass(kw_only=True, slots=True)
class _Cuts:
    """Tells where a new shot begins: the picture changes far more than it usually does."""

    scaler: VideoReformatter
    before: NDArray[np.float32] | None = None
    usual: float = 0.0

    def begins_shot(self, frame: VideoFrame) -> bool:
        side = _SIGNATURE_PX
        small = self.scaler.reformat(
            frame, width=side, height=side, format="gray8", interpolation="AREA", threads=1
        )
        now = small.to_ndarray().astype(np.float32)
        before, self.before = self.before, now
        if before is None:
            return False
        change = float(np.abs(now - before).mean())
        is_cut = change > max(_CUT_CHANGE, _CUT_RATIO * self.usual)
        if not is_cut:
            self.usual += (change - self.usual) / 8
        return is_cut
