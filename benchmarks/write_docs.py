"""Fill the tables of `docs/benchmarks.md` from the files in `docs/results/`.

    python benchmarks/write_docs.py

What is between `<!-- NAME -->` and `<!-- end -->` is replaced by the table that the benchmark
itself prints; where nothing was measured yet, that is said with the command that measures it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _machine
import cold_search
import growth
import ingest
import vector_search

DOCS = Path(__file__).parents[1] / "docs"
Report = dict[str, Any]


def printed(work: Callable[[], object]) -> str:
    """What a call prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        work()
    return out.getvalue().strip()


def report_of(name: str) -> Report | None:
    """A file of results; None when there is none."""
    path = DOCS / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def line_of(name: str, line: str) -> Report:
    """One line of a file of results; empty when there is none."""
    report = report_of(name) or {"results": []}
    return next((one for one in report["results"] if one["name"] == line), {})


def when(report: Report) -> str:
    """Days, and how busy the machine was."""
    days = sorted({line["date"][:10] for line in report["results"]})
    loads = [line["load"] for line in report["results"]]
    return (
        f"Measured {' and '.join(days)} on a shared machine: up to {max(loads):g} programs wanted "
        "its cores at the same time."
    )


def table(name: str, show: Callable[[Report], object], command: str) -> str:
    """A table with its date, or the command that measures it."""
    report = report_of(name)
    if report is None:
        return f"Not measured yet: `python benchmarks/{command}`."
    shown = printed(lambda: show(report)).replace(_machine.machine(), report["machine"])
    return f"{shown}\n\n{when(report)}"


def targets() -> str:
    """What was aimed at and what was reached; a time is the best of many."""
    exact, coded = line_of("vector_search", "exact"), line_of("vector_search", "four_bit")
    ten = line_of("growth", "four_bit 10000000")
    store = line_of("store", "store")
    if store.get("rows") != 1_000_000:
        store = {}
    written = line_of("ingest", "costream")
    cold = line_of("cold_search", "100000")
    rows = [
        ("exact, 1 M x 512, one query", "32 ms", exact.get("best_ms"), 32, "{:.1f} ms", False),
        ("exact, batches of 64", "525 q/s", exact.get("batch_qps"), 525, "{:,.0f} q/s", True),
        ("four_bit, 1 M x 512, one query", "3 ms", coded.get("best_ms"), 3, "{:.2f} ms", False),
        ("its recall@10", "0.995", coded.get("recall"), 0.995, "{:.4f}", True),
        ("ready after the last add, 1 M", "5 s", store.get("ready_s"), 5, "{:.1f} s", False),
        ("four_bit, 10 M x 512, one query", "30 ms", ten.get("best_ms"), 30, "{:.1f} ms", False),
        ("its memory besides the file", "6 GB", ten.get("memory_mb"), 6144, "{:,.0f} MB", False),
        (
            "durable ingest",
            "100,000 rows/s",
            written.get("rows_per_s"),
            100_000,
            "{:,.0f} rows/s",
            True,
        ),
        (
            "cold search, 100,000 items",
            "1.5 s",
            cold["words_s"][0] if cold else None,
            1.5,
            "{:.2f} s",
            False,
        ),
    ]
    out = ["| what | target | reached (best) | met |", "|---|---|---|---|"]
    for what, target, value, limit, form, more_is_better in rows:
        if value is None:
            out.append(f"| {what} | {target} | not measured yet | |")
            continue
        met = value >= limit if more_is_better else value <= limit
        out.append(f"| {what} | {target} | {form.format(value)} | {'yes' if met else 'no'} |")
    return "\n".join(out)


def store_lines() -> str:
    """How soon an index is ready after the last add."""
    report = report_of("store")
    if report is None:
        return "Not measured yet: `python benchmarks/store.py`."
    (line,) = report["results"]
    return (
        f"{line['rows']:,} x {line['dim']} added durably, then searched in the same process: the "
        f"first answer came after {line['ready_s']:.1f} s ({line['ready_busy_s']:.1f} s of "
        f"processor time) with the kernel `{line['kernel']}`, the best of the following ones after "
        f"{line['query_best_ms']:.1f} ms. {when(report)}"
    )


def main() -> int:
    """Rewrite the page."""
    sections = {
        "targets": targets(),
        "vector_search": table(
            "vector_search",
            lambda r: vector_search.print_table(r["results"], r["rows"], r["dim"]),
            "vector_search.py --slow --json docs/results/vector_search.json",
        ),
        "growth": table(
            "growth",
            lambda r: growth.print_table(r["results"]),
            "growth.py --json docs/results/growth.json --plot docs/images/growth.png",
        ),
        "store": store_lines(),
        "ingest": table(
            "ingest",
            lambda r: ingest.print_table(r["results"], r["rows"], r["dim"], r["batch"]),
            "ingest.py --json docs/results/ingest.json",
        ),
        "cold_search": table(
            "cold_search",
            lambda r: cold_search.print_table(r["results"]),
            "cold_search.py --json docs/results/cold_search.json",
        ),
    }
    page = DOCS / "benchmarks.md"
    text = page.read_text()
    for name, content in sections.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(text):
            raise SystemExit(f"{page} has no place for {name}")
        text = marked.sub(lambda found, new=content: f"{found[1]}{new}\n{found[2]}", text)
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
