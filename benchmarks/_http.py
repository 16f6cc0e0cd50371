"""A client of the service that costs the machine little, so that the service is what is measured.

Connections stay open; answers need a `Content-Length`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request and what came of it.

    Attributes:
        text: What was asked.
        milliseconds: From the first byte sent to the last byte read.
        answer: The body, if the status was 200.
        error: What went wrong, else empty.
    """

    text: str
    milliseconds: float
    answer: dict[str, Any]
    error: str = ""

    @property
    def found(self) -> list[tuple[str, float]]:
        """Ids and scores."""
        return [(result["id"], result["score"]) for result in self.answer.get("results", ())]


class Connection:
    """One client: a connection that asks one question after the other."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname or "127.0.0.1", place.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def search(self, text: str) -> Call:
        """Ask; an error is a result, too."""
        begin = time.perf_counter()
        answer, error = {}, ""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status, body = await self._get(f"/search?{urlencode({'q': text})}")
            if status == 200:
                answer = json.loads(body)
            else:
                error = f"status {status}: {body[:200].decode(errors='replace')}"
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as broken:
            error = f"{type(broken).__name__}: {broken}"
            self.close()
        spent = 1e3 * (time.perf_counter() - begin)
        return Call(text=text, milliseconds=spent, answer=answer, error=error)

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    async def _get(self, target: str) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(first.split()[1]), body


async def ask_all(url: str, texts: Sequence[str], num_clients: int) -> list[Call]:
    """Ask everything, each client its next question as soon as it has an answer.

    Args:
        url: Of the service.
        texts: Questions.
        num_clients: That ask at the same time; 1 asks one after the other.

    Returns:
        One call a text, in their order.
    """
    calls: list[Call | None] = [None] * len(texts)
    waiting = iter(range(len(texts)))

    async def client() -> None:
        connection = Connection(url)
        for number in waiting:
            calls[number] = await connection.search(texts[number])
        connection.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return [call for call in calls if call is not None]
