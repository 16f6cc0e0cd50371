"""Who may ask, and from where: checks of a request's headers.

A service on the loopback address has no password, so any web page that its owner visits could talk
to it through the owner's browser. Two checks stop that: the name that the browser was told to call
must be ours (against DNS rebinding), and the page that calls must be our own (against forged
requests).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from http.cookies import CookieError, SimpleCookie

from costream.serve.keys import Sessions
from costream.serve.problems import Problem
from costream.serve.settings import ServeSettings, is_loopback

COOKIE = "costream_session"
HEADERS: Mapping[str, str] = {
    # Nothing from outside, nothing inline, no frame around us; blob: and data: are the pictures
    # that people drop onto the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# What shows nothing of the collection: the page itself, signs of life, the door, the description.
_OPEN_TO_ALL = frozenset({"/", "/health", "/ready", "/session", "/openapi.json"})
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?\Z")
_MAX_COOKIE = 4096

Headers = Mapping[str, list[str]]


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """Headers by their names in small letters, every value of each.

    Args:
        raw: As ASGI gives them.

    Returns:
        Names to values.
    """
    found: dict[str, list[str]] = {}
    for name, value in raw:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def check_host(headers: Headers, settings: ServeSettings) -> None:
    """Refuse requests for a name that is not ours.

    Args:
        headers: Of the request.
        settings: What our names are.

    Raises:
        Problem: 400 without exactly one `Host`, 421 with a foreign one.
    """
    values = headers.get("host", [])
    if len(values) != 1 or _AUTHORITY.match(values[0]) is None:
        raise Problem(400, f"got {len(values)} Host headers or a malformed one, expected one")
    name = _without_port(values[0])
    if not _is_ours(name, settings):
        raise Problem(
            421,
            f"this service was called {name!r}, which is not one of its names",
            hint=f"call it by its address, or start it with --allow-host {name}",
        )


def _is_ours(name: str, settings: ServeSettings) -> bool:
    if name in {settings.host.lower().strip("[]"), *(h.lower() for h in settings.allowed_hosts)}:
        return True
    if is_loopback(name):
        return True
    # A page of a foreign site cannot have an address as the name of its own site.
    return not settings.is_loopback and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _without_port(authority: str) -> str:
    match = _AUTHORITY.match(authority)
    return "" if match is None else match[1].strip("[]").lower()


def check_origin(method: str, path: str, headers: Headers) -> None:
    """Refuse requests that a page of another site makes a browser send.

    Programs send none of the headers looked at and pass.

    Args:
        method: Of the request.
        path: Of the request.
        headers: Of the request; its `Host` has been checked.

    Raises:
        Problem: 403 for a foreign page.
    """
    for origin in headers.get("origin", []):
        _, _, authority = origin.partition("://")
        if not authority or authority.lower() != headers["host"][0].lower():
            raise _foreign()
    site = headers.get("sec-fetch-site", ["none"])[0]
    if site in ("same-origin", "none"):
        return
    mode = headers.get("sec-fetch-mode", [""])[0]
    # A link on another page may open ours; it reads nothing and changes nothing.
    if not (method == "GET" and path == "/" and mode == "navigate"):
        raise _foreign()


def _foreign() -> Problem:
    return Problem(
        403,
        "the request comes from a page of another site",
        hint="open this service's own page, or send the request from a program",
    )


def owner_of(
    path: str, headers: Headers, settings: ServeSettings, sessions: Sessions
) -> str | None:
    """Who asks.

    Args:
        path: Of the request.
        headers: Of the request.
        settings: With the keys.
        sessions: Of browsers.

    Returns:
        Name of the key; None where none is needed and none was given.

    Raises:
        Problem: 401 when a key is needed and none of ours was given.
    """
    if not settings.keys:
        return None
    owner = None
    key = _sent_key(headers)
    if key is not None:
        owner = settings.keys.match(key)
    elif secret := sent_session(headers):
        owner = sessions.owner(secret)
    if owner is None and not is_open(path):
        got = "no API key" if key is None else "an unknown API key"
        raise Problem(
            401,
            f"got {got}, expected one of this service's",
            hint="send the header Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return owner


def is_open(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in _OPEN_TO_ALL or path.startswith("/web/")


def _sent_key(headers: Headers) -> str | None:
    for value in headers.get("authorization", []):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer":
            return key.strip()
    values = headers.get("x-api-key", [])
    return values[0] if values else None


def sent_session(headers: Headers) -> str | None:
    """Secret of the session that a browser's cookie names."""
    for value in headers.get("cookie", []):
        if len(value) > _MAX_COOKIE:
            continue
        try:
            morsel = SimpleCookie(value).get(COOKIE)
        except CookieError:
            continue
        if morsel is not None:
            return morsel.value
    return None
