"""Find pictures by words, by example pictures, or by both, added and subtracted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costream.cli._model_of_index import recall_model
from costream.cli.options import (
    DEFAULT_INDEX,
    DEFAULT_MODEL,
    AsJson,
    IndexPlace,
    KernelName,
    RankSteps,
)
from costream.cli.output import check_target, note, say_json, shown_path
from costream.cli.results import answer_to_json, query_in_words, say_answer
from costream.errors import ConfigError, DataError
from costream.index.filters import Filter, parse_filter
from costream.search.query import Like, Picture, Query, Region, Term, Words

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex
    from costream.search.records import Answer


def run(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to find, in words.")
    ] = None,
    plus: Annotated[
        list[str] | None, typer.Option("--plus", metavar="TEXT", help="Words to add.")
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option("--minus", metavar="TEXT", help="Words to subtract.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="A picture to find others like, or to add."),
    ] = None,
    minus_image: Annotated[
        list[Path] | None,
        typer.Option("--minus-image", metavar="FILE", help="A picture to subtract."),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option("--like", metavar="ID", help="An item of the index to find others like."),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region",
            metavar="X0,Y0,X1,Y1",
            help="The part of the --image that counts, as shares: 0.5,0,1,1 is the right half.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="KEY=VALUE", help="A condition: path, tag, modality, after, ..."
        ),
    ] = None,
    index: IndexPlace = str(DEFAULT_INDEX),
    top: Annotated[int, typer.Option("--top", min=1, help="Number of results.")] = 10,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Results to pass over.")] = 0,
    min_relevance: Annotated[
        float | None,
        typer.Option(
            "--min-relevance", metavar="SHARE", help="Leave out results below it, 0 to 1."
        ),
    ] = None,
    collapse_duplicates: Annotated[
        bool,
        typer.Option("--collapse-duplicates", help="Of nearly the same, show only the best."),
    ] = False,
    no_names: Annotated[
        bool,
        typer.Option("--no-names", help="Do not look at names, captions and tags."),
    ] = False,
    product: Annotated[
        bool,
        typer.Option("--product", help="Multiply the terms: for models of three modalities."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME_OR_DIR", help="Default: the one that the index was made with."
        ),
    ] = None,
    rank: RankSteps = None,
    kernel: KernelName = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with the pictures found."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Search an index."""
    texts = [Words(_decoded(one)) for one in _given(text, plus)]
    less = [Words(_decoded(one), weight=-1.0) for one in minus or ()]
    pictures = _pictures(image or (), minus_image or (), region)
    likes = [Like(one) for one in like or ()]
    query = Query(
        terms=_some((*texts, *less, *pictures, *likes)),
        where=parse_filter(where) if where else None,
        top=top,
        offset=offset,
        min_relevance=min_relevance,
        hybrid=not no_names,
        collapse_duplicates=collapse_duplicates,
        product=product,
    )
    if html is not None:
        check_target(html)
    answer = answer_query(query, index, model_name=model, rank=rank or (), kernel=kernel)
    if html is not None:
        _write_page(html, query, answer)
    if min_relevance is not None and answer.unjudged and answer.results:
        note(f"--min-relevance left nothing out, as relevance is not known: {answer.unjudged}")
    if as_json:
        say_json(answer_to_json(query, answer))
    else:
        say_answer(answer, min_relevance=min_relevance)
    return 0


def answer_query(
    query: Query,
    place: str | Path,
    *,
    model_name: str | None = None,
    rank: Sequence[str] = (),
    kernel: str | None = None,
) -> Answer:
    """Ask an index.

    Args:
        query: What to find. The id of a `Like` may also be the path of the item's file.
        place: Folder of the index, or the address of its database.
        model_name: Name or folder; None for the one that the index was made with.
        rank: Words of methods that bring rank steps.
        kernel: What scans the vectors; None to go by size.

    Returns:
        What was found.

    Raises:
        DataError: When there is no index, nothing in it, or a picture or item is absent or broken.
        SpaceMismatch: When the index was made with another model.
        ConfigError: When the terms cancel each other, the kernel cannot be had, or a method is
            not there or brings no rank step.
    """
    from costream.index import open_index
    from costream.search.model import load_searcher

    with open_index(place, kernel=kernel) as index:
        if not len(index):
            raise DataError(
                f"the index {shown_path(index.location)} is empty, expected at least one picture",
                hint="costream index PATH...",
            )
        terms = tuple(_with_id(term, index) for term in query.terms)
        name = model_name or recall_model(place, index.space) or DEFAULT_MODEL
        return load_searcher(index, name, rank).answer(replace(query, terms=terms))


def _given(text: str | None, plus: Sequence[str] | None) -> list[str]:
    return ([] if text is None else [text]) + list(plus or ())


def _some(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    if not terms:
        raise ConfigError(
            "got nothing to search for, expected TEXT, --image, --like, --plus or --minus",
            hint='costream search "a dog on a beach", or costream search --image dog.jpg',
        )
    return terms


def _decoded(text: str) -> str:
    # Words that the terminal sent in another encoding reach us as surrogates, which no tokenizer
    # takes.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _pictures(
    added: Sequence[Path], subtracted: Sequence[Path], region: str | None
) -> list[Picture]:
    part = None if region is None else _region(region)
    if part is not None and len(added) != 1:
        raise ConfigError(
            f"got --region with {len(added)} --image, expected exactly one",
            hint="costream search --image dog.jpg --region 0.5,0,1,1",
        )
    more = [Picture(path, region=part) for path in added]
    return more + [Picture(path, weight=-1.0) for path in subtracted]


def _region(text: str) -> Region:
    try:
        left, top, right, bottom = (float(edge) for edge in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"got --region {text}, expected four numbers such as 0.5,0,1,1"
        ) from error
    return (left, top, right, bottom)


def _with_id(term: Term, index: SearchIndex) -> Term:
    """A `Like` of a file becomes one of the item that has it: files have their real path as id."""
    if not isinstance(term, Like):
        return term
    for name in (term.id, os.path.realpath(term.id)):
        if index.count(Filter(ids=frozenset((name,)))):
            return replace(term, id=name)
    raise DataError(
        f"--like {shown_path(term.id)} is not in the index {shown_path(index.location)}",
        hint="a picture that is not in it is given with --image",
    )


def _write_page(path: Path, query: Query, answer: Answer) -> None:
    from costream.cli.contact_sheet import Section, write_contact_sheet

    (term, *others) = query.terms
    asked: str | Path = query_in_words(query)
    if isinstance(term, Picture) and not others:
        asked = Path(str(term.source))
    write_contact_sheet(path, [Section(query=asked, results=answer.results)])
    note(f"wrote {shown_path(str(path))}")
