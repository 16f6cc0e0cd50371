"""Ids of items as URLs carry them: letters, digits, `-` and `_`, nothing a path could be made of.

For the owner on this machine they are the base64url of the id. For everyone else they are sealed,
because the id of an indexed picture is its path, and paths are not theirs to know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

_TAG_BYTES = 12
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\Z")
MAX_TOKEN = 12_000
"""Letters of the longest token; a path has at most 4,096 bytes on Linux."""


class PublicIds:
    """Ids to tokens and back.

    Sealing is deterministic, so that links keep their meaning: the tag of the id, by HMAC, is the
    nonce of the key stream that hides it, and tells on the way back whether it was made here.

    Args:
        secret: Seals the ids; None leaves them readable.

    Example:
        >>> ids = PublicIds(None)
        >>> ids.token("/a b.jpg")
        'L2EgYi5qcGc'
        >>> ids.id("L2EgYi5qcGc")
        '/a b.jpg'
        >>> sealed = PublicIds(b"secret")
        >>> sealed.id(sealed.token("/a b.jpg"))
        '/a b.jpg'
    """

    def __init__(self, secret: bytes | None) -> None:
        self._secret = secret

    def token(self, item_id: str) -> str:
        """What stands for an id in URLs and answers."""
        raw = item_id.encode("utf-8", "surrogateescape")
        if self._secret is not None:
            tag = self._tag(raw)
            raw = tag + _xor(raw, self._stream(tag, len(raw)))
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")

    def id(self, token: str) -> str | None:
        """The id behind a token; None when no id has this token."""
        if not 0 < len(token) <= MAX_TOKEN or _SHAPE.match(token) is None:
            return None
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except binascii.Error:
            return None
        if self._secret is not None:
            tag, hidden = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
            raw = _xor(hidden, self._stream(tag, len(hidden)))
            if not hmac.compare_digest(tag, self._tag(raw)):
                return None
        return raw.decode("utf-8", "surrogateescape")

    def _tag(self, raw: bytes) -> bytes:
        return hmac.digest(self._secret or b"", raw, "sha256")[:_TAG_BYTES]

    def _stream(self, tag: bytes, length: int) -> bytes:
        return hashlib.shake_256((self._secret or b"") + b"stream" + tag).digest(length)


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
