"""A filter as SQL over the columns of `items`."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import Any

from costream.index import check, rows
from costream.index.filters import FieldValue, Filter, number_in
from costream.index.rows import TAG_MARK


def condition(connection: sqlite3.Connection, where: Filter) -> tuple[str, list[Any]]:
    """SQL that holds for an item exactly when the filter does, with its values.

    Args:
        connection: In the transaction that the condition is for.
        where: The filter.
    """
    parts: list[str] = ["1"]
    values: list[Any] = []

    def hold(part: str, *given: Any) -> None:
        parts.append(part)
        values.extend(given)

    if where.ids is not None:
        keys = rows.select_by_id(connection, map(check.encoded_id, where.ids))
        hold("key IN (SELECT value FROM json_each(?))", json.dumps(sorted(keys)))
    if where.path_prefix:
        first = os.fsencode(where.path_prefix)
        hold("path >= ?", first)
        if last := _following(first):
            hold("path < ?", last)
    if where.modality:
        hold(f"modality IN ({', '.join('?' * len(where.modality))})", *where.modality)
    for tag in where.tags:
        hold("0" if TAG_MARK in tag else "instr(tags, ?) > 0", *_marked(tag))
    if where.after is not None:
        hold("dated >= ?", float(where.after))
    if where.before is not None:
        hold("dated < ?", float(where.before))
    for name, value in where.fields.items():
        place = "$" + "".join(f'."{step}"' for step in name.split("."))
        hold(*_field(place, value))
    return " AND ".join(parts), values


def _following(prefix: bytes) -> bytes:
    """The first bytes after everything that begins so; empty when there are none."""
    shorter = prefix.rstrip(b"\xff")
    return shorter[:-1] + bytes([shorter[-1] + 1]) if shorter else b""


def _marked(tag: str) -> list[str]:
    return [] if TAG_MARK in tag else [TAG_MARK + tag + TAG_MARK]


def _field(place: str, value: FieldValue) -> tuple[str, ...]:
    """A condition on one place in `meta`, followed by its values."""
    if isinstance(value, bool):
        return "json_type(meta, ?) = ?", place, json.dumps(value)
    if not isinstance(value, str):
        return _number(place, json.dumps(value))
    part = "(json_type(meta, ?) = 'text' AND json_extract(meta, ?) = ?)"
    if number_in(value) is not None:
        also, *more = _number(place, value)
        return f"({part} OR {also})", place, place, value, *more
    if value in ("true", "false"):
        return f"({part} OR json_type(meta, ?) = ?)", place, place, value, place, value
    return part, place, place, value


def _number(place: str, written: str) -> tuple[str, ...]:
    # Both numbers are read by SQLite, whose last digit may differ from Python's.
    part = (
        "(json_type(meta, ?) IN ('integer', 'real') "
        "AND json_extract(meta, ?) = json_extract(?, '$'))"
    )
    return part, place, place, written
