"""Pictures by URL, only where the owner has allowed it, and only from the public internet.

The name is resolved once, every address it has must be public, and the connection goes to the
address that was checked: a name that resolves to something else a moment later changes nothing.
Redirects go through the same door again. Time, bytes and redirects are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from costream.serve.problems import Problem

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URL = 4096
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Ranges that carry another address inside them: the inner one decides.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet.

    Args:
        address: IPv4 or IPv6, as the resolver gives it.

    Returns:
        False for loopback, private, link-local, shared, multicast, reserved and unspecified ones,
        also when they are wrapped in IPv6.

    Example:
        >>> is_public("93.184.216.34"), is_public("169.254.169.254"), is_public("::ffff:10.0.0.1")
        (True, False, False)
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found.teredo is not None or found.is_site_local:
            return False
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, by the system's resolver.

    Args:
        host: Name or address.
        port: To connect to.

    Returns:
        Addresses.

    Raises:
        OSError: There is no such name.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetcher:
    """Fetches pictures.

    Attributes:
        max_bytes: Of an answer.
        timeout_s: For all of it, redirects included.
        max_redirects: To follow.
        ports: That may be connected to.
        allowed: Whether an address may be connected to.
        resolve: Names to addresses.
    """

    max_bytes: int
    timeout_s: float = 10.0
    max_redirects: int = 3
    ports: frozenset[int] = frozenset({80, 443})
    allowed: Callable[[str], bool] = is_public
    resolve: Resolve = resolve

    async def fetch(self, url: str) -> bytes:
        """The bytes behind a URL.

        Args:
            url: Of http or https.

        Returns:
            The body of the answer.

        Raises:
            Problem: 422 when the URL is refused, 502 when its server gives no picture, 504 when it
                is too slow.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                for _ in range(self.max_redirects + 1):
                    answer = await self._get(_split(url))
                    if isinstance(answer, bytes):
                        return answer
                    url = urljoin(url, answer)
        except TimeoutError:
            raise Problem(
                504, f"the server of the picture did not answer within {self.timeout_s:g} s"
            ) from None
        except (OSError, h11.ProtocolError) as error:
            raise Problem(
                502, f"the server of the picture gave no answer ({type(error).__name__})"
            ) from error
        raise Problem(422, f"the URL redirects more than {self.max_redirects} times")

    async def _get(self, url: SplitResult) -> bytes | str:
        """The body, or where else to look."""
        host, port = url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme]
        if port not in self.ports:
            raise Problem(422, f"got port {port} in the URL, expected one of {sorted(self.ports)}")
        address = await self._checked_address(host, port)
        secure = ssl.create_default_context() if url.scheme == "https" else None
        reader, writer = await asyncio.open_connection(
            address, port, ssl=secure, server_hostname=host if secure else None
        )
        try:
            return await self._exchange(reader, writer, url)
        finally:
            writer.close()

    async def _checked_address(self, host: str, port: int) -> str:
        try:
            addresses = await self.resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise Problem(422, "the host of the URL has no address") from error
        if not addresses or not all(self.allowed(address) for address in addresses):
            raise Problem(
                422,
                "the URL leads to an address that is not public",
                hint="send the picture itself as base64",
            )
        return addresses[0]

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: SplitResult
    ) -> bytes | str:
        connection = h11.Connection(h11.CLIENT)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        request = h11.Request(
            method="GET",
            target=target.encode("ascii"),
            headers=[
                ("Host", url.netloc),
                ("Accept", "image/*"),
                ("Accept-Encoding", "identity"),
                ("User-Agent", "costream"),
                ("Connection", "close"),
            ],
        )
        writer.write(connection.send(request) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65_536))
            elif isinstance(event, h11.Response):
                headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                if event.status_code in _REDIRECTS:
                    return _location(headers)
                self._check(event.status_code, headers)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self.max_bytes:
                    raise Problem(422, f"the picture has more than {self.max_bytes:,} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("the server closed the connection")

    def _check(self, status: int, headers: Mapping[str, str]) -> None:
        if status != 200:
            raise Problem(502, f"the server of the picture answered {status}, expected 200")
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self.max_bytes:
            raise Problem(422, f"the picture has more than {self.max_bytes:,} bytes")


def _split(url: str) -> SplitResult:
    try:
        if len(url) > _MAX_URL or not url.isascii() or any(ord(c) <= 32 or c == "\\" for c in url):
            raise ValueError
        parts = urlsplit(url)
        good = parts.scheme in _DEFAULT_PORTS and parts.hostname and parts.username is None
        _ = parts.port  # a port that is no number raises here
    except ValueError:
        good = False
    if not good:
        raise Problem(
            422,
            "got something else than a plain http or https URL",
            hint="percent-encode it, without user name and password",
        )
    return parts


def _location(headers: Mapping[str, str]) -> str:
    try:
        return headers["location"]
    except KeyError:
        raise Problem(502, "the server of the picture redirects to nowhere") from None
