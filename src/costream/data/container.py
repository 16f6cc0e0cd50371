"""Open files of moving pictures and sound so that a hostile one can do no more than fail.

FFmpeg guesses what a file is from its content, and some of what it can guess (playlists, lists of
files to concatenate) makes it open other files and addresses. Here the kind is told by our own look
at the first bytes and forced upon it, only common decoders may be used, and nothing but the given
file is ever read.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TypeAlias

from costream.data.failures import printable
from costream.data.picture import StoredPicture
from costream.data.sniff import HEAD_BYTES, describe
from costream.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream

ClipSource: TypeAlias = str | os.PathLike[str] | bytes | StoredPicture
"""Where a clip can come from: a path, encoded bytes, or what is stored in an archive."""

_DEMUXERS = {
    "an MP4 video": "mov",
    "a QuickTime video": "mov",
    "an MP4 sound": "mov",
    "a Matroska or WebM video": "matroska",
    "an AVI video": "avi",
    "an Ogg video": "ogg",
    "an Ogg sound": "ogg",
    "a Flash video": "flv",
    "a Windows Media video": "asf",
    "an MPEG video": "mpeg",
    "an MPEG transport video": "mpegts",
    "a WAV sound": "wav",
    "a FLAC sound": "flac",
    "an MP3 sound": "mp3",
    "an AAC sound": "aac",
    "an AIFF sound": "aiff",
    "a CAF sound": "caf",
}

# What cameras, phones, screen recorders and web pages make; FFmpeg has hundreds more, and the
# rarely used ones are where its memory errors are found.
_VIDEO_CODECS = frozenset(
    "h264 hevc av1 vp8 vp9 mpeg1video mpeg2video mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3 h263 flv1 "
    "wmv1 wmv2 wmv3 vc1 mjpeg prores dnxhd theora dvvideo rawvideo ffv1 huffyuv png".split()
)
_AUDIO_CODECS = frozenset(
    "aac mp1 mp2 mp3 opus vorbis flac alac ac3 eac3 wmav1 wmav2 amrnb amrwb "
    "pcm_u8 pcm_s8 pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_s32be pcm_f32le pcm_f32be "
    "pcm_f64le pcm_f64be pcm_alaw pcm_mulaw adpcm_ms adpcm_ima_wav adpcm_ima_qt".split()
)
_BUFFER_BYTES = 1 << 18
# The first has the time zone in which it was recorded; phones write both.
_DATES = ("com.apple.quicktime.creationdate", "creation_time", "date")
_NO_DATE_YEAR = 1970


def clip_name(source: ClipSource) -> str:
    """Name a clip in messages.

    Example:
        >>> clip_name(b"123")
        'clip of 3 bytes'
    """
    if isinstance(source, bytes):
        return f"clip of {len(source)} bytes"
    return printable(source if isinstance(source, str | os.PathLike) else source.name)


@contextlib.contextmanager
def open_container(source: ClipSource) -> Iterator[InputContainer]:
    """Open a file of moving pictures or sound.

    Errors of FFmpeg inside the `with` block become `DataError` with the file's name.

    Args:
        source: Path, encoded bytes or a stored file.

    Yields:
        The container of PyAV, closed at the end.

    Raises:
        DataError: It is absent, unreadable, empty, of no known kind or damaged, or PyAV is not
            installed.
    """
    name = clip_name(source)
    with open_bytes(source) as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        kind = describe(head)
        if kind not in _DEMUXERS:
            refuse(name, f"is {kind}", "leave it out, or convert it")
        av = _import_av(name, kind)
        try:
            with av.open(
                stream,
                format=_DEMUXERS[kind],
                options={"protocol_whitelist": "none"},
                io_open=_open_nothing,
                buffer_size=_BUFFER_BYTES,
                metadata_errors="replace",
            ) as container:
                yield container
        except (av.error.FFmpegError, OSError, MemoryError, OverflowError) as error:
            refuse(name, f"is damaged or cut off ({_words(error)})", "restore it or leave it out")


def date_made(source: ClipSource) -> float | None:
    """When a clip was recorded, as its header says.

    Args:
        source: Path, encoded bytes or a stored file.

    Returns:
        Seconds since 1970, or None when the header does not say, or says nonsense.

    Raises:
        DataError: As for `open_container`.

    Example:
        >>> date_made("no/such/clip.mp4")
        Traceback (most recent call last):
        costream.errors.DataError: no/such/clip.mp4: is not there, expected a video or a sound; ...
    """
    with open_container(source) as container:
        for name in _DATES:
            text = container.metadata.get(name, "")
            with contextlib.suppress(ValueError, OverflowError):
                made = datetime.fromisoformat(text)
                made = made.replace(tzinfo=made.tzinfo or UTC)
                # Writers that know no date leave the zero of some clock: 1904 or 1970.
                if made.year > _NO_DATE_YEAR:
                    return made.timestamp()
    return None


def check_codec(stream: Stream, name: str) -> None:
    """Refuse a stream whose decoder is missing or not one of the common ones.

    Raises:
        DataError: It is.
    """
    context = stream.codec_context
    codec = "" if context is None else context.codec.canonical_name
    if codec not in _VIDEO_CODECS | _AUDIO_CODECS:
        refuse(
            name,
            f"is coded as {codec or 'something unknown'}, which is not decoded here",
            "convert it to H.264 or VP9 (pictures), AAC or Opus (sound)",
        )


def refuse(name: str, got: str, hint: str) -> NoReturn:
    """Raise the error of a file that is no use.

    Raises:
        DataError: Always.
    """
    raise DataError(f"{name}: {got}, expected a video or a sound", hint=hint)


@contextlib.contextmanager
def open_bytes(source: ClipSource) -> Iterator[BinaryIO]:
    """The bytes behind a source, as a stream that can be moved in.

    Raises:
        DataError: The file is absent, unreadable, or a folder, pipe or device.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | os.PathLike):
        yield io.BytesIO(source.read())
        return
    name = clip_name(source)
    try:
        # A pipe would block for ever on open, a device might never end.
        if not stat.S_ISREG(os.stat(source).st_mode):  # noqa: PTH116
            refuse(name, "is a folder, pipe, socket or device", "name a file")
        stream = Path(source).open("rb")
    except FileNotFoundError:
        refuse(name, "is not there", "check the path")
    except PermissionError:
        refuse(name, "may not be read (permission denied)", f"chmod +r {name}")
    except (OSError, ValueError) as error:
        refuse(name, f"cannot be opened ({_words(error)})", "check the path")
    with stream:
        yield stream


def _open_nothing(url: str, flags: int, options: object) -> NoReturn:
    raise PermissionError(f"a file inside the file: {url}")


def _import_av(name: str, kind: str) -> ModuleType:
    try:
        import av
    except ImportError:
        extra = "audio" if kind.endswith("sound") else "video"
        refuse(
            name, f"is {kind} and no decoder for it is installed", f"pip install costream[{extra}]"
        )
    return av


def _words(error: BaseException) -> str:
    """What went wrong, without the number and the file name that such errors carry."""
    return getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
