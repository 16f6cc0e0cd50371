"""Results of claims on disk, and one page that shows them all."""

from __future__ import annotations

import html
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costream.card import Card
from costream.errors import ConfigError, DataError
from costream.evaluate.claims import (
    ClaimOptions,
    ClaimRow,
    ClaimTable,
    Verdict,
    claim_from_json,
    claim_to_json,
    in_digits,
    mean_of,
    notes,
)

ORDER: tuple[Verdict, ...] = ("shown", "not shown", "contradicted")
_COLOURS = {"shown": "#0a7d3c", "not shown": "#8a6d00", "contradicted": "#b3261e"}
_WIDTH, _ROW = 260, 18
HOW_TO_READ = (
    "Method and baseline are run with the same seeds, and their values are means over the runs. "
    "The gain is method less baseline, or baseline less method where less is better; the interval "
    "behind it is that of Student's t over the seeds, or a bootstrap over single queries. It has "
    "to exceed a threshold: 0, or the least gain that counts (above 1, say), or, below 0, what may "
    "be lost. Shown: the whole interval is above the threshold. Contradicted: all of it is below, "
    "so that there is no gain, or one too small to count. Not shown: the threshold is inside. "
    "Controls and guards are comparisons like the others, and counted with them."
)
"""What the numbers of a claim mean, for pages that show them."""
_SHIPPED = Path(__file__).parents[1] / "assets" / "claims"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimResult:
    """What the experiment of a method gave.

    Attributes:
        method: Its name.
        tables: What was claimed, and the verdicts.
        seconds: How long it took.
        machine: Where it ran, as text by topic.
        fast: Whether it ran at a size that proves nothing.
    """

    method: str
    tables: tuple[ClaimTable, ...]
    seconds: float
    machine: Mapping[str, Any]
    fast: bool

    def took(self) -> str:
        """How long it took and where, as the end of a sentence."""
        parts = dict(self.machine)
        cores = parts.pop("cores", None)
        where = [str(parts.pop(key)) for key in ("system", "processor") if key in parts]
        on = "a machine" if cores is None else f"{cores} core{'s' if cores != 1 else ''}"
        on += f" ({', '.join(where)})" if where else ""
        words = {"python": "Python", "load": "under a load of"}
        rest = [f"{words.get(key, key)} {value}" for key, value in parts.items()]
        return ", ".join([f"{self.seconds / 60:.1f} minutes on {on}", *rest])

    def counts(self) -> dict[Verdict, int]:
        """How many comparisons have each verdict."""
        verdicts = [row.verdict for table in self.tables for row in table.rows]
        return {verdict: verdicts.count(verdict) for verdict in ORDER}

    def shows_all(self) -> bool:
        """Whether every comparison shows what it claims."""
        return all(row.verdict == "shown" for table in self.tables for row in table.rows)

    def in_words(self) -> str:
        """The verdicts of all comparisons in a few words."""
        if self.fast:
            return "tried only"
        counts = self.counts()
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def machine() -> dict[str, Any]:
    """What a result was made on; its load says how far its time can be believed."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 1)
    return found


def earlier_result(folder: Path, method: str, *, fast: bool) -> dict[str, Any]:
    """What `METHOD.json` holds of an earlier run of an experiment, to be read before it is run.

    Args:
        folder: Where results are.
        method: Name.
        fast: Whether the run that is to come is one that proves nothing.

    Returns:
        The decoded file; nothing when there is none.

    Raises:
        ConfigError: When a result that proves something would be replaced by one that does not.
        DataError: When the file is damaged, or no result.
    """
    path = folder / f"{method}.json"
    if not path.exists():
        return {}
    found = _decoded(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} is no result", hint="remove it, or choose another --out")
    if fast and found.get("fast") is False:
        raise ConfigError(
            f"{path} holds the result of a run in full, which --fast would replace",
            hint="choose another --out",
        )
    return found


def _decoded(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", hint="remove it") from error


def write_result(
    folder: Path,
    method: str,
    tables: Sequence[ClaimTable],
    options: ClaimOptions,
    seconds: float,
    earlier: Mapping[str, Any] | None = None,
) -> Path:
    """Write `METHOD.json`; what an experiment put there beside the claims stays.

    Args:
        folder: Made when absent.
        method: Name.
        tables: What was claimed and shown.
        options: How it was run.
        seconds: How long it took.
        earlier: Of `earlier_result`. Where it has the same numbers, they were not measured again
            but found in the log of finished runs: its time and machine stay.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{method}.json"
    kept = _decoded(path) if path.exists() else {}
    stored = kept | {
        "method": method,
        "machine": machine(),
        "seeds": options.seeds,
        "fast": options.fast,
        "seconds": round(seconds, 1),
        "claims": [claim_to_json(table) for table in tables],
    }
    if earlier and earlier.get("claims") == stored["claims"]:
        stored |= {key: earlier[key] for key in ("machine", "seconds") if key in earlier}
    with tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8", delete=False) as file:
        file.write(json.dumps(stored, indent=1, allow_nan=False) + "\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    return path


def read_results(folder: Path) -> dict[str, ClaimResult]:
    """All results of a folder by method; verdicts are computed again.

    Raises:
        DataError: When a file is no result, or says what its numbers do not.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        values = _decoded(path)
        if not isinstance(values, dict) or "claims" not in values:
            continue
        try:
            result = ClaimResult(
                method=values["method"],
                tables=tuple(claim_from_json(each) for each in values["claims"]),
                seconds=values.get("seconds", 0.0),
                machine=values.get("machine", {}),
                fast=values.get("fast", False),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no result of a claim", hint="remove it") from error
        found[result.method] = result
    return found


def shipped_results() -> dict[str, ClaimResult]:
    """The results that come with costream, by method.

    Example:
        >>> "cots" in shipped_results()
        True
    """
    return read_results(_SHIPPED)


def report_page(results: Mapping[str, ClaimResult], cards: Mapping[str, Card]) -> str:
    """One HTML page: every claim with effect, interval, verdict, time and hardware.

    Args:
        results: As of `read_results`.
        cards: All methods; those without a result are listed as not run.

    Returns:
        A page that needs nothing but itself.
    """
    parts = [_HEAD, "<h1>Claims, reproduced</h1>", _summary(results, cards)]
    parts.append(f"<p>{html.escape(HOW_TO_READ)}</p>")
    for name, card in cards.items():
        if name in results:
            parts.append(_section(results[name], card))
    parts.append("<footer>Made by <code>costream reproduce --report</code>.</footer>")
    return "\n".join(parts) + "\n</main></body></html>\n"


def _summary(results: Mapping[str, ClaimResult], cards: Mapping[str, Card]) -> str:
    rows = []
    for name, card in cards.items():
        result = results.get(name)
        verdict = "not run" if result is None else result.in_words()
        took = "" if result is None else f"{result.seconds / 60:.1f} min"
        link = html.escape(name) if result is None else f'<a href="#{name}">{html.escape(name)}</a>'
        cells = (link, str(card.year), html.escape(card.title), html.escape(verdict), took)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>method</th><th>year</th><th>title</th><th>verdicts</th><th>time</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _section(result: ClaimResult, card: Card) -> str:
    warning = "<p><strong>Run at a size that proves nothing.</strong></p>" if result.fast else ""
    parts = [
        f'<section id="{html.escape(card.name)}"><h2>{html.escape(card.name)}</h2>',
        f"<p>{html.escape(card.summary)}</p>{warning}",
        *(_table(table) for table in result.tables),
        "" if result.shows_all() else f"<p><b>Scale.</b> {html.escape(card.scale)}</p>",
        f"<p class=small>{html.escape(result.took())}</p></section>",
    ]
    return "\n".join(parts)


def _table(table: ClaimTable) -> str:
    rows = []
    for row in table.rows:
        cells = (
            html.escape(row.name),
            html.escape(mean_of(row, row.method)),
            html.escape(mean_of(row, row.baseline)),
            f"{in_digits(row.gain)} [{in_digits(row.low)}, {in_digits(row.high)}]",
            f"{row.threshold:g}",
            _interval_picture(row, _axis([r for r in table.rows if r.unit == row.unit])),
            f'<b style="color:{_COLOURS[row.verdict]}">{row.verdict}</b>'
            + "".join(f"<br><small>{html.escape(note)}</small>" for note in notes(row)),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "comparison",
            "method",
            "baseline",
            f"gain {_confidence(table)}",
            "threshold",
            "grey: 0, dashed: threshold",
            "verdict",
        )
    )
    facts = "".join(
        f"<li>{html.escape(key)}: {html.escape(value)}</li>"
        for key, value in table.settings.items()
    )
    return (
        f"<h3>{html.escape(table.title)}</h3><table><tr>{head}</tr>{''.join(rows)}</table>"
        f"<ul class=small>{facts}</ul>"
    )


def _confidence(table: ClaimTable) -> str:
    """What the intervals of a table are, in brackets."""
    found = sorted({f"{100 * row.confidence:g} %" for row in table.rows})
    return f"[{' or '.join(found)} interval]"


def _axis(rows: Sequence[ClaimRow]) -> tuple[float, float]:
    """The ends of an axis that has room for these intervals, zero and their thresholds."""
    marks = [0.0, *(mark for row in rows for mark in (row.low, row.high, row.threshold))]
    return min(marks), max(marks)


def _interval_picture(row: ClaimRow, axis: tuple[float, float]) -> str:
    """The interval as a bar, zero and the threshold as lines; rows of one unit share an axis."""
    low, high = axis
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return 8 + (value - low) / span * (_WIDTH - 16)

    middle, colour = _ROW / 2, _COLOURS[row.verdict]
    return (
        f'<svg width="{_WIDTH}" height="{_ROW}" role="img" '
        f'aria-label="from {row.low:.3g} to {row.high:.3g}">'
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{_ROW}" stroke="#999"/>'
        f'<line x1="{x(row.threshold):.1f}" x2="{x(row.threshold):.1f}" y1="0" y2="{_ROW}" '
        'stroke="#999" stroke-dasharray="2 2"/>'
        f'<line x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{middle}" y2="{middle}" '
        f'stroke="{colour}" stroke-width="4"/>'
        f'<circle cx="{x(row.gain):.1f}" cy="{middle}" r="4" fill="{colour}"/></svg>'
    )


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Claims, reproduced</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 0; } main { max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #8884;
  vertical-align: top; }
.small, footer { font-size: .85rem; opacity: .8; } section { margin-top: 2.5rem; }
</style></head><body><main>"""
