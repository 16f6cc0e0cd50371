"""Decode in processes of their own: a decoder that crashes or hangs costs one file.

A decoder is tens of thousands of lines of C that read what anybody may have written. In a process
with limits of time and memory, the worst that a file can do is to end that process; the next
file gets a new one.

The processes talk over their standard input and output: a line of JSON, then so many bytes. A
request names a file or holds its content; each answer is a picture, or a piece of a sound, and the
last one says that there is no more. They are read as numbers, text and samples only, never
unpickled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar, cast

import numpy as np
from PIL import Image

from costream.config import to_dict
from costream.data.audio import DEFAULT_SOUND_LIMITS, SoundLimits, Window
from costream.data.clip import MAX_ASPECT
from costream.data.decode import MAX_PIXELS
from costream.data.decode_process import READY, receive, receive_bytes, send
from costream.data.failures import printable
from costream.data.video import DEFAULT_SAMPLING, Frame, Sampling
from costream.errors import CostreamError, DataError

T = TypeVar("T")

# The largest pictures that are accepted take some seconds; what takes this long may never end.
_LIMIT_S = 60.0
# As RGBA, 89 million pixels are 358 MB, and laying them on white needs some copies of that.
_LIMIT_BYTES = 4 << 30
_COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "costream.data.decode_process")
_PIPE_BYTES = 1 << 20
_NONSENSE = "made its decoder answer nonsense"


class Decoders:
    """Processes that decode, as many as there are threads that ask at one time.

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

    def decode(
        self,
        encoded: bytes,
        name: str,
        *,
        max_pixels: int = MAX_PIXELS,
        smallest_side: int | None = None,
        limit_s: float | None = None,
    ) -> Image.Image:
        """Decode one picture as `open_image` does.

        Args:
            encoded: Content of the file.
            name: What messages call it.
            max_pixels: As for `open_image`.
            smallest_side: As for `open_image`.
            limit_s: Seconds that it may take; None for a minute.

        Returns:
            A new RGB picture without metadata.

        Raises:
            DataError: What `open_image` raises; or the decoder crashed, or it was ended because it
                took too long.
            CostreamError: No process can be started, or `close` was called.
        """
        request = {
            "what": "picture",
            "name": name,
            "max_pixels": max_pixels,
            "smallest_side": smallest_side,
            "limit_s": _LIMIT_S if limit_s is None else limit_s,
        }
        return self._ask_once(request, encoded, "a picture", 3 * max_pixels, _picture)

    def date_made(self, path: str) -> float | None:
        """When a clip was recorded, as `costream.data.container.date_made` says it.

        Args:
            path: The file; it is opened in the other process.

        Returns:
            Seconds since 1970, or None when the clip does not say.

        Raises:
            DataError: The clip is damaged, or it broke its decoder.
            CostreamError: No process can be started, or `close` was called.
        """
        request = {"what": "date", "name": path, "limit_s": _LIMIT_S}
        return self._ask_once(request, b"", "a video or a sound", 0, _date)

    def frames(
        self, path: str, *, sampling: Sampling = DEFAULT_SAMPLING, smallest_side: int | None = None
    ) -> Generator[Frame, None, None]:
        """Decode the pictures that stand for a clip as `sample_frames` does.

        Args:
            path: The file; it is opened in the other process.
            sampling: As for `sample_frames`.
            smallest_side: As for `sample_frames`.

        Yields:
            At least one frame.

        Raises:
            DataError: What `sample_frames` raises; or the decoder crashed, or it was ended because
                a frame took longer than the clip may take.
            CostreamError: No process can be started, or `close` was called.
        """
        limits = sampling.limits
        request = {
            "what": "clip",
            "name": path,
            "smallest_side": smallest_side,
            "sampling": to_dict(sampling),
            "limit_s": limits.max_seconds,
        }
        most_bytes = 3 * MAX_ASPECT * limits.max_pixels
        yield from self._ask(request, b"", "a video", most_bytes, _frame)

    def frame_at(self, path: str, t: float, *, smallest_side: int | None = None) -> Image.Image:
        """Decode the picture that a clip shows at a moment as `frame_at` does.

        Args:
            path: The file; it is opened in the other process.
            t: Seconds from the begin.
            smallest_side: As for `frame_at`.

        Returns:
            Upright RGB.

        Raises:
            DataError: What `frame_at` raises; or the decoder crashed, or it was ended because it
                took longer than a minute.
            CostreamError: No process can be started, or `close` was called.
        """
        request = {
            "what": "moment",
            "name": path,
            "t": t,
            "smallest_side": smallest_side,
            "limit_s": _LIMIT_S,
        }
        most_bytes = 3 * MAX_ASPECT * DEFAULT_SAMPLING.limits.max_pixels
        return self._ask_once(request, b"", "a video", most_bytes, _picture)

    def windows(
        self,
        path: str,
        *,
        rate_hz: int,
        window_s: float,
        limits: SoundLimits = DEFAULT_SOUND_LIMITS,
    ) -> Generator[Window, None, None]:
        """Decode a sound as `sound_windows` does.

        Args:
            path: The file; it is opened in the other process.
            rate_hz: As for `sound_windows`.
            window_s: As for `sound_windows`.
            limits: As for `sound_windows`.

        Yields:
            At least one window.

        Raises:
            DataError: What `sound_windows` raises; or the decoder crashed, or it was ended because
                a window took longer than the sound may take.
            CostreamError: No process can be started, or `close` was called.
        """
        request = {
            "what": "sound",
            "name": path,
            "rate_hz": rate_hz,
            "window_s": window_s,
            "limits": to_dict(limits),
            "limit_s": limits.max_seconds,
        }
        most_bytes = 4 * (round(rate_hz * window_s) + 1)
        yield from self._ask(request, b"", "a sound", most_bytes, _window)

    def _ask_once(
        self,
        request: Mapping[str, Any],
        body: bytes,
        expected: str,
        most_bytes: int,
        make: Callable[[Mapping[str, Any], bytes], T],
    ) -> T:
        answers = list(self._ask(request, body, expected, most_bytes, make))
        if len(answers) != 1:
            raise _lost(request["name"], _NONSENSE, expected)
        return answers[0]

    def _ask(
        self,
        request: Mapping[str, Any],
        body: bytes,
        expected: str,
        most_bytes: int,
        make: Callable[[Mapping[str, Any], bytes], T],
    ) -> Generator[T, None, None]:
        """Send a request, give what is made of the answers; it costs one process at most.

        Raises:
            DataError: The file is broken, or it broke its decoder.
        """
        process = self._take()
        is_usable = False
        try:
            for head, answer in process.ask(request, body, most_bytes):
                yield make(head, answer)
            is_usable = True
        except DataError:
            is_usable = True
            raise
        except (OSError, EOFError):
            raise _lost(request["name"], process.last_words(), expected) from None
        except (ValueError, LookupError, TypeError):
            raise _lost(request["name"], _NONSENSE, expected) from None
        finally:
            if is_usable:
                self._give_back(process)
            else:
                process.end()

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
            while self._idle:
                process = self._idle.pop()
                if process.is_running():
                    return process
                # Somebody ended it while it had nothing to do: that is no fault of the next file.
                self._all.remove(process)
                process.end()
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
        self._limit_s = _LIMIT_S
        here = str(Path(__file__).parents[2])  # wherever this package was found
        known = os.environ.get("PYTHONPATH")
        self._popen = subprocess.Popen(  # noqa: S603  our own program
            [*_COMMAND, str(_LIMIT_BYTES)],
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
        if self._answers.readline() != READY:
            raise _not_started(f"exit code {self._exit_code()}")

    def ask(
        self, request: Mapping[str, Any], body: bytes, most_bytes: int
    ) -> Iterator[tuple[Mapping[str, Any], bytes]]:
        """Have a file decoded; what it raises besides DataError means that this one is lost."""
        self._limit_s = float(request["limit_s"])
        send(self._requests, request, body)
        while "end" not in (head := receive(self._answers)):
            if "message" in head:
                raise DataError(str(head["message"]), hint=str(head["hint"]))
            num_bytes = int(head["num_bytes"])
            if not 0 <= num_bytes <= most_bytes:
                raise ValueError("more than it may make")
            yield head, receive_bytes(self._answers, num_bytes)

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def last_words(self) -> str:
        """How it ended, when it said nothing more."""
        code = self._exit_code()
        if code >= 0:
            return f"ended its decoder (exit code {code})"
        number = signal.Signals(-code)
        if number.name == "SIGALRM":
            return f"kept its decoder busy for more than {self._limit_s:g} s"
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


def _lost(name: str, reason: str, expected: str) -> DataError:
    return DataError(
        f"{printable(name)}: {reason}, expected {expected}",
        hint="save it anew with another program, or leave it out",
    )


def _not_started(reason: str) -> CostreamError:
    return CostreamError(
        f"no process could be started to decode pictures ({reason})",
        hint=f"see what this says: {' '.join(_COMMAND)} {_LIMIT_BYTES}",
    )


def _picture(head: Mapping[str, Any], body: bytes) -> Image.Image:
    return Image.frombytes("RGB", (int(head["width_px"]), int(head["height_px"])), body)


def _date(head: Mapping[str, Any], body: bytes) -> float | None:
    return None if head["date"] is None else float(head["date"])


def _frame(head: Mapping[str, Any], body: bytes) -> Frame:
    t, t_start, t_end = (float(head[key]) for key in ("t", "t_start", "t_end"))
    return Frame(image=_picture(head, body), t=t, t_start=t_start, t_end=t_end)


def _window(head: Mapping[str, Any], body: bytes) -> Window:
    samples = np.frombuffer(body, dtype="<f4").astype(np.float32)
    return Window(samples=samples, t_start=float(head["t_start"]), t_end=float(head["t_end"]))
