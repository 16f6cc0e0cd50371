"""Fingerprints of weights and settings: what makes two models the same. Needs no torch.

Text and image weights are hashed apart, so that a search by words can check what it reads without
reading the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

_LETTERS: Final = 16


def is_text_weight(name: str) -> bool:
    """Whether a weight of this name is needed to embed texts."""
    return name.startswith(("text.", "text_projection."))


def digest_arrays(arrays: Iterable[tuple[str, bytes | memoryview]]) -> str:
    """sha256 (hex) over names and raw values, independent of the order."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays, key=lambda pair: pair[0]):
        digest.update(name.encode() + b"\0")
        digest.update(values)
    return digest.hexdigest()


def join_digests(image: str, text: str) -> str:
    """The weights hash of a model from those of its two halves."""
    return hashlib.sha256(f"{image} {text}".encode()).hexdigest()[:_LETTERS]


def hash_settings(settings: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 over settings as sorted JSON."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_LETTERS]
