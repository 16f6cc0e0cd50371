"""Remove items so that nothing is left of them, and prove it; the files themselves stay."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from costream.cli._model_of_index import is_address
from costream.cli.options import DEFAULT_INDEX, AsJson, IndexPlace
from costream.cli.output import json_path, note, say, say_json, shown_path
from costream.cli.places import public_place

if TYPE_CHECKING:
    from costream.index import Item
    from costream.index.proof import Finding


def run(
    names: Annotated[
        list[str],
        typer.Argument(metavar="PATH_OR_ID...", help="Files, folders, or ids of items."),
    ],
    index: IndexPlace = str(DEFAULT_INDEX),
    as_json: AsJson = False,
) -> int:
    """Forget items."""
    from costream.index import open_index
    from costream.index.proof import find_traces, traces_of, traces_of_name
    from costream.index.store import Index
    from costream.index.thumbnails import (
        cache_of_database,
        remove_other_thumbnails,
        thumbnail_folder,
    )

    with open_index(index) as opened:
        ids, unknown = _resolve(names, opened.items())
        traces = [trace for name in unknown for trace in traces_of_name(name)]
        if isinstance(opened, Index):
            traces += traces_of(opened, ids)
        # Of unknown ones, too: a run that was killed may have removed them and not rewritten.
        count = opened.forget(ids)
        found = []
        if isinstance(opened, Index):
            found = find_traces(opened, traces)
        else:
            folder = thumbnail_folder(cache_of_database(opened.location))
            remove_other_thumbnails(folder, {item.content_hash for item in opened.items()})
    if as_json:
        say_json(
            {
                "index": json_path(public_place(index))["path"],
                "forgotten": count,
                "unknown": [json_path(name) for name in unknown],
                "searched": len(traces),
                "found": [_as_json(finding) for finding in found],
            }
        )
    else:
        _say_words(index, count, len(traces), found)
    for name in unknown:
        note(f"  {shown_path(name)}: is not in the index")
    return 1 if unknown or found else 0


def _resolve(names: Sequence[str], items: Sequence[Item]) -> tuple[list[str], list[str]]:
    """Ids of the items that are meant, and the names that mean none."""
    ids = {item.id for item in items}
    by_path: dict[str, list[str]] = {}
    for item in items:
        if item.path is not None:
            by_path.setdefault(item.path, []).append(item.id)
    meant: dict[str, None] = {}
    unknown = []
    for name in names:
        real = os.path.realpath(name)
        found = [name] if name in ids else by_path.get(real, [real] if real in ids else [])
        if not found:
            start = os.path.join(real, "")  # noqa: PTH118  names may hold any bytes
            found = [i for path in by_path if path.startswith(start) for i in by_path[path]]
        meant.update(dict.fromkeys(found))
        if not found:
            unknown.append(name)
    return list(meant), unknown


def _as_json(finding: Finding) -> dict[str, object]:
    return {
        "what": finding.trace.what,
        "id": json_path(finding.trace.item_id)["path"],
        "file": json_path(str(finding.file))["path"],
    }


def _say_words(place: str, count: int, num_traces: int, found: Sequence[Finding]) -> None:
    plural = "s" * (count != 1)
    if is_address(place):
        say(
            f"{count} item{plural} forgotten; the server's log and its replicas hold copies until "
            "the server recycles them"
        )
        return
    if not found:
        say(f"{count} item{plural} forgotten; {num_traces} traces searched, none is left")
        return
    say(f"{count} item{plural} forgotten; of {num_traces} traces {len(found)} are left:")
    for finding in found:
        say(f"  the {finding.trace.what} in {shown_path(str(finding.file))}")
    note("delete the files that are named, or end the process that reads them and run it again")
