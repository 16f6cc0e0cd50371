"""HTTP on a connection, with bounds on time and size that uvicorn leaves to a proxy.

A client that sends its headers or body a letter at a time, never sends them, sends endless headers,
or does not read its answer, loses its connection. Without this it would hold one for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from costream.serve.settings import Limits


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with deadlines; `bounded` makes the class for given limits."""

    limits = Limits()

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come: its headers must follow."""
        super().connection_made(transport)
        self.access_log = False  # it has query strings, and any handler on the root revives it
        self._expect_within(self.limits.header_s)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; they count while they are headers."""
        if self._in_head:
            self._head_bytes += len(data)
            # A body that arrives with its headers may make the first packet longer than that.
            if self._head_bytes > self.limits.header_bytes + len(data) * (b"\r\n\r\n" in data):
                self.transport.abort()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._expect_within(self.limits.header_s)

    def on_headers_complete(self) -> None:
        """The headers are there; the body must follow."""
        self._in_head = False
        self._expect_within(self.limits.body_s + 1.0)  # whoever answers may say it nicer before
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._expect_nothing()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._cancel_stalled()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._expect_nothing()
        self._cancel_stalled()
        super().connection_lost(exc)

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cancel_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def bounded(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol with limits, as uvicorn's option `http` takes it.

    Args:
        limits: Its deadlines and sizes.

    Returns:
        A class.
    """
    members: dict[str, Any] = {"limits": limits}
    return type("LimitedProtocol", (BoundedProtocol,), members)
