"""Index the sample gallery, search it three times, and write a page to look at."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

import typer

from costream.cli.index import in_all, index_files
from costream.cli.options import AsJson
from costream.cli.output import note, note_failures, say, say_json, shown_path
from costream.cli.results import answer_to_json, query_in_words, say_answer
from costream.cli.search import answer_query
from costream.search.query import Query, Words

GALLERY = Path(__file__).parent.parent / "assets" / "gallery"
QUERIES = ("a bird flying", "people playing music on a stage", "a red car")


def run(
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="DIR", help="Your own pictures instead of the gallery."),
    ] = None,
    queries: Annotated[
        list[str] | None, typer.Option("--query", metavar="TEXT", help="Instead of the three.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the index and the page.")
    ] = Path("demo"),
    top: Annotated[int, typer.Option("--top", min=1, help="Results a search.")] = 6,
    as_json: AsJson = False,
) -> int:
    """Show what costream does."""
    from costream.cli.contact_sheet import Section, write_contact_sheet

    folder = pictures or GALLERY
    index = out / _index_name(folder)
    report, holdings = index_files([folder], index, None, prune=True)
    note_failures(report.failures, "not indexed")
    asked = [Query(terms=(Words(text),), top=top) for text in queries or QUERIES]
    searches = [(query, answer_query(query, index)) for query in asked]
    page = out / "results.html"
    sections = [Section(query=query_in_words(q), results=found.results) for q, found in searches]
    write_contact_sheet(page, sections)
    if as_json:
        say_json([answer_to_json(query, found) for query, found in searches])
    else:
        say(f"{in_all(holdings)} indexed from {shown_path(str(folder))}\n")
        for query, found in searches:
            say_answer(found, title=f'"{query_in_words(query)}"')
            say("")
    note(f"wrote {shown_path(str(page))}: open it in a browser")
    return 1 if report.failures else 0


def _index_name(folder: Path) -> str:
    """One index a folder and model: results never mix, and a new default model starts anew."""
    from costream.cli.options import DEFAULT_MODEL
    from costream.encoders.locate import locate_model, read_description

    model = read_description(locate_model(DEFAULT_MODEL))["weights_hash"]
    return f"index-{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:8]}-{model[:8]}"
