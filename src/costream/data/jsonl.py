"""Read JSONL manifests (one record a line) and JSON lists of the same records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from costream.data.captions import CAPTION_FIELDS, clean_translations, find_field
from costream.data.dataset import DataSet
from costream.data.failures import printable
from costream.data.gather import (
    Gatherer,
    ReadOptions,
    Slot,
    choose_split,
    picture_key,
    source_name,
)
from costream.errors import DataError

IMAGE_FIELDS = ("image", "file_name", "filename", "image_path", "filepath")
"""Where the picture's name is looked for, in this order."""
VIDEO_FIELDS = ("video", "video_path")
"""Where a video's name is looked for, in this order, in records that name no picture."""
_MEDIA_FIELDS = (*IMAGE_FIELDS, *VIDEO_FIELDS)


def read_jsonl(path: Path, options: ReadOptions) -> DataSet:
    """Read a manifest with one JSON object a line.

    A line holds the picture's path relative to the manifest (`image`, or another of
    `IMAGE_FIELDS`) or a video's (one of `VIDEO_FIELDS`), its captions (one of `CAPTION_FIELDS`; a
    string or a list), optionally `translations` (language code to a string or a list) and anything
    else, which becomes `meta`. Lines of the same picture are merged. With a field `split`, `split=`
    chooses.

    Args:
        path: The manifest, UTF-8.
        options: All apply.

    Returns:
        One sample a picture or video; ids are their names as written.

    Raises:
        DataError: A line is not a JSON object, lacks a picture or caption field, or more pictures
            than allowed are missing.
    """
    return read_records(path, _lines(path), options)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    shown = printable(path)
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{shown} line {number}"
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield where, parse_json(line, where)


def parse_json(raw: bytes, where: str) -> Any:
    """Parse JSON with errors that say where.

    Args:
        raw: UTF-8 text.
        where: Place of the text, for errors.

    Returns:
        The value.

    Raises:
        DataError: The bytes are not UTF-8, not JSON, or nested too deeply.

    Example:
        >>> parse_json(b'{"a": 1}', "line 1")
        {'a': 1}
    """
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start})"
    except json.JSONDecodeError as error:
        reason = f"is not JSON ({error.msg} at line {error.lineno} column {error.colno})"
    except RecursionError:
        reason = "is nested too deeply"
    raise DataError(f"{where}: {reason}, expected JSON in UTF-8", hint="repair or remove it")


def read_records(path: Path, records: Iterable[tuple[str, Any]], options: ReadOptions) -> DataSet:
    """Read records that are already parsed; the rules of `read_jsonl`.

    Args:
        path: The manifest that they come from.
        records: Place and value of each.
        options: All apply.

    Returns:
        One sample a picture.

    Raises:
        DataError: See `read_jsonl`.
    """
    folder = path.parent if options.images is None else options.images
    checked = [(where, _checked(where, record, options)) for where, record in records]
    split = _chosen_split(checked, options, printable(path))
    gatherer = Gatherer(name=source_name(path))
    for where, record in checked:
        if split is None or record.get("split") == split:
            _add(gatherer, where, record, folder, options)
    return gatherer.finish(options.allow_missing)


def _checked(where: str, record: Any, options: ReadOptions) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: got {type(record).__name__} {record!r:.60}, expected a JSON object",
            hint='write records like {"image": "a.jpg", "captions": ["a dog"]}',
        )
    for option, wanted, known in (
        ("image_field", options.image_field, _MEDIA_FIELDS),
        ("caption_field", options.caption_field, CAPTION_FIELDS),
    ):
        if find_field(record, wanted, known) is None:
            keys = ", ".join(map(repr, record)) or "no fields"
            raise DataError(
                f"{where}: has {keys}; expected {_one_of(wanted, known)}",
                hint=f"name the right field with {option}=",
            )
    return record


def _media(record: Mapping[str, Any], options: ReadOptions) -> tuple[Slot, str]:
    """What a record names, and the field that says where it is."""
    field = find_field(record, options.image_field, _MEDIA_FIELDS) or ""
    return "video" if field in VIDEO_FIELDS and options.image_field is None else "image", field


def _one_of(wanted: str | None, known: tuple[str, ...]) -> str:
    if wanted is not None:
        return f"the field {wanted!r}"
    return "one of the fields " + ", ".join(map(repr, known))


def _chosen_split(
    records: list[tuple[str, dict[str, Any]]], options: ReadOptions, shown: str
) -> str | None:
    if options.split is None:
        return None  # a manifest is usually one split already; its field is then only a remark
    found = Counter(str(record["split"]) for _, record in records if "split" in record)
    return choose_split(found, options.split, shown)


def _add(
    gatherer: Gatherer,
    where: str,
    record: Mapping[str, Any],
    folder: Path,
    options: ReadOptions,
) -> None:
    slot, field = _media(record, options)
    caption_field = find_field(record, options.caption_field, CAPTION_FIELDS) or ""
    key = picture_key(record[field], where)
    used = {field, caption_field, "translations"}
    gatherer.add(
        key,
        folder / key,
        slot=slot,
        where=where,
        captions=record[caption_field],
        translations=clean_translations(record.get("translations"), where),
        meta={name: value for name, value in record.items() if name not in used},
    )
