"""Put a backup in the place of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costream.cli._model_of_index import copy_note
from costream.cli.options import DEFAULT_INDEX, AsJson, IndexPlace
from costream.cli.output import json_path, say, say_json, shown_path
from costream.cli.places import folder_of


def run(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the backup.")],
    index: IndexPlace = str(DEFAULT_INDEX),
    replace: Annotated[
        bool, typer.Option("--replace", help="Give up the index that is there.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Restore a backup."""
    from costream.index.backup import restore_index

    directory = folder_of(index, "restore to", "costream index copy FOLDER URL")
    num_items = restore_index(source, directory, replace=replace)
    copy_note(source, directory)
    if as_json:
        say_json({"index": json_path(str(directory.absolute()))["path"], "items": num_items})
    else:
        say(f"{num_items} items in {shown_path(index)}, as in {shown_path(str(source))}")
    return 0
