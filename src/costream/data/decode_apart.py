"""Decode pictures in processes of their own: a decoder that crashes or hangs costs one picture.

A decoder is tens of thousands of lines of C that read what anybody may have written. In a process
with limits of time and memory, the worst that a file can do is to end that process; the next
picture gets a new one.

The processes talk over their standard input and output: a line of JSON, then so many bytes. What
comes back is read as numbers, text and pixels only, never unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from PIL import Image

from costream.data.decode import MAX_PIXELS, open_image
from costream.errors import CostreamError, DataError

# The largest pictures that are accepted take some seconds; what takes this long may never end.
_LIMIT_S = 60.0
# As RGBA, 89 million pixels are 358 MB, and laying them on white needs some copies of that.
_LIMIT_BYTES = 4 << 30
_COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "costream.data.decode_apart")
_READY = b"ready\n"
_PIPE_BYTES = 1 << 20


# --- in the process that wants pictures ---


class Decoders:
    """Processes that decode pictures, as many as there are threads that ask at one time.

    Threads may share one object. A process is started when all others are busy, and kept.

    Example:
        >>> with Decoders() as decoders:
        ...     decoders.decode(b"P6 1 1 255 abc", "a.ppm").getpixel((0, 0))
        (97, 98, 99)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: list[_Process] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def decode(self, encoded: bytes, name: str, *, smallest_side: int | None = None) -> Image.Image:
        """Decode one picture as `open_image` does.

        Args:
            encoded: Content of the file.
            name: What messages call it.
            smallest_side: As for `open_image`.

        Returns:
            A new RGB picture without metadata.

        Raises:
            DataError: What `open_image` raises; or the decoder crashed, or it was ended because it
                took longer than a minute.
            CostreamError: No process can be started, or `close` was called.
        """
        process = self._take()
        try:
            answer = process.ask(encoded, name, smallest_side)
        except DataError:
            self._give_back(process)
            raise
        except (OSError, EOFError):
            raise _lost(name, process.last_words()) from None
        except (ValueError, LookupError, TypeError):
            process.end()
            raise _lost(name, "made its decoder answer nonsense") from None
        self._give_back(process)
        return answer

    def close(self) -> None:
        """End all processes at once; pictures that are being decoded fail."""
        with self._lock:
            self._closed = True
        for process in self._all:
            process.end()

    def _take(self) -> _Process:
        with self._lock:
            if self._closed:
                raise CostreamError("the decoders are closed", hint="make new ones")
            if self._idle:
                return self._idle.pop()
            try:
                process = _Process()
            except OSError as error:
                raise _not_started(error.strerror or str(error)) from error
            self._all.append(process)
        process.wait_until_ready()
        return process

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            self._idle.append(process)


class _Process:
    """One decoder, seen from outside."""

    def __init__(self) -> None:
        here = str(Path(__file__).parents[2])  # wherever this package was found
        known = os.environ.get("PYTHONPATH")
        self._popen = subprocess.Popen(  # noqa: S603  our own program
            [*_COMMAND, str(_LIMIT_S), str(_LIMIT_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE_BYTES,
            # Ctrl-C in a terminal is for its parent to deal with.
            process_group=None if sys.platform == "win32" else 0,
            env={
                **os.environ,
                "PYTHONPATH": f"{here}{os.pathsep}{known}" if known else here,
                # Each thread and each arena reserves memory, which is limited.
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
            },
        )
        self._requests = cast(IO[bytes], self._popen.stdin)
        self._answers = cast(IO[bytes], self._popen.stdout)

    def wait_until_ready(self) -> None:
        """Return when it has started, or raise CostreamError."""
        if self._answers.readline() != _READY:
            raise _not_started(f"exit code {self._exit_code()}")

    def ask(self, encoded: bytes, name: str, smallest_side: int | None) -> Image.Image:
        """Have a picture decoded; what it raises besides DataError means that this one is lost."""
        request = {"name": name, "smallest_side": smallest_side, "num_bytes": len(encoded)}
        _send(self._requests, request, encoded)
        answer = _receive(self._answers)
        if "message" in answer:
            raise DataError(str(answer["message"]), hint=str(answer["hint"]))
        width_px, height_px = int(answer["width_px"]), int(answer["height_px"])
        if not 0 < width_px * height_px <= MAX_PIXELS:
            raise ValueError("more pixels than it may make")
        pixels = _receive_bytes(self._answers, 3 * width_px * height_px)
        return Image.frombytes("RGB", (width_px, height_px), pixels)

    def last_words(self) -> str:
        """How it ended, when it said nothing more."""
        code = self._exit_code()
        if code >= 0:
            return f"ended its decoder (exit code {code})"
        number = signal.Signals(-code)
        if number.name == "SIGALRM":
            return f"kept its decoder busy for more than {_LIMIT_S:g} s"
        return f"crashed its decoder ({number.name})"

    def _exit_code(self) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1)
        self.end()
        return int(self._popen.returncode)

    def end(self) -> None:
        """End it, whatever it is doing."""
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # what it was sent last and did not read
                pipe.close()


def _lost(name: str, reason: str) -> DataError:
    return DataError(
        f"{name}: {reason}, expected a picture",
        hint="save it anew with another program, or leave it out",
    )


def _not_started(reason: str) -> CostreamError:
    return CostreamError(
        f"no process could be started to decode pictures ({reason})",
        hint=f"see what this says: {' '.join(_COMMAND)} {_LIMIT_S:g} {_LIMIT_BYTES}",
    )


def _send(stream: IO[bytes], head: Mapping[str, Any], body: bytes = b"") -> None:
    stream.write(json.dumps(head).encode("ascii") + b"\n")
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes]) -> Mapping[str, Any]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError("expected an object")
    return head


def _receive_bytes(stream: IO[bytes], count: int) -> bytes:
    body = stream.read(count)
    if len(body) != count:
        raise EOFError
    return body


# --- in the process that decodes ---


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
        arguments: Most seconds a picture and most bytes of memory.
    """
    limit_s, limit_bytes = float(arguments[0]), int(arguments[1])
    _limit_memory(limit_bytes)
    requests = sys.stdin.buffer
    # First, for it takes the place of stderr where that is closed, which the answers must not.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    answers = os.fdopen(os.dup(1), "wb")
    answers.write(_READY)
    answers.flush()
    # Codecs write to both, which would spoil the answers or the terminal. What prevents a start has
    # been said before.
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    while True:
        try:
            request = _receive(requests)
        except EOFError:
            return
        sent = _Sent(name=request["name"], encoded=_receive_bytes(requests, request["num_bytes"]))
        _limit_time(limit_s)
        try:
            picture = open_image(sent, smallest_side=request["smallest_side"])
        except DataError as error:
            _limit_time(0)
            _send(answers, {"message": error.message, "hint": error.hint})
            continue
        pixels = picture.tobytes()
        _limit_time(0)
        _send(answers, {"width_px": picture.width, "height_px": picture.height}, pixels)


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
