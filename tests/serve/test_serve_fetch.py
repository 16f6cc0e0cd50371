"""Pictures by URL: off unless allowed, and then nothing that is not public is ever connected to."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from PIL import Image
from serving import serving

from costream.serve.fetch import Fetcher, is_public, resolve
from costream.serve.problems import Problem
from costream.serve.settings import ServeSettings

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 30), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",  # noqa: S104
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.9",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "nonsense",
        "",
    ],
)
def test_what_is_not_public_is_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111"])
def test_what_is_public_is_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "gopher://example.org/",
        "data:image/png;base64,AAAA",
        "//example.org/a.png",
        "/etc/passwd",
        "http://",
        "http:///a.png",
        "http://user:password@example.org/a.png",
        "http://example.org\\@127.0.0.1/",
        "http://example.org/a b.png",
        "http://example.org/\r\nHost: x",
        "http://example.org:99999/",
        "http://example.org:abc/",
        "http://[::1/",
        "http://exämple.org/",
        "http://example.org/" + "a" * 5000,
        "",
    ],
)
def test_only_plain_urls_are_taken(url: str) -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(Fetcher(max_bytes=1000).fetch(url))
    assert refused.value.status == 422


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/",
    ],
)
def test_this_machine_is_not_reached_however_it_is_written(url: str) -> None:
    with pytest.raises(Problem, match=r"not public|no address") as refused:
        asyncio.run(Fetcher(max_bytes=1000, timeout_s=5).fetch(url))
    assert refused.value.status == 422


def test_other_ports_are_refused() -> None:
    for port in (22, 25, 6379, 8080):
        with pytest.raises(Problem, match=f"port {port}"):
            asyncio.run(Fetcher(max_bytes=1000).fetch(f"http://93.184.216.34:{port}/"))


# --- against servers on this machine: 127.0.0.1 stands for the public internet, 127.0.0.2 for what
# --- is behind the wall ---


@dataclass
class Fake:
    """A server that notes who came."""

    handle: Handle
    visits: int = 0
    port: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            await self.handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def fake(handle: Handle, address: str = "127.0.0.1") -> AsyncIterator[Fake]:
    made = Fake(handle)
    server = await asyncio.start_server(made, address, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def answers(content: bytes, *headers: str, status: str = "200 OK") -> Handle:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()

    return handle


def fetcher(*servers: Fake, max_bytes: int = 100_000, timeout_s: float = 20.0) -> Fetcher:
    return Fetcher(
        max_bytes=max_bytes,
        timeout_s=timeout_s,
        ports=frozenset(server.port for server in servers),
        allowed=lambda address: address == "127.0.0.1",
    )


def test_a_picture_is_fetched() -> None:
    async def go() -> None:
        content = picture()
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        for handle in (
            answers(content, f"Content-Length: {len(content)}"),
            answers(content),
            answers(chunked, "Transfer-Encoding: chunked"),
        ):
            async with fake(handle) as server:
                url = f"http://127.0.0.1:{server.port}/a.png?x=1"
                assert await fetcher(server).fetch(url) == content

    asyncio.run(go())


def test_redirects_pass_the_same_door() -> None:
    async def go() -> None:
        async with fake(answers(b"secret", "Content-Length: 6"), "127.0.0.2") as inner:
            to_inner = f"Location: http://127.0.0.2:{inner.port}/"
            async with fake(answers(b"", to_inner, status="302 Found")) as outer:
                with pytest.raises(Problem, match="not public"):
                    await fetcher(inner, outer).fetch(f"http://127.0.0.1:{outer.port}/")
            for place in ("file:///etc/passwd", "gopher://127.0.0.1/", "http://[::1]/"):
                bad = answers(b"", f"Location: {place}", status="301 Moved")
                async with fake(bad) as outer:
                    with pytest.raises(Problem):
                        await fetcher(inner, outer).fetch(f"http://127.0.0.1:{outer.port}/")
            assert inner.visits == 0
        content = picture()
        async with fake(answers(content, f"Content-Length: {len(content)}")) as target:
            relative = f"Location: //127.0.0.1:{target.port}/b.png"
            async with fake(answers(b"", relative, status="307 Moved")) as outer:
                url = f"http://127.0.0.1:{outer.port}/"
                assert await fetcher(target, outer).fetch(url) == content

    asyncio.run(go())


def test_redirects_in_a_circle_end() -> None:
    async def go() -> None:
        async with fake(answers(b"", "Location: /again", status="302 Found")) as server:
            with pytest.raises(Problem, match="more than 3 times"):
                await fetcher(server).fetch(f"http://127.0.0.1:{server.port}/")
            assert server.visits == 4

    asyncio.run(go())


def test_a_name_that_changes_its_address_changes_nothing() -> None:
    """DNS rebinding: public when it is looked at, private a moment later."""
    asked: list[str] = []

    async def turncoat(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async def two_faced(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "127.0.0.2"]

    async def go() -> None:
        content = picture()
        async with (
            fake(answers(content, f"Content-Length: {len(content)}")) as public,
            fake(answers(b"secret"), "127.0.0.2") as private,
        ):
            url = f"http://photos.example:{public.port}/"
            one = replace(fetcher(public, private), resolve=turncoat)
            # Resolved once, and connected to what was checked.
            assert await one.fetch(url) == content
            assert asked == ["photos.example"]
            with pytest.raises(Problem, match="not public"):
                await one.fetch(url)
            with pytest.raises(Problem, match="not public"):
                await replace(one, resolve=two_faced).fetch(url)
            assert private.visits == 0

    asyncio.run(go())


def test_the_resolver_of_the_system_is_asked() -> None:
    found = set(asyncio.run(resolve("localhost", 80)))
    assert found
    assert found <= {"127.0.0.1", "::1"}
    with pytest.raises(Problem, match="no address"):
        asyncio.run(Fetcher(max_bytes=10).fetch("http://no-such-name.invalid/"))


def test_a_server_that_sends_without_end_is_left() -> None:
    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async def go() -> None:
        async with fake(endless) as server:
            with pytest.raises(Problem, match="more than 100,000 bytes"):
                await fetcher(server).fetch(f"http://127.0.0.1:{server.port}/")
        async with fake(answers(b"", "Content-Length: 10000000000")) as server:
            with pytest.raises(Problem, match="more than 100,000 bytes"):
                await fetcher(server).fetch(f"http://127.0.0.1:{server.port}/")
        async with fake(answers(b"", "X-Long: " + "x" * 1_000_000)) as server:
            with pytest.raises(Problem) as refused:
                await fetcher(server).fetch(f"http://127.0.0.1:{server.port}/")
            assert refused.value.status == 502

    asyncio.run(go())


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n\x89"])
def test_a_server_that_drips_is_left(begin: bytes) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(b"X")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def go() -> None:
        async with fake(drip) as server:
            with pytest.raises(Problem) as refused:
                await fetcher(server, timeout_s=0.5).fetch(f"http://127.0.0.1:{server.port}/")
            assert refused.value.status == 504

    asyncio.run(go())


@pytest.mark.parametrize(
    "content",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b""],
)
def test_a_server_that_gives_no_picture_is_told_of(content: bytes) -> None:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    async def go() -> None:
        async with fake(handle) as server:
            with pytest.raises(Problem) as refused:
                await fetcher(server).fetch(f"http://127.0.0.1:{server.port}/")
            assert refused.value.status == 502
        with pytest.raises(Problem) as refused:  # nobody there
            await fetcher(server).fetch(f"http://127.0.0.1:{server.port}/")
        assert refused.value.status == 502

    asyncio.run(go())


def test_the_service_fetches_only_when_allowed(
    client: httpx.Client, shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    body = {"terms": [{"url": "http://127.0.0.1/a.png"}]}
    assert "fetches nothing" in client.post("search", json=body).json()["detail"]
    settings = ServeSettings(port=0, allow_fetch=True)
    with serving(shared_index_dir, tiny_model_dir, settings) as allowed:
        refused = allowed.post("search", json=body)
        assert refused.status_code == 422
        assert "not public" in refused.json()["detail"]
