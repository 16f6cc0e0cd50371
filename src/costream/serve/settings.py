"""What a service may do and how much of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from costream.errors import ConfigError
from costream.serve.keys import KeyRing


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much one client may ask for. Every number is a bound, none a target.

    Attributes:
        body_bytes: Of a request.
        header_bytes: Of all headers of a request.
        header_s: Until the headers of a request have come.
        body_s: Until its body has come.
        write_s: That a client may leave an answer unread.
        answer_s: That work for one answer may take.
        in_flight: Requests worked on at the same time.
        connections: Open at the same time.
        rate_per_s: Requests a second of one client, lasting; 0 is no bound.
        burst: Requests of one client that may come at once.
        pixels: Of a picture that is sent.
        picture_file_bytes: Of an indexed file that a thumbnail is made of.
        waiting_items: Texts, and as many pictures, that may wait for the model.
    """

    body_bytes: int = 20_000_000
    header_bytes: int = 32_768
    header_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    answer_s: float = 30.0
    in_flight: int = 256
    connections: int = 2000
    rate_per_s: float = 0.0
    burst: int = 400
    pixels: int = 50_000_000
    picture_file_bytes: int = 250_000_000
    waiting_items: int = 1024

    def __post_init__(self) -> None:
        """Refuse what would let nothing pass."""
        for name in ("body_bytes", "header_bytes", "in_flight", "connections", "burst", "pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"the limit {name} is {getattr(self, name)}, expected at least 1")
        if self.rate_per_s < 0:
            raise ConfigError(f"the limit rate_per_s is {self.rate_per_s}, expected at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """How a service is reached, and by whom.

    Attributes:
        host: Address or name to listen at.
        port: 0 lets the system choose.
        keys: Who may ask; without keys only this machine may.
        allowed_hosts: Further names that clients may call the service by.
        allow_fetch: Whether pictures may be named by URL.
        kernel: What scans the vectors, as of `Index.open`; None to go by size.
        limits: How much a client may ask for.

    Raises:
        ConfigError: When other machines could reach a service without keys.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: KeyRing = field(default_factory=KeyRing)
    allowed_hosts: tuple[str, ...] = ()
    allow_fetch: bool = False
    kernel: str | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse an open door."""
        if not self.is_loopback and not self.keys:
            raise ConfigError(
                f"the host {self.host!r} can be reached by other machines, expected API keys",
                hint="give --api-key-file FILE with one key a line, or leave --host out",
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"the port is {self.port}, expected 0 to 65535")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def shows_paths(self) -> bool:
        """Whether answers may name files: only to the owner, on this machine, without keys."""
        return self.is_loopback and not self.keys


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and no other can reach it.

    Args:
        host: Name or address, without port.

    Returns:
        True for `localhost` and loopback addresses.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
