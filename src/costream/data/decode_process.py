"""The process that `costream.data.decode_apart` starts: decodes what comes in on standard input."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image

from costream.config import from_dict
from costream.data.audio import SoundLimits, sound_windows
from costream.data.container import date_made
from costream.data.decode import open_image
from costream.data.video import Sampling, frame_at, sample_frames
from costream.errors import DataError

READY = b"ready\n"
"""What it says when it has started."""


def send(stream: IO[bytes], head: Mapping[str, Any], body: bytes = b"") -> None:
    """Write a line of JSON and the bytes that it announces."""
    line = json.dumps({**head, "num_bytes": len(body)})
    stream.write(line.encode("ascii") + b"\n")
    stream.write(body)
    stream.flush()


def receive(stream: IO[bytes]) -> Mapping[str, Any]:
    """Read a line of JSON.

    Raises:
        EOFError: The other side has ended.
        ValueError: It is no JSON object.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError("expected an object")
    return head


def receive_bytes(stream: IO[bytes], count: int) -> bytes:
    """Read so many bytes.

    Raises:
        EOFError: The other side has ended.
    """
    body = stream.read(count)
    if len(body) != count:
        raise EOFError
    return body


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sent:
    """A picture that was sent here; a stored picture to `open_image`."""

    name: str
    encoded: bytes

    def read(self) -> bytes:
        """Return the bytes."""
        return self.encoded


def serve(arguments: Sequence[str]) -> None:
    """Decode what comes in on standard input until that ends.

    Args:
        arguments: Most bytes of memory.
    """
    _limit_memory(int(arguments[0]))
    requests = sys.stdin.buffer
    # First, for it takes the place of stderr where that is closed, which the answers must not.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    answers = os.fdopen(os.dup(1), "wb")
    answers.write(READY)
    answers.flush()
    # Codecs write to both, which would spoil the answers or the terminal. What prevents a start has
    # been said before.
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return
        body = receive_bytes(requests, request["num_bytes"])
        limit_s = float(request["limit_s"])
        # Only decoding is timed: who asked may be slow to take what comes.
        _limit_time(limit_s)
        try:
            for head, made in _answers(request, body):
                _limit_time(0)
                send(answers, head, made)
                _limit_time(limit_s)
        except DataError as error:
            _limit_time(0)
            send(answers, {"message": error.message, "hint": error.hint})
            continue
        _limit_time(0)
        send(answers, {"end": True})


def _answers(request: Mapping[str, Any], body: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    name = request["name"]
    if request["what"] == "picture":
        picture = open_image(
            _Sent(name=name, encoded=body),
            max_pixels=request["max_pixels"],
            smallest_side=request["smallest_side"],
        )
        yield _size(picture), picture.tobytes()
    elif request["what"] == "date":
        yield {"date": date_made(name)}, b""
    elif request["what"] == "moment":
        picture = frame_at(name, request["t"], smallest_side=request["smallest_side"])
        yield _size(picture), picture.tobytes()
    elif request["what"] == "clip":
        sampling = from_dict(Sampling, request["sampling"])
        for frame in sample_frames(name, sampling=sampling, smallest_side=request["smallest_side"]):
            times = {"t": frame.t, "t_start": frame.t_start, "t_end": frame.t_end}
            yield _size(frame.image) | times, frame.image.tobytes()
    else:
        limits = from_dict(SoundLimits, request["limits"])
        rate_hz, window_s = request["rate_hz"], request["window_s"]
        for window in sound_windows(name, rate_hz=rate_hz, window_s=window_s, limits=limits):
            times = {"t_start": window.t_start, "t_end": window.t_end}
            yield times, window.samples.astype("<f4").tobytes()


def _size(picture: Image.Image) -> dict[str, Any]:
    return {"width_px": picture.width, "height_px": picture.height}


def _limit_time(seconds: float) -> None:
    """End this process after so many seconds, even in the middle of C; 0 takes that back."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(most_bytes: int) -> None:
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS knows this limit and takes none
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    serve(sys.argv[1:])
