"""The texts of a record: one string or a list of them, cleaned and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costream.errors import DataError

CAPTION_FIELDS = ("captions", "caption", "text", "sentences", "sentence", "title")
"""Where captions are looked for, in this order; the first field present is the one that counts."""


def clean_captions(value: Any, where: str) -> tuple[tuple[str, ...], int]:
    """Turn what a source calls its captions into a tuple of non-empty strings.

    Args:
        value: A string, a list of strings, or None.
        where: Place of the record, for errors.

    Returns:
        The captions without surrounding white space, in order, and how many empty ones
        (also null) were dropped.

    Raises:
        DataError: A caption is neither a string nor null, or holds half of a letter pair (a
            surrogate), which no encoder can take.

    Example:
        >>> clean_captions(["a dog ", "", None], "line 1")
        (('a dog',), 2)
    """
    values = value if isinstance(value, list | tuple) else [value]
    kept: list[str] = []
    for caption in values:
        if caption is None:
            continue
        if not isinstance(caption, str):
            raise DataError(
                f"{where}: got a caption of type {type(caption).__name__} ({caption!r:.60}), "
                "expected a string or a list of strings",
                hint="name the right field with caption_field=",
            )
        if any("\ud800" <= letter <= "\udfff" for letter in caption):
            raise DataError(
                f"{where}: got half of a surrogate pair in {caption!r:.60}, expected Unicode text",
                hint="the file was cut inside a letter when it was made: repair the caption",
            )
        if text := caption.strip():
            kept.append(text)
    return tuple(kept), len(values) - len(kept)


def clean_translations(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Turn `{"de": "ein Hund", "fr": ["un chien"]}` into slots.

    Args:
        value: Language code to a string or a list of strings; None for no translations.
        where: Place of the record, for errors.

    Returns:
        Slot name (`text.de`) to captions; languages without a caption are left out.

    Raises:
        DataError: The value is no object, or a caption is not a string.

    Example:
        >>> clean_translations({"de": "ein Hund", "cs": ""}, "line 1")
        {'text.de': ('ein Hund',)}
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: got translations of type {type(value).__name__}, "
            'expected an object like {"de": "ein Hund"}',
            hint="see the JSONL form in the guide",
        )
    slots = {}
    for language, texts in value.items():
        captions, _ = clean_captions(texts, f"{where}, language {language!r}")
        if captions:
            slots[f"text.{language}"] = captions
    return slots


def find_field(keys: Mapping[str, Any], wanted: str | None, known: tuple[str, ...]) -> str | None:
    """Choose the field of a record that holds something.

    Args:
        keys: The record.
        wanted: Field that the caller named, or None to look through the known ones.
        known: Usual names, best first.

    Returns:
        The name of the field, or None when the record has none of them.

    Example:
        >>> find_field({"title": "x", "image": "y"}, None, CAPTION_FIELDS)
        'title'
    """
    names = known if wanted is None else (wanted,)
    return next((name for name in names if name in keys), None)
