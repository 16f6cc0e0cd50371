"""The process that decodes, with decoders that misbehave: `P6 bad: WHAT` says how.

Everything but the decoder is the product's own: this registers it with Pillow and calls `serve`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import IO

import av
from PIL import Image, ImageFile

MARK = b"P6 bad: "
_real_open = av.open


class BadFile(ImageFile.ImageFile):
    """A picture whose decoding does what its text says."""

    format = "PPM"

    def _open(self) -> None:
        self.what = self.fp.read().removeprefix(MARK).decode()
        self._mode = "RGB"
        self._size = (8, 8)

    def load(self) -> None:
        """Misbehave."""
        misbehave(self.what)


def misbehave(what: str) -> None:
    """Do what the worst decoders do."""
    if what == "abort":
        os.abort()
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(3)
    if what == "sleep":
        time.sleep(3600)
    while what == "spin":
        pass
    if what == "hoard":
        bytearray(64 << 30)
    if what == "chatter":
        os.write(1, b"libodd: warning\n")
        os.write(2, b"libodd: warning\n")
        raise SyntaxError("the end")
    if what == "nonsense":
        # As if it had been taken over: straight into the answers.
        for fd in range(3, 16):
            if fd != sys.stdin.fileno():
                try:
                    os.write(fd, b'{"width_px": 1000000000, "height_px": 1000000000}\n')
                except OSError:
                    continue
        time.sleep(3600)


def open_bad_clip(stream: IO[bytes], **options: object) -> object:
    """PyAV's `open`, of which a file with a mark behind its end makes a fool."""
    content = stream.read()
    stream.seek(0)
    if MARK in content:
        misbehave(content.partition(MARK)[2].decode())
    return _real_open(stream, **options)


def accept(head: bytes) -> bool:
    """Whether a file is one of these."""
    return head.startswith(MARK)


if __name__ == "__main__":
    from costream.data import decode_process

    Image.register_open("PPM", BadFile, accept)
    av.open = open_bad_clip
    decode_process.serve(sys.argv[1:])
