"""Laws: every condition must hold; what cannot be meant is refused; text means text."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from costream.errors import ConfigError
from costream.index import Filter, Item, open_index, parse_filter

NOON = datetime(2024, 6, 30, 12, tzinfo=UTC).timestamp()
PHOTO = Item(
    id="/holiday/sea.jpg",
    path="/holiday/sea.jpg",
    mtime_ns=10**9,
    date=NOON,
    tags=("beach", "2024"),
    meta={"camera": {"model": "X100", "iso": 400, "flash": False}, "roll": "007", "none": None},
)


@pytest.mark.parametrize(
    "where",
    [
        Filter(),
        Filter(path_prefix="/holiday/"),
        Filter(modality=("video", "image")),
        Filter(tags=("beach",)),
        Filter(tags=("2024", "beach")),
        Filter(after=NOON),
        Filter(before=NOON + 1),
        Filter(fields={"camera.model": "X100", "camera.iso": 400}),
        Filter(fields={"camera.iso": "400"}),
        Filter(fields={"camera.iso": "4e2"}),
        Filter(fields={"camera.iso": 400.0}),
        Filter(fields={"camera.flash": False}),
        Filter(fields={"camera.flash": "false"}),
        Filter(fields={"roll": "007"}),
        Filter(ids=frozenset({"x", "/holiday/sea.jpg"})),
    ],
)
def test_matches(where: Filter) -> None:
    assert where.matches(PHOTO)


@pytest.mark.parametrize(
    "where",
    [
        Filter(path_prefix="/work/"),
        Filter(modality=("video",)),
        Filter(tags=("beach", "sun")),
        Filter(tags=("Beach",)),
        Filter(after=NOON + 1),
        Filter(before=NOON),
        Filter(fields={"camera": "X100"}),
        Filter(fields={"camera.model.year": 1}),
        Filter(fields={"camera.lens": ""}),
        Filter(fields={"camera.iso": True}),
        Filter(fields={"camera.flash": 0}),
        Filter(fields={"camera.flash": "0"}),
        Filter(fields={"roll": 7}),
        Filter(fields={"roll": "7"}),
        Filter(fields={"camera.iso": "4" * 5000}),
        Filter(fields={"none": "null"}),
        Filter(ids=frozenset()),
        Filter(tags=("beach",), modality=("video",)),
    ],
)
def test_does_not_match(where: Filter) -> None:
    assert not where.matches(PHOTO)


def test_a_date_falls_back_to_the_files_time_and_an_item_without_either_has_no_date() -> None:
    assert Filter(after=1, before=2).matches(replace(PHOTO, date=None))
    nothing = replace(PHOTO, date=None, mtime_ns=0)
    assert not Filter(after=-1e12).matches(nothing)
    assert not Filter(before=1e12).matches(nothing)
    assert not Filter(path_prefix="/").matches(replace(PHOTO, path=None))


def test_conditions_are_read_as_they_are_written() -> None:
    where = parse_filter(
        "path=/a b/=,tag=x,tag=y,modality=video,modality=audio,after=2024,id=1,id=2,"
        "before=2024-06-30T12:00,camera.model=X=1,meta.tag=z,iso=4".split(",")
    )
    assert where == Filter(
        path_prefix="/a b/=",
        tags=("x", "y"),
        modality=("video", "audio"),
        after=datetime(2024, 1, 1, tzinfo=UTC).timestamp(),
        before=NOON,
        ids=frozenset({"1", "2"}),
        fields={"camera.model": "X=1", "tag": "z", "iso": "4"},
    )
    assert parse_filter([]).is_empty
    assert parse_filter(["after=2024-06"]).after == datetime(2024, 6, 1, tzinfo=UTC).timestamp()
    assert parse_filter(["after=2024-06-30T14:00+02:00"]).after == NOON


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("beach", "'beach', expected KEY=VALUE"),
        ("=beach", "expected KEY=VALUE"),
        ("tag=", "expected KEY=VALUE"),
        ("after=soon", "after=soon, expected a date"),
        ("after=2024-13", "expected a date"),
        ("modality=vide", "did you mean 'video'"),
        ("a..b=1", "names with dots"),
        ('a"b=1', "without quotation marks"),
    ],
)
def test_what_is_no_condition_is_refused(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_filter([condition])


def test_two_values_for_one_key_are_refused() -> None:
    with pytest.raises(ConfigError, match="path=/a and path=/b, expected one"):
        parse_filter(["path=/a", "path=/b"])
    with pytest.raises(ConfigError, match="iso=1 and iso=2, expected one"):
        parse_filter(["iso=1", "meta.iso=2"])
    assert parse_filter(["path=/a", "path=/a"]) == Filter(path_prefix="/a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tags": "beach"},
        {"modality": ["image"]},
        {"after": float("nan")},
        {"before": float("inf")},
        {"fields": {"a": None}},
        {"fields": {"a": float("nan")}},
        {"fields": {"a": 2**70}},
        {"fields": {"": 1}},
    ],
)
def test_a_filter_of_the_wrong_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="in a filter, expected"):
        Filter(**wrong)


def test_open_index_takes_a_directory_and_refuses_other_addresses(tmp_path: Path) -> None:
    with open_index(tmp_path / "index", create=True) as index:
        assert len(index) == 0
    with pytest.raises(ConfigError, match="expected a directory or postgresql://"):
        open_index("mysql://user:secret@host/db")
