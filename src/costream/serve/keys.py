"""API keys and the sessions that stand for them in a browser."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from costream.errors import ConfigError

MIN_KEY_LENGTH = 16
_SESSION_S = 12 * 3600
_MAX_SESSIONS = 1000


class KeyRing:
    """Keys by their digests; the keys themselves are not kept.

    Comparing takes the same time whatever is compared: digests have one length, every one is
    compared to its end, and a match does not end the loop.

    Args:
        keys: Who knows one of them is let in; none lets in everybody.

    Raises:
        ConfigError: When a key is short enough to be guessed.

    Example:
        >>> ring = KeyRing(["correct-horse-battery"])
        >>> ring.matches("correct-horse-battery"), ring.matches("wrong")
        (True, False)
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        wanted = list(keys)
        for key in wanted:
            if len(key) < MIN_KEY_LENGTH:
                raise ConfigError(
                    f"an API key has {len(key)} letters, expected at least {MIN_KEY_LENGTH}",
                    hint="make one with: python3 -c 'import secrets; "
                    "print(secrets.token_urlsafe(32))'",
                )
        self._digests = tuple(dict.fromkeys(_digest(key) for key in wanted))

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"KeyRing({len(self)} keys)"

    def matches(self, key: str) -> bool:
        """Whether a key is one of ours."""
        return self.match(key) is not None

    def match(self, key: str) -> str | None:
        """A short name of a key for counting and logs, from which it cannot be found again.

        Args:
            key: As the client sent it.

        Returns:
            Eight letters, or None when the key is not ours.
        """
        given, found = _digest(key), -1
        for number, digest in enumerate(self._digests):
            # No early end: the time must not tell which key was nearly right.
            found = number if hmac.compare_digest(given, digest) else found
        return None if found < 0 else self._digests[found].hex()[:8]


class Sessions:
    """What a browser shows instead of a key: pictures on a page cannot send one."""

    def __init__(self) -> None:
        self._owners: dict[bytes, tuple[str, float]] = {}

    def begin(self, owner: str) -> str:
        """A new session.

        Args:
            owner: Name of the key, of `KeyRing.match`.

        Returns:
            The secret for the browser's cookie.
        """
        now = time.monotonic()
        self._owners = {k: v for k, v in self._owners.items() if v[1] > now}
        while len(self._owners) >= _MAX_SESSIONS:
            del self._owners[next(iter(self._owners))]
        secret = secrets.token_urlsafe(32)
        self._owners[_digest(secret)] = (owner, now + _SESSION_S)
        return secret

    def owner(self, secret: str) -> str | None:
        """Name of the key that a session stands for; None when there is no such session."""
        # Looked up by digest: how long that takes says nothing about the secret.
        owner, expires = self._owners.get(_digest(secret), ("", 0.0))
        return owner if expires > time.monotonic() else None

    def end(self, secret: str) -> None:
        """Forget a session; an unknown one is no error."""
        self._owners.pop(_digest(secret), None)


def read_keys(path: Path) -> KeyRing:
    """Keys of a file: one a line; empty lines and those that begin with # are skipped.

    Args:
        path: Of the file.

    Returns:
        The keys.

    Raises:
        ConfigError: When the file cannot be read, has no key, or a key is too short.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"the key file {path} cannot be read ({words}), expected one key a line",
            hint="check --api-key-file",
        ) from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(
            f"the key file {path} has no key, expected one a line",
            hint="python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE",
        )
    return KeyRing(keys)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
