"""A real service for tests: uvicorn in a thread, over real sockets, with a real index."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

import costream
from costream.index.protocol import SearchIndex
from costream.serve.models import ModelParts, load_parts
from costream.serve.server import Server
from costream.serve.service import Service
from costream.serve.settings import Limits, ServeSettings

GALLERY = Path(costream.__file__).parent / "assets" / "gallery"
PICTURES = (
    "black_dog_in_woods german_shepherd husky cat_face kitten red_rose orange_flower yellow_flower "
    "red_car blue_car race_car pizza_slice castle_in_park sunset_lake red_sunset boats_at_sunset "
    "brown_horse horses zebra tiger elephant drawing_dog drawing_cat electric_guitar"
).split()
PATIENT = ServeSettings(port=0, limits=Limits(answer_s=300.0))
KEY = "a-key-that-is-long-enough"


@contextlib.contextmanager
def serving(
    place: Path | str,
    model: Path | list[Path],
    settings: ServeSettings | None = None,
    *,
    change: Callable[[ModelParts], ModelParts] = lambda parts: parts,
    cache: Path | None = None,
) -> Iterator[httpx.Client]:
    """A client of a service that runs while the block does.

    Args:
        place: Of the index.
        model: Its model; the first of a list, which may change.
        settings: Port 0, and time enough for a machine with much else to do, unless given.
        change: Made to the model, to inject faults.
        cache: Folder for thumbnails.
    """

    def load(_: SearchIndex) -> ModelParts:
        return change(load_parts(str(model[0] if isinstance(model, list) else model)))

    started = threading.Event()
    service = Service(place, settings or PATIENT, load, cache=cache)
    server = Server(service, started=lambda _: started.set())
    thread = threading.Thread(target=server.answer)
    thread.start()
    try:
        assert started.wait(300)
        with httpx.Client(base_url=server.url, timeout=300) as client:
            yield client
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive(), "the service did not end"


def port_of(client: httpx.Client) -> int:
    assert client.base_url.port is not None
    return client.base_url.port


def encoded(picture: Image.Image, form: str = "PNG") -> str:
    """A picture as requests carry it."""
    stream = io.BytesIO()
    picture.save(stream, form)
    return base64.b64encode(stream.getvalue()).decode()


def raw(client: httpx.Client, request: bytes, *, timeout_s: float = 30.0) -> bytes:
    """Everything that the service sends for some bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port_of(client)), timeout=timeout_s) as connection:
        connection.sendall(request)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
        return received


def get(path: bytes, *headers: bytes, host: bytes = b"localhost") -> bytes:
    """A GET request as bytes, so that nothing on the way makes it well-formed."""
    lines = [b"GET " + path + b" HTTP/1.1", b"Host: " + host, b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def picture_bytes(kind: str) -> bytes:
    """Pictures that break programs."""
    stream = io.BytesIO()
    if kind == "1x1":
        Image.new("RGB", (1, 1)).save(stream, "PNG")
    elif kind == "1xN":
        Image.new("L", (1, 5000)).save(stream, "PNG")
    elif kind == "animated":
        frames = [Image.new("P", (40, 40), n) for n in range(5)]
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    elif kind == "16 bit":
        Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(stream, "PNG")
    elif kind == "CMYK":
        Image.new("CMYK", (30, 30)).save(stream, "JPEG")
    elif kind == "polyglot":
        Image.new("RGB", (30, 30)).save(stream, "JPEG")
        stream.write(b"<script>alert(1)</script><?php system('id'); ?>")
    elif kind == "bomb":
        # 20,000 x 20,000 pixels in some bytes: the header is enough to refuse it.
        Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    elif kind == "svg":
        stream.write(b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    elif kind == "truncated":
        Image.effect_noise((300, 300), 90).save(stream, "JPEG")
        return stream.getvalue()[:2000]
    elif kind == "pdf":
        stream.write(b"%PDF-1.7\n")
    elif kind == "eps":
        stream.write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{ } loop\n")
    return stream.getvalue()
