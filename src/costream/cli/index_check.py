"""Read a whole index and compare it with its checksums."""

from __future__ import annotations

from costream.cli.options import DEFAULT_INDEX, AsJson, IndexPlace
from costream.cli.output import json_path, json_text, say, say_json, shown_path
from costream.cli.places import public_place


def run(index: IndexPlace = str(DEFAULT_INDEX), as_json: AsJson = False) -> int:
    """Check an index."""
    from costream.index import open_index

    with open_index(index) as opened:
        problems = opened.check()
        num_items = len(opened)
    if as_json:
        found = [json_text(problem) for problem in problems]
        place = json_path(public_place(index))["path"]
        say_json({"index": place, "items": num_items, "problems": found})
    elif problems:
        remedy = f"costream index repair --index {shown_path(index)} saves what is whole"
        say("\n".join([*map(json_text, problems), remedy]))
    else:
        say(f"all is well with {num_items} items in {shown_path(public_place(index))}")
    return 1 if problems else 0
