"""The process: uvicorn around the application."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from costream.errors import ConfigError
from costream.serve.app import make_app
from costream.serve.protocol import bounded
from costream.serve.service import Service

_DRAIN_S = 30
_KEEP_ALIVE_S = 30


class Server(uvicorn.Server):
    """Answers requests to one service.

    Args:
        service: What to serve.
        started: Called with the URL, once requests are taken.

    Raises:
        ConfigError: The host and port cannot be listened at.
    """

    def __init__(self, service: Service, *, started: Callable[[str], None]) -> None:
        settings = service.settings
        self._listener = _listen(settings.host, settings.port)
        self._started = started
        config = uvicorn.Config(
            make_app(service),
            http=bounded(settings.limits),
            ws="none",
            lifespan="on",
            log_config=None,  # logging is the program's business
            access_log=False,  # it would log query strings
            server_header=False,
            proxy_headers=False,  # anybody could say to be anybody
            limit_concurrency=settings.limits.connections,
            backlog=settings.limits.connections,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        super().__init__(config)

    @property
    def url(self) -> str:
        """Where the service is."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def answer(self) -> None:
        """Answer until told to end (SIGTERM, SIGINT, `stop`); requests under way are finished."""
        with self._listener, _signals_are_the_servers():
            self.run(sockets=[self._listener])

    def stop(self) -> None:
        """Have `answer` return, from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._started(self.url)


@contextlib.contextmanager
def _signals_are_the_servers() -> Iterator[None]:
    """Keep uvicorn, which raises a signal again when all is done, from ending the process badly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # the latter of what can be no name of a machine
        reason = error.strerror if isinstance(error, OSError) else ""
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {reason or error}",
            hint="choose another --port; 0 takes a free one",
        ) from error
    return listener
