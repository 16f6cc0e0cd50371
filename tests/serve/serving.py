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
