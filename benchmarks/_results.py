"""Files of measured numbers: what was measured, when, on what, and how busy that was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _machine


def stamp(package: str) -> dict[str, Any]:
    """When a line was measured, with what, and the load of the machine after it.

    Args:
        package: What was measured.
    """
    (version,) = _machine.versions([package])
    return {
        "version": version,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load": round(os.getloadavg()[0], 1),
    }


def merged(
    path: Path | None, results: Sequence[dict[str, Any]], order: Sequence[str]
) -> list[dict[str, Any]]:
    """New lines, and those of a file that were not measured again, in a given order.

    Args:
        path: The file; None for none.
        results: New lines, each with a `name`.
        order: Names.
    """
    known: dict[str, dict[str, Any]] = {}
    if path is not None and path.exists():
        known = {line["name"]: line for line in json.loads(path.read_text())["results"]}
    known |= {line["name"]: line for line in results}
    return [known[name] for name in dict.fromkeys(order) if name in known]


def write(path: Path, results: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write lines with the machine that they are of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": _machine.machine(), **more, "results": list(results)}
    path.write_text(json.dumps(report, indent=1) + "\n")
