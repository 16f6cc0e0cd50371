"""The outermost layer of the service: every request passes here first, every answer last.

It checks names, origins, keys, rates and sizes before any other code sees the request, turns what
goes wrong into problems, adds the headers that keep browsers safe, counts, and writes the log. The
log has no query strings, bodies, cookies or keys.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from costream.serve.keys import Sessions
from costream.serve.limits import BodyReader, RateLimiter
from costream.serve.metrics import Metrics
from costream.serve.problems import (
    CLIENT_GONE,
    ClientGoneError,
    Problem,
    problem_response,
    too_busy,
)
from costream.serve.security import (
    HEADERS,
    Headers,
    check_host,
    check_origin,
    owner_of,
    read_headers,
)
from costream.serve.settings import ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("costream.serve")
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_JSON = "application/json"
# Asked by machines that watch; they must get an answer when there is too much of everything else.
_NEVER_COUNTED = frozenset({"/health", "/metrics"})


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: What answers.
        settings: Names, keys, limits.
        sessions: Of browsers.
        metrics: Where to count.
    """

    def __init__(
        self, app: App, *, settings: ServeSettings, sessions: Sessions, metrics: Metrics
    ) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions
        self._metrics = metrics
        limits = settings.limits
        self._bodies = BodyReader(limits)
        self._rates = RateLimiter(rate_per_s=limits.rate_per_s, burst=limits.burst)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"got a {scope['type']} request, expected http")
        answer = _Answer(scope, send)
        begin = time.monotonic()
        try:
            await self._answer(scope, receive, answer)
        except ClientGoneError:
            answer.status = CLIENT_GONE
        except Problem as problem:
            await answer.problem(problem)
        except Exception:
            _log.exception("a defect: %s %s", scope["method"], scope["path"])
            if not answer.status:
                await answer.problem(
                    Problem(500, "a defect of this service", hint="its log has the details")
                )
        finally:
            seconds = time.monotonic() - begin
            self._metrics.count(scope, answer.status, seconds)
            _log.info(
                "%s %s %d %.1f ms", scope["method"], scope["path"], answer.status, 1e3 * seconds
            )

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = read_headers(scope["headers"])
        check_host(headers, self._settings)
        check_origin(scope["method"], scope["path"], headers)
        owner = owner_of(scope["path"], headers, self._settings, self._sessions)
        self._check_rate(scope, owner)
        if scope["path"] in _NEVER_COUNTED:
            await self._app(scope, receive, answer.send)
            return
        body = await self._body(scope, receive, headers)
        if self._in_flight >= self._settings.limits.in_flight:
            self._bodies.release(len(body))
            raise too_busy(f"{self._in_flight} requests are being answered, no more are taken")
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            await self._app(scope, _replay(body, receive), answer.send)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            self._bodies.release(len(body))

    def _check_rate(self, scope: Scope, owner: str | None) -> None:
        client = scope.get("client")
        wait_s = self._rates.wait_s(owner or (client[0] if client else ""))
        if wait_s:
            limits = self._settings.limits
            raise too_busy(
                f"more than {limits.rate_per_s:g} requests a second", retry_after_s=wait_s
            )

    async def _body(self, scope: Scope, receive: Receive, headers: Headers) -> bytes:
        announced = headers.get("content-length", ["0"])[0]
        if announced == "0" and "transfer-encoding" not in headers:
            return b""
        kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
        if kind != _JSON:
            # Also what a form of a foreign page cannot send.
            raise Problem(
                415, f"got a body of type {kind[:100]!r}, expected {_JSON}", hint="send JSON"
            )
        return await self._bodies.read(receive, announced)


class _Answer:
    """Sends, with our headers, and remembers what was said."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.status = 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name for name, _ in message.get("headers", [])}
            added = [(name, value) for name, value in _HEADERS if name not in present]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await self._send(message)

    async def problem(self, problem: Problem) -> None:
        response = problem_response(problem, openai=self._scope["path"].startswith("/v1/"))
        await response(self._scope, _nothing, self.send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then what the server says (that the client has gone)."""
    given = False

    async def once() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _nothing() -> MutableMapping[str, Any]:
    return {"type": "http.disconnect"}
