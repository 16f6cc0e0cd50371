"""How verbs speak: results to stdout, everything else to stderr, JSON when asked for."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from costream.data.failures import printable
from costream.errors import DataError

if TYPE_CHECKING:
    from costream.data.failures import Failure

_QUIET_S = 2.0


class OutputClosedError(Exception):
    """Nobody reads stdout any more."""


def say(text: str) -> None:
    """Write lines to stdout.

    Args:
        text: One or more lines, without the last line's end.

    Raises:
        OutputClosedError: When the reader has gone.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputClosedError from error


def say_json(value: object) -> None:
    """Write a value as JSON that any program can read, whatever the terminal's encoding.

    Args:
        value: Of plain values; names of files made with `json_path`.
    """
    # Only ASCII, so that no encoding can break it; NaN is not JSON and must not get this far.
    say(json.dumps(value, ensure_ascii=True, allow_nan=False, indent=2))


def note(text: str) -> None:
    """Write lines to stderr; a closed stderr is no reason to stop."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def refuse(kind: str, message: str, hint: str, *, as_json: bool, code: int = 2) -> int:
    """Say on stderr why nothing was done, and with `as_json` on stdout too.

    Args:
        kind: Name of the error's class.
        message: What was got and what was expected.
        hint: What to do.
        as_json: Whether `--json` was given.
        code: What to exit with.

    Returns:
        `code`.
    """
    text = f"costream: {message}" + (f"\n  {hint}" if hint else "")
    note("\n".join(printable(line) for line in text.splitlines()))
    if as_json:
        # It has been said on stderr; a full disk behind stdout takes no second message.
        with contextlib.suppress(OutputClosedError, OSError):
            say_json(
                {"error": {"kind": kind, "message": json_text(message), "hint": json_text(hint)}}
            )
    return code


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written before the work for it, and make the folder it is in.

    Args:
        path: Where a file is to be written.

    Raises:
        DataError: When it is a folder, or the folder it is in cannot be made or written to.
    """
    hint = "choose another file"
    if path.is_dir():
        raise DataError(f"{shown_path(str(path))}: is a folder, expected a file", hint=hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{shown_path(str(path))}: cannot be written ({reason})", hint=hint
        ) from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DataError(f"{shown_path(str(path))}: may not be written", hint=hint)


def json_text(text: str) -> str:
    r"""Text for JSON: bytes that were not UTF-8 become `\xNN` instead of lone surrogates.

    Example:
        >>> json_text("caf\udce9")
        'caf\\xe9'
    """
    return "".join(printable(c) if 0xD800 <= ord(c) <= 0xDFFF else c for c in text)


def json_path(path: str) -> dict[str, str]:
    r"""A path for JSON; one that is not UTF-8 brings its bytes along.

    Args:
        path: As Python has it.

    Returns:
        `{"path": ...}`, and where the name is not UTF-8 also `"path_base64"`: its exact bytes.

    Example:
        >>> json_path("a.jpg")
        {'path': 'a.jpg'}
        >>> json_path("caf\udce9.jpg")
        {'path': 'caf\\xe9.jpg', 'path_base64': 'Y2Fm6S5qcGc='}
    """
    readable = json_text(path)
    if readable == path:
        return {"path": path}
    return {"path": readable, "path_base64": base64.b64encode(os.fsencode(path)).decode("ascii")}


def shown_path(path: str) -> str:
    """A path for people: on one line, and relative to the current folder when it is below it."""
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118  names may hold any bytes
    return printable(path.removeprefix(here) or path)


def failure_list(failures: Sequence[Failure]) -> list[dict[str, str]]:
    """Failures for JSON: `[{"path", "reason"}]`."""
    return [json_path(each.path) | {"reason": json_text(each.reason)} for each in failures]


def note_failures(failures: Sequence[Failure], what: str) -> None:
    """List failures on stderr, one a line.

    Args:
        failures: What failed and why.
        what: "not indexed", say.
    """
    if failures:
        note(f"{len(failures)} {what}:")
    for each in failures:
        note(f"  {shown_path(each.path)}: {each.reason}")


def say_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    title: str = "",
) -> None:
    """Show a table: with lines and colour on a terminal, plain and aligned elsewhere.

    Args:
        headers: One a column.
        rows: Cells; shown as they are.
        numbers: Columns to align to the right, from 0.
        title: Above the table.
    """
    if sys.stdout.isatty():
        _say_rich_table(headers, rows, numbers, title)
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    lines = [title] if title else []
    for row in [headers, *rows]:
        cells = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    say("\n".join(lines))


def say_rich(what: object) -> None:
    """Show something that `rich` draws.

    Args:
        what: A table, say.
    """
    from rich.console import Console

    console = Console()
    with console.capture() as drawn:
        console.print(what)
    say(drawn.get().rstrip("\n"))


def _say_rich_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], title: str
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = Text(title, style="bold") if title else None
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left")
    for column, header in enumerate(headers):
        right = column in numbers
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    say_rich(table)


class Advance(Protocol):
    """Shows how far some work is."""

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """Show steps done and steps in all, of `what` when that is another work than before."""


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Advance]:
    """A bar on stderr for work that takes longer than two seconds; nothing when it is no terminal.

    Under torchrun, the first process shows it for all.

    Args:
        what: "Indexing", say.

    Yields:
        A function to call with the steps done and the steps in all.
    """
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield lambda done, total, what="": None
        return
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        bar: Any = None
        task: Any = None
        shown = ""

        def show(done: int, total: int, what: str = what) -> None:
            nonlocal bar, task, shown
            if bar is None and time.monotonic() - begin >= _QUIET_S:
                bar = stack.enter_context(_rich_bar())
            if bar is None:
                return
            if what != shown:  # another work has times of its own
                if task is not None:
                    bar.remove_task(task)
                shown = what
                task = bar.add_task(shown, total=total)
            bar.update(task, completed=done, total=total)

        yield show


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
