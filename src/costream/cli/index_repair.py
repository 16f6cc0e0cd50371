"""Save what is whole of a damaged index; the damaged files are kept."""

from __future__ import annotations

from costream.cli.options import DEFAULT_INDEX, AsJson, IndexPlace
from costream.cli.output import json_path, note, say, say_json, shown_path
from costream.cli.places import folder_of


def run(index: IndexPlace = str(DEFAULT_INDEX), as_json: AsJson = False) -> int:
    """Repair an index."""
    from costream.index.repair import repair_index

    directory = folder_of(index, "repair", "PostgreSQL has tools of its own: see amcheck, pg_dump")
    report = repair_index(directory)
    if as_json:
        aside = None if report.aside is None else json_path(str(report.aside.absolute()))["path"]
        say_json(
            {
                "index": json_path(str(directory.absolute()))["path"],
                "was_damaged": report.was_damaged,
                "kept": report.kept,
                "without_vector": report.without_vector,
                "lost": report.lost,
                "aside": aside,
            }
        )
    elif not report.was_damaged:
        say(f"nothing to repair: all is well with {report.kept} items in {shown_path(index)}")
    else:
        lost = "an unknown number" if report.lost is None else report.lost
        say(f"{report.kept} items kept, {lost} lost; {report.without_vector} without a vector")
    if report.was_damaged:
        note("index the files again: what is lost or without a vector will be embedded")
    if report.aside is not None:
        note(f"the damaged files are in {shown_path(str(report.aside))}; delete them by hand")
    return 1 if report.lost is None or report.lost or report.without_vector else 0
