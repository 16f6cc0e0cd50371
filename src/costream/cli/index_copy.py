"""Copy an index to a folder or a database; stopped, it goes on where it was."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from costream.cli._model_of_index import copy_note
from costream.cli.options import AsJson
from costream.cli.output import json_text, progress_bar, say, say_json
from costream.cli.places import public_place
from costream.errors import ConfigError

_PLACE = "A folder, or postgresql://HOST/DATABASE"


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help=f"{_PLACE}.")],
    target: Annotated[str, typer.Argument(metavar="DST", help=f"{_PLACE}; made if need be.")],
    as_json: AsJson = False,
) -> int:
    """Copy an index."""
    from costream.index import open_index
    from costream.index.copy import copy_index

    if public_place(source) == public_place(target):
        raise ConfigError(f"got {public_place(source)} twice, expected two places")
    with open_index(source) as held, open_index(target, create=True) as copy:
        total, done = len(held), 0
        with progress_bar("Copying") as advance:

            def progress(number: int) -> None:
                nonlocal done
                done += number
                advance(done, total)

            report = copy_index(held, copy, progress=progress)
    copy_note(source, target)
    place = json_text(public_place(target))
    if as_json:
        say_json({"index": place} | asdict(report))
    else:
        was = f", {report.kept} were there already" if report.kept else ""
        gone = f", {report.removed} removed" if report.removed else ""
        say(f"{report.copied} items copied{was}{gone}; {place} was compared and is the same")
    return 0
