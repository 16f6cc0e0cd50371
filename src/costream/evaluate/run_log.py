"""Finished runs of an experiment on disk, so that an experiment of many runs can stop and go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costream.errors import DataError


class RunLog:
    """What each finished run measured, found again by the settings that fix the run.

    One line of JSON a run is appended to the file and synced before `add` returns. A last line that
    was cut off by a hard stop is passed over: its run counts as not done. A run whose settings
    differ in anything is another run.

    Args:
        path: The JSONL file, made with its folder when the first run is added; None keeps the runs
            in memory only.

    Raises:
        DataError: When a line other than the last is no run.

    Example:
        >>> log = RunLog(None)
        >>> log.add({"seed": 0}, {"hit@1": 21.5})
        >>> log.get({"seed": 0}), log.get({"seed": 1})
        ({'hit@1': 21.5}, None)
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._runs: dict[str, dict[str, Any]] = {}
        lines = path.read_bytes().split(b"\n") if path is not None and path.exists() else []
        # A line that was written to its end is followed by a newline, so the last part is what a
        # stop left over, if anything.
        for number, line in enumerate(lines[:-1], start=1):
            self._read(line, number)

    def __len__(self) -> int:
        return len(self._runs)

    def _read(self, line: bytes, number: int) -> None:
        if not line.strip():
            return
        try:
            run = json.loads(line)
            self._runs[run_key(run["settings"])] = run["values"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}: line {number} is no run, expected settings and values ({error})",
                hint="remove the line; its run is then made again",
            ) from error

    def get(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the run with exactly these settings measured; None when it is not done."""
        return self._runs.get(run_key(settings))

    def add(self, settings: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Remember a finished run.

        Args:
            settings: Everything that fixes the run, as plain values.
            values: What it measured, as plain values.
        """
        # Through JSON and back, so that a run reads the same whether it was resumed or not.
        text = json.dumps({"settings": settings, "values": values}, sort_keys=True)
        self._runs[run_key(settings)] = json.loads(text)["values"]
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = self.path.read_bytes() if self.path.exists() else b""
        with self.path.open("ab") as file:
            file.truncate(kept.rfind(b"\n") + 1)
            file.write(text.encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())


def run_key(settings: Mapping[str, Any]) -> str:
    """Fingerprint of settings: sha256 of their JSON with sorted keys, as 64 hexadecimal letters.

    Example:
        >>> run_key({"a": 1, "b": (2, 3)}) == run_key({"b": [2, 3], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode("ascii")).hexdigest()
