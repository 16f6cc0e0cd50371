"""Copy an index to a new folder while it is in use; the copy is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costream.cli._model_of_index import copy_note
from costream.cli.options import DEFAULT_INDEX, AsJson, IndexPlace
from costream.cli.output import json_path, say, say_json, shown_path
from costream.cli.places import folder_of


def run(
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="A folder without an index; made if need be.")
    ],
    index: IndexPlace = str(DEFAULT_INDEX),
    as_json: AsJson = False,
) -> int:
    """Back an index up."""
    from costream.index.backup import backup_index

    instead = "costream index copy URL FOLDER, or pg_dump"
    directory = folder_of(index, "back up", instead)
    num_items = backup_index(directory, target)
    copy_note(directory, target)
    if as_json:
        say_json({"backup": json_path(str(target.absolute()))["path"], "items": num_items})
    else:
        say(f"{num_items} items in {shown_path(str(target))}, checked")
    return 0
