"""How fast and how much: a bucket of tokens for each client, and bodies read with bounds."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from costream.serve.problems import ClientGoneError, Problem, too_busy
from costream.serve.settings import Limits

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]

_MAX_CLIENTS = 10_000


class RateLimiter:
    """At most `burst` requests of one client at once, and `rate_per_s` lasting.

    Args:
        rate_per_s: Tokens that come back each second; 0 limits nothing.
        burst: Most tokens of a client.

    Example:
        >>> limiter = RateLimiter(rate_per_s=1.0, burst=2)
        >>> [limiter.wait_s("me", now=0.0) for _ in range(3)]
        [0, 0, 1]
    """

    def __init__(self, *, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, *, now: float | None = None) -> int:
        """Take a token.

        Args:
            client: Who asks.
            now: Seconds of a clock that never goes back; None for the machine's.

        Returns:
            0 when a token was there, else whole seconds until one will be.
        """
        if self._rate_per_s <= 0:
            return 0
        now = time.monotonic() if now is None else now
        tokens, then = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(tokens + (now - then) * self._rate_per_s, float(self._burst))
        allowed = tokens >= 1.0
        self._buckets[client] = (tokens - allowed, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)  # who has not asked for longest
        return 0 if allowed else max(1, math.ceil((1.0 - tokens) / self._rate_per_s))


class BodyReader:
    """Reads bodies of requests, bounded one by one and all together.

    Args:
        limits: The bounds; all bodies together may be as large as 16 of the largest.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies that are held now."""
        return self._held_bytes

    async def read(self, receive: Receive, announced: str) -> bytes:
        """Read one body; `release` it afterwards.

        Args:
            receive: Of ASGI.
            announced: The header `Content-Length`, or "0".

        Returns:
            The body.

        Raises:
            Problem: 413 too large, 408 too slow, 429 too many at once.
            ClientGoneError: It has.
        """
        limit = self._limits.body_bytes
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise _too_large(limit, f"{int(announced[:20]):,}")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    part = message.get("body", b"")
                    body += part
                    self._held_bytes += len(part)
                    if len(body) > limit:
                        raise _too_large(limit, "more")
                    if self._held_bytes > 16 * limit:
                        raise too_busy("too many large requests at once")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            self.release(len(body))
            raise Problem(
                408,
                f"the body had not come after {self._limits.body_s:g} s "
                f"({len(body):,} bytes had), expected it by then",
                headers={"Connection": "close"},
            ) from None
        except BaseException:
            self.release(len(body))
            raise

    def release(self, num_bytes: int) -> None:
        """Note that bytes are held no longer."""
        self._held_bytes -= num_bytes


def _too_large(limit: int, got: str) -> Problem:
    return Problem(
        413,
        f"the request has {got} bytes, expected at most {limit:,}",
        hint="make the picture smaller: 512 pixels are more than the model sees",
    )
