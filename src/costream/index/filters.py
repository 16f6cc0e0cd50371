"""Conditions on items: what a search may find, said alike in Python, on the command line, in HTTP.

The law is `Filter.matches`; every index gives what it gives, however it finds them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeGuard

from costream.errors import ConfigError
from costream.index.records import MODALITIES, Item
from costream.suggest import did_you_mean

FieldValue: TypeAlias = str | int | float | bool

_LARGEST_INT = 2**63 - 1
_MOST_DIGITS = 20
# What JSON takes for a number.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
# What JSON writes with a backslash.
_UNNAMEABLE = re.compile(r'["\\\x00-\x1f]')
_YEAR_OR_MONTH = re.compile(r"\d{4}(-\d{2})?")
_KEYS = ("path", "modality", "tag", "after", "before", "id")
_META = "meta."
_ABSENT = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Conditions that must all hold; one that is not given always holds.

    Attributes:
        path_prefix: The bytes of the item's path begin so. Items without a path do not match.
        modality: The item's modality is one of these.
        tags: The item has all of these tags.
        after: Seconds since 1970 UTC; the item's date, or else the time its file was modified, is
            not earlier. Items with neither do not match.
        before: The same, earlier than this.
        fields: Name to value: `meta` holds it. Dots in a name step into dictionaries. A number
            matches an equal number and nothing else, a truth value the same truth value. Text
            matches equal text, and also the number or truth value that is written so.
        ids: The item is one of these.

    Raises:
        ConfigError: A value has another type or range, is no valid Unicode, or an unknown modality.

    Example:
        >>> Filter(tags=("beach",)).matches(Item(id="a", tags=("beach", "2024")))
        True
        >>> Filter(fields={"camera.iso": 400}).matches(Item(id="a", meta={"camera": {"iso": 400}}))
        True
    """

    path_prefix: str = ""
    modality: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    after: float | None = None
    before: float | None = None
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    ids: frozenset[str] | None = None

    def __post_init__(self) -> None:
        for name in ("modality", "tags"):
            if not _is_tuple_of_text(getattr(self, name)):
                raise ConfigError(
                    f"got {name}={getattr(self, name)!r} in a filter, expected a tuple of strings"
                )
        for one in self.modality:
            if one not in MODALITIES:
                raise ConfigError(
                    f"got modality {one!r} in a filter{did_you_mean(one, MODALITIES)}, "
                    f"expected some of {', '.join(MODALITIES)}"
                )
        for name in ("after", "before"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"got {name}={value} in a filter, expected finite seconds")
        for name, value in self.fields.items():
            _check_field(name, value)
        _check_text(*self.tags, *self.fields, *filter(_is_text, self.fields.values()))
        for text in (self.path_prefix, *(self.ids or ())):
            _check_name(text)

    @property
    def is_empty(self) -> bool:
        """Whether every item matches."""
        return self == Filter()

    def matches(self, item: Item) -> bool:
        """Whether every condition holds for an item."""
        when = item.when
        return (
            (not self.path_prefix or _begins(item.path, self.path_prefix))
            and (not self.modality or item.modality in self.modality)
            and set(self.tags) <= set(item.tags)
            and (self.after is None or (when is not None and when >= self.after))
            and (self.before is None or (when is not None and when < self.before))
            and all(_equals(_found(item.meta, n), v) for n, v in self.fields.items())
            and (self.ids is None or item.id in self.ids)
        )


def parse_filter(conditions: Iterable[str]) -> Filter:
    """Read conditions written as KEY=VALUE.

    Args:
        conditions: `path=PREFIX`, `modality=NAME` (repeated: any of them), `tag=WORD` (repeated:
            all of them), `after=DATE` and `before=DATE` (a year, month, day or moment in ISO form,
            UTC unless it says otherwise; from `after` on, up to but without `before`), `id=ID`
            (repeated: any of them). Any other key is a field of the items' `meta`, as is
            `meta.KEY`, for fields named like one of the above.

    Returns:
        The filter.

    Raises:
        ConfigError: A condition has no `=`, no key or no value, a date is none, a modality is
            unknown, or a key that takes one value is repeated.

    Example:
        >>> parse_filter(["tag=beach", "after=2024-06", "camera.model=X100"]).fields
        {'camera.model': 'X100'}
    """
    given: dict[str, list[str]] = {}
    fields: dict[str, list[str]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals or not key or not value:
            raise ConfigError(
                f"got the condition {condition!r}, expected KEY=VALUE",
                hint="path=/holiday/, tag=beach, modality=video, after=2024-01-01, camera.model=X",
            )
        place = given if key in _KEYS else fields
        place.setdefault(key.removeprefix(_META), []).append(value)
    path, after, before = (_only(key, given.get(key)) for key in ("path", "after", "before"))
    return Filter(
        path_prefix=path or "",
        modality=tuple(given.get("modality", ())),
        tags=tuple(given.get("tag", ())),
        after=None if after is None else _seconds("after", after),
        before=None if before is None else _seconds("before", before),
        fields={key: _only(key, values) or "" for key, values in fields.items()},
        ids=frozenset(given["id"]) if "id" in given else None,
    )


def number_in(text: str) -> float | int | None:
    """The number that a text writes as JSON does, or None.

    Example:
        >>> number_in("400"), number_in("1e3"), number_in("007")
        (400, 1000.0, None)
    """
    written = _NUMBER.fullmatch(text)
    if written is None:
        return None
    is_whole = written[2] is None and written[3] is None
    # Python refuses to read thousands of digits, which are more than any number here has.
    if is_whole and len(text) <= _MOST_DIGITS and abs(int(text)) <= _LARGEST_INT:
        return int(text)
    value = float(text)
    return value if abs(value) <= _LARGEST_INT else None


def _is_tuple_of_text(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in value)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _check_text(*texts: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"got {text!r} in a filter, expected valid Unicode") from error


def _check_name(text: str) -> None:
    """Names of files may hold bytes that are no text, as Python writes them."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(f"got {text!r} in a filter, expected valid Unicode") from error


def _begins(path: str | None, prefix: str) -> bool:
    return path is not None and os.fsencode(path).startswith(os.fsencode(prefix))


def _check_field(name: str, value: Any) -> None:
    if not all(name.split(".")) or _UNNAMEABLE.search(name):
        raise ConfigError(
            f"got the field {name!r} in a filter, expected names with dots between them, "
            "without quotation marks, backslashes and control characters"
        )
    if not isinstance(value, str | int | float | bool):
        raise ConfigError(
            f"got {name}={value!r} in a filter, expected text, a number or a truth value"
        )
    if not isinstance(value, str) and not abs(value) <= _LARGEST_INT:
        raise ConfigError(f"got {name}={value} in a filter, expected a finite 64-bit number")


def _found(meta: Mapping[str, Any], name: str) -> Any:
    value: Any = meta
    for step in name.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return _ABSENT
        value = value[step]
    return value


def _equals(stored: Any, wanted: FieldValue) -> bool:
    if isinstance(wanted, bool) or isinstance(stored, bool):
        if isinstance(wanted, str):
            return wanted == ("true" if stored else "false")
        return stored is wanted
    if isinstance(wanted, str) and isinstance(stored, int | float):
        number = number_in(wanted)
        return number is not None and bool(stored == number)
    return isinstance(stored, str | int | float) and bool(stored == wanted)


def _only(key: str, values: list[str] | None) -> str | None:
    if values is None:
        return None
    if len(set(values)) > 1:
        raise ConfigError(
            f"got {key}={values[0]} and {key}={values[1]}, expected one value for {key}",
            hint="only tag, modality and id may be repeated",
        )
    return values[0]


def _seconds(key: str, text: str) -> float:
    whole = text
    if _YEAR_OR_MONTH.fullmatch(text):
        whole = f"{text}-01-01"[:10]
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError as error:
        raise ConfigError(
            f"got {key}={text}, expected a date such as 2024, 2024-06, 2024-06-30 or "
            "2024-06-30T12:00"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
