"""Fingerprints of weights and settings: what makes two models the same. Needs no torch.

Text and image weights are hashed apart, so that a search by words can check what it reads without
reading the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final

_LETTERS: Final = 16
_NOT_IN_A_VECTOR: Final = frozenset({"name", "dropout", "drop_path", "num_frozen_stages"})


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


def file_digest(content: bytes) -> str:
    """sha256 (hex) of a file's content."""
    return hashlib.sha256(content).hexdigest()


def join_digests(image: str, text: str) -> str:
    """The weights hash of a model from those of its two halves."""
    return hashlib.sha256(f"{image} {text}".encode()).hexdigest()[:_LETTERS]


def hash_settings(settings: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 over settings as sorted JSON."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_LETTERS]


def settings_that_count(config: object) -> dict[str, Any]:
    """What of a model's configuration decides on its vectors.

    The model's name and what matters only while training (dropout, frozen stages) are left out.
    So is what has its default value: an option that is added later, with a default that changes
    nothing, leaves the fingerprints of older models as they are.

    Args:
        config: A configuration, possibly of configurations.

    Returns:
        Option to plain value, nested.

    Example:
        >>> from costream.encoders.preprocess import TextPreprocess
        >>> settings_that_count(TextPreprocess(max_tokens=64))
        {'max_tokens': 64}
    """
    found: dict[str, Any] = {}
    if not is_dataclass(config):
        raise TypeError(f"got a {type(config).__name__}, expected a configuration")
    for field in fields(config):
        value = getattr(config, field.name)
        plain = field.default is not MISSING and value == field.default
        if plain or field.name in _NOT_IN_A_VECTOR:
            continue
        found[field.name] = settings_that_count(value) if is_dataclass(value) else value
    return found
