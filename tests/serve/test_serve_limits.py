"""Too much, too slow, too often: refused in words, with the service unharmed."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from serving import KEY, get, port_of, raw, serving

from costream.serve.keys import KeyRing
from costream.serve.limits import RateLimiter
from costream.serve.models import ModelParts
from costream.serve.settings import Limits, ServeSettings

SMALL = Limits(
    body_bytes=10_000, header_bytes=2000, header_s=0.5, body_s=0.5, write_s=0.5, in_flight=8
)


@pytest.fixture(scope="module")
def small(shared_index_dir: Path, tiny_model_dir: Path) -> Iterator[httpx.Client]:
    settings = ServeSettings(port=0, limits=SMALL)
    with serving(shared_index_dir, tiny_model_dir, settings) as client:
        yield client


def closes_within(client: httpx.Client, sent: bytes, seconds: float, *, drip: bytes = b"") -> float:
    """Seconds until the service closes a connection on which something was sent, then dripped."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port_of(client))) as connection:
        connection.sendall(sent)
        connection.settimeout(0.1)
        while time.monotonic() - begin < seconds:
            try:
                if drip:
                    connection.sendall(drip)
                if connection.recv(65536) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("sent", "drip"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n"),
        (b"G", b""),
        (b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n", b""),
        (
            b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 900\r\n\r\n{",
            b" ",
        ),
        # Of a body that is refused unread, no more is waited for either.
        (
            b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
            b"Content-Length: 900\r\n\r\n",
            b" ",
        ),
    ],
)
def test_a_slow_client_loses_its_connection(small: httpx.Client, sent: bytes, drip: bytes) -> None:
    assert closes_within(small, sent, 20, drip=drip) < 15
    assert small.get("health").status_code == 200


def test_a_slow_body_is_told_so(small: httpx.Client) -> None:
    answer = raw(
        small,
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 900\r\n\r\n{",
    )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


def test_a_client_that_does_not_read_loses_its_connection(
    index_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "pictures" / "red.png"
    with picture.open("ab") as stream:
        stream.write(bytes(30_000_000))  # more than all buffers on the way hold
    settings = ServeSettings(port=0, limits=SMALL)
    with serving(index_dir, tiny_model_dir, settings) as client:
        item = next(i for i in client.get("items").json()["items"] if i["name"] == "red.png")
        path = f"/{item['original']}".encode()
        with socket.create_connection(("127.0.0.1", port_of(client))) as connection:
            connection.sendall(get(path))
            time.sleep(3)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 20):
                    received += len(part)
        assert received < 30_000_000
        assert client.get("health").status_code == 200


def test_endless_headers_are_cut_off(small: httpx.Client) -> None:
    endless = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Padding: " + b"x" * 3_000_000
    begin = time.monotonic()
    with contextlib.suppress(ConnectionError):
        assert b"200" not in raw(small, endless).split(b"\r\n")[0]
    assert time.monotonic() - begin < 15
    assert small.get("health").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_100_megabytes_are_refused_without_being_kept(client: httpx.Client, chunked: bool) -> None:
    part = b" " * 1_000_000
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += len(part)
            yield part

    headers = {"Content-Type": "application/json"}
    if not chunked:
        headers["Content-Length"] = str(100 * len(part))
    before = memory_bytes()
    answer = client.post("search", content=body(), headers=headers)
    assert answer.status_code == 413
    assert "20,000,000" in answer.json()["detail"]
    assert memory_bytes() - before < 60_000_000
    assert client.get("health").status_code == 200


def memory_bytes() -> int:
    """What this process, with the service in it, holds in memory."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def test_bodies_that_are_held_are_bounded_all_together(small: httpx.Client) -> None:
    """Twenty clients that send half a body each do not fill the memory."""
    head = (
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9900\r\n\r\n"
    )
    connections = []
    try:
        for _ in range(25):
            connection = socket.create_connection(("127.0.0.1", port_of(small)))
            connections.append(connection)
            connection.sendall(head + b" " * 9000)
        answers = []
        for connection in connections:
            connection.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                answers.append(connection.recv(65536)[:13])
    finally:
        for connection in connections:
            connection.close()
    assert b"HTTP/1.1 429 " in answers
    time.sleep(0.1)
    assert small.post("search", json={"terms": [{"text": "red"}]}).status_code == 200


def test_a_bucket_of_tokens_refills_and_belongs_to_one_client() -> None:
    limiter = RateLimiter(rate_per_s=2.0, burst=3)
    assert [limiter.wait_s("a", now=0.0) for _ in range(5)] == [0, 0, 0, 1, 1]
    assert limiter.wait_s("b", now=0.0) == 0
    assert limiter.wait_s("a", now=0.6) == 0
    assert limiter.wait_s("a", now=0.6) == 1
    assert [limiter.wait_s("a", now=100.0) for _ in range(4)] == [0, 0, 0, 1]
    unlimited = RateLimiter(rate_per_s=0.0, burst=1)
    assert not any(unlimited.wait_s("a", now=0.0) for _ in range(100))


def test_each_key_has_its_own_rate(shared_index_dir: Path, tiny_model_dir: Path) -> None:
    other = "another-key-of-some-length"
    settings = ServeSettings(
        port=0, keys=KeyRing([KEY, other]), limits=Limits(rate_per_s=0.01, burst=3)
    )
    with serving(shared_index_dir, tiny_model_dir, settings) as client:
        answers = [client.get("about", headers={"X-API-Key": KEY}) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert client.get("about", headers={"X-API-Key": other}).status_code == 200


class Slow:
    """A model that takes its time."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds
        self.space = inner.space

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        time.sleep(self._seconds * len(texts))
        found: NDArray[np.float32] = self._inner.encode_texts(texts)
        return found


def slowed(seconds: float) -> Any:
    def change(parts: ModelParts) -> ModelParts:
        return replace(parts, words=Slow(parts.words, seconds))

    return change


def test_overload_is_refused_with_a_time_to_come_back(
    shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    limits = Limits(in_flight=40, waiting_items=20)
    with (
        serving(
            shared_index_dir,
            tiny_model_dir,
            ServeSettings(port=0, limits=limits),
            change=slowed(0.01),
        ) as client,
        ThreadPoolExecutor(100) as pool,
        httpx.Client(base_url=client.base_url, timeout=60) as many,
    ):

        def ask(number: int) -> httpx.Response:
            return many.get(f"search?q=word{number}")

        answers = list(pool.map(ask, range(300)))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
        # It recovers at once.
        assert client.get("search?q=after").status_code == 200


def test_a_client_that_has_gone_costs_no_work(shared_index_dir: Path, tiny_model_dir: Path) -> None:
    done: list[str] = []

    class Noting(Slow):
        def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
            done.extend(texts)
            return super().encode_texts(texts)

    def change(parts: ModelParts) -> ModelParts:
        return replace(parts, words=Noting(parts.words, 0.5))

    with serving(shared_index_dir, tiny_model_dir, change=change) as client:
        address = ("127.0.0.1", port_of(client))
        first = socket.create_connection(address)
        first.sendall(get(b"/search?q=first"))
        time.sleep(0.2)
        for number in range(5):
            with socket.create_connection(address) as stale:
                stale.sendall(get(b"/search?q=stale%d" % number))
                time.sleep(0.02)
        assert client.get("search?q=last").status_code == 200
        first.close()
    assert "last" in done
    assert not [text for text in done if text.startswith("stale")]


def test_work_that_takes_too_long_ends(shared_index_dir: Path, tiny_model_dir: Path) -> None:
    settings = ServeSettings(port=0, limits=Limits(answer_s=0.2))
    with serving(shared_index_dir, tiny_model_dir, settings, change=slowed(2.0)) as client:
        answer = client.get("search?q=slow")
        assert answer.status_code == 503
        assert "retry-after" in answer.headers


def test_a_thousand_idle_connections_leave_room(client: httpx.Client) -> None:
    address = ("127.0.0.1", port_of(client))
    idle = []
    try:
        for _ in range(400):  # twice: each is a file of this process at both of its ends
            idle.append(socket.create_connection(address))
        assert client.get("about").status_code == 200
    finally:
        for connection in idle:
            connection.close()
