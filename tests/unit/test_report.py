"""A report says the same as JSON, record and table, and has no number without a definition."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from costream.errors import DataError
from costream.evaluate import report_from_json, report_table, report_to_json
from costream.records import Report

REPORT = Report(
    metrics={
        "image_to_text": {"hit@1": 39.0, "hit@5": 66.5, "hit@10": 78.1, "median_rank": 2.0},
        "text_to_image": {"hit@1": 29.04, "hit@5": 57.0, "hit@10": 69.9, "median_rank": 4.0},
    },
    definitions={name: f"about {name}" for name in ("hit@1", "hit@5", "hit@10", "median_rank")},
    data={"hash": "ab" * 32, "images": 1000, "captions": 5000},
    model={"name": "m", "weights_hash": "0123"},
)


def test_json_has_exactly_the_published_form() -> None:
    values = report_to_json(REPORT)
    assert list(values) == [
        "image_to_text",
        "text_to_image",
        "definitions",
        "data",
        "model",
        "tie_rule",
    ]
    for direction in ("image_to_text", "text_to_image"):
        assert list(values[direction]) == ["hit@1", "hit@5", "hit@10", "median_rank"]
    assert set(values["data"]) == {"hash", "images", "captions"}
    assert values["tie_rule"] == "expected"


def test_there_and_back_through_text_is_the_same_report() -> None:
    assert report_from_json(json.loads(json.dumps(report_to_json(REPORT)))) == REPORT


def test_a_metric_without_definition_is_refused_both_ways() -> None:
    with pytest.raises(DataError, match="metric 'f1' has no definition"):
        report_to_json(Report(metrics={"a": {"f1": 1.0}}, definitions={}, data={}, model={}))
    values = report_to_json(REPORT)
    del values["definitions"]["hit@5"]
    with pytest.raises(DataError, match="'hit@5' has no definition"):
        report_from_json(values)


def test_a_direction_cannot_hide_another_part() -> None:
    with pytest.raises(DataError, match="a direction is called 'data'"):
        report_to_json(Report(metrics={"data": {}}, definitions={}, data={}, model={}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_rule": 3}, "tie_rule is 3"),
        ({"data": []}, "'data' in the report is list"),
        ({"image_to_text": 5}, "'image_to_text' in the report is int"),
        ({"image_to_text": {"hit@1": "39"}}, "'hit@1' of 'image_to_text' is '39'"),
        ({"image_to_text": {"hit@1": True}}, "expected a number"),
    ],
)
def test_json_of_another_form_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        report_from_json(report_to_json(REPORT) | change)


def test_absent_parts_are_all_named() -> None:
    with pytest.raises(DataError, match="lacks 'definitions', 'model'"):
        report_from_json({"data": {}, "tie_rule": "expected"})


def test_the_table_shows_every_number_definition_and_left_out_file() -> None:
    out = io.StringIO()
    data = dict(REPORT.data) | {"broken": [{"path": "x.jpg", "reason": "is empty"}]}
    report = Report(
        metrics=REPORT.metrics, definitions=REPORT.definitions, data=data, model=REPORT.model
    )
    Console(file=out, width=120).print(report_table(report))
    text = out.getvalue()
    for part in ("39.0", "29.0", "hit@10", "median rank", "about hit@5", "1000 images", "expected"):
        assert part in text
    assert "x.jpg: is empty" in text
    assert "abababababab" in text
