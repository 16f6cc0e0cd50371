"""A report as JSON for programs and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from costream.errors import DataError
from costream.records import Report

if TYPE_CHECKING:
    from rich.console import Group

_PARTS = ("definitions", "data", "model", "tie_rule")


def report_to_json(report: Report) -> dict[str, Any]:
    """The report as plain values: one key a direction, then what is needed to believe it.

    Args:
        report: Any report.

    Returns:
        `{"image_to_text": {metric: value}, "text_to_image": {...}, "definitions": {...},
        "data": {...}, "model": {...}, "tie_rule": ...}`; rates in percent.

    Raises:
        DataError: When a metric has no definition, or a direction has the name of another part.

    Example:
        >>> report = Report(
        ...     metrics={"text_to_image": {"hit@1": 50.0}},
        ...     definitions={"hit@1": "Share of ..."},
        ...     data={"hash": "", "images": 2, "captions": 2},
        ...     model={"name": "m"},
        ... )
        >>> report_to_json(report)["text_to_image"]
        {'hit@1': 50.0}
    """
    for direction, values in report.metrics.items():
        if direction in _PARTS:
            raise DataError(f"a direction is called {direction!r}", hint="call it something else")
        undefined = sorted(set(values) - set(report.definitions))
        if undefined:
            raise DataError(
                f"metric {undefined[0]!r} has no definition, expected one for every metric",
                hint="a number without a definition means nothing",
            )
    directions = {name: dict(values) for name, values in report.metrics.items()}
    return directions | {
        "definitions": dict(report.definitions),
        "data": dict(report.data),
        "model": dict(report.model),
        "tie_rule": report.tie_rule,
    }


def report_from_json(values: Mapping[str, Any]) -> Report:
    """The report that `report_to_json` made these values of.

    Args:
        values: As decoded from JSON.

    Returns:
        The report.

    Raises:
        DataError: When a part is absent or of another form, or a metric has no definition.

    Example:
        >>> report_from_json({})
        Traceback (most recent call last):
        costream.errors.DataError: the report lacks 'definitions', ...
    """
    absent = [part for part in _PARTS if part not in values]
    if absent:
        raise DataError(
            f"the report lacks {', '.join(map(repr, absent))}, expected {', '.join(_PARTS)} and "
            "the metrics of each direction",
            hint="write it again with report_to_json",
        )
    if not isinstance(values["tie_rule"], str):
        raise DataError(f"tie_rule is {values['tie_rule']!r}, expected text", hint="write it again")
    metrics = {
        name: {
            metric: _number(name, metric, value) for metric, value in _mapping(name, part).items()
        }
        for name, part in values.items()
        if name not in _PARTS
    }
    report = Report(
        metrics=metrics,
        definitions=_mapping("definitions", values["definitions"]),
        data=_mapping("data", values["data"]),
        model=_mapping("model", values["model"]),
        tie_rule=values["tie_rule"],
    )
    report_to_json(report)
    return report


def report_table(report: Report) -> Group:
    """The report as something that `rich` prints: one row a direction, one column a metric.

    Args:
        report: Any report.

    Returns:
        A renderable for `rich.console.Console.print`.

    Example:
        >>> from rich.console import Console
        >>> report = Report(
        ...     metrics={"text_to_image": {"hit@1": 50.0}},
        ...     definitions={"hit@1": "Share of ..."},
        ...     data={"hash": "", "images": 2, "captions": 2},
        ...     model={"name": "m"},
        ... )
        >>> Console(width=60).print(report_table(report))  # doctest: +ELLIPSIS
        m on 2 images, 2 captions...
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    columns = list(dict.fromkeys(metric for values in report.metrics.values() for metric in values))
    for metric in columns:
        table.add_column(metric.replace("_", " "), justify="right")
    for direction, values in report.metrics.items():
        cells = [f"{values[metric]:.1f}" if metric in values else "" for metric in columns]
        table.add_row(direction.replace("_", " "), *cells)
    lines = [f"{metric}: {sentence}" for metric, sentence in report.definitions.items()]
    for what in ("broken", "missing"):
        for each in report.data.get(what, ()):
            lines.append(f"{what}: {each['path']}: {each['reason']}")
    return Group(Text(_headline(report)), table, Text("\n".join(lines), style="dim"))


def _headline(report: Report) -> str:
    data = report.data
    keys = ("images", "videos", "captions")
    counts = ", ".join(f"{data[key]} {key}" for key in keys if key in data)
    return (
        f"{report.model.get('name', 'a model')} on {counts} "
        f"(data {str(data.get('hash', ''))[:12]}, ties {report.tie_rule})"
    )


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{name!r} in the report is {type(value).__name__}, expected names with values",
            hint="write it again with report_to_json",
        )
    return dict(value)


def _number(direction: str, metric: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"{metric!r} of {direction!r} is {value!r}, expected a number",
            hint="write it again with report_to_json",
        )
    return float(value)
