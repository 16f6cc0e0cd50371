"""Find pictures by words, or by an example picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costream.cli._model_of_index import recall_model
from costream.cli.options import DEFAULT_INDEX, DEFAULT_MODEL, AsJson, IndexDir
from costream.cli.output import (
    check_target,
    json_path,
    json_text,
    note,
    say_json,
    say_table,
    shown_path,
)
from costream.cli.results import Result
from costream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from costream.index import Index
    from costream.records import Space


def run(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to find, in words.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Find pictures like this one.")
    ] = None,
    index: IndexDir = DEFAULT_INDEX,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of results.")] = 10,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME_OR_DIR", help="Default: the one that the index was made with."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with the pictures found."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Search an index."""
    query = _query(text, image)
    if html is not None:
        check_target(html)
    results = search_index(query, index, top=top, model_name=model)
    if html is not None:
        from costream.cli.contact_sheet import Section, write_contact_sheet

        write_contact_sheet(html, [Section(query=query, results=results)])
        note(f"wrote {shown_path(str(html))}")
    if as_json:
        say_json(results_to_json(query, results))
    else:
        say_results(results)
    return 0


def search_index(
    query: str | Path, directory: Path, *, top: int, model_name: str | None = None
) -> list[Result]:
    """Search an index by words (a string) or by a picture (a path).

    Args:
        query: What to find.
        directory: Folder of the index.
        top: Most results.
        model_name: Name or folder; None for the one that the index was made with.

    Returns:
        Best first; fewer than `top` when the index holds fewer.

    Raises:
        DataError: When there is no index, nothing in it, or the picture is absent or broken.
        SpaceMismatch: When the index was made with another model.
    """
    from costream.index import Index

    with Index.open(directory) as index:
        if not len(index):
            raise DataError(
                f"the index {shown_path(str(directory))} is empty, expected at least one picture",
                hint="costream index PATH...",
            )
        name = model_name or recall_model(directory, index.space) or DEFAULT_MODEL
        vector, space = _embed(query, name)
        ranking = index.search(vector, space, top)
        return _results(index, ranking.ids[0], ranking.scores[0])


def say_results(results: Sequence[Result], *, title: str = "") -> None:
    """Print results as a table.

    Args:
        results: Best first.
        title: Above the table.
    """
    rows = [(str(r.rank), f"{r.score:.3f}", shown_path(r.path or r.id)) for r in results]
    say_table(("#", "score", "picture"), rows, numbers=(0, 1), title=title)


def results_to_json(query: str | Path, results: Sequence[Result]) -> dict[str, Any]:
    """Results as plain values.

    Args:
        query: Words, or the path of a picture.
        results: Best first.

    Returns:
        `{"query": ..., "results": [{"rank", "id", "path", "score"}]}`; the query of a picture is
        `{"image": path}`.
    """
    asked = json_text(query) if isinstance(query, str) else {"image": json_text(str(query))}
    return {
        "query": asked,
        "results": [
            {"rank": r.rank, "id": json_text(r.id)}
            | ({"path": None} if r.path is None else json_path(r.path))
            | {"score": round(r.score, 6)}
            for r in results
        ],
    }


def _query(text: str | None, image: Path | None) -> str | Path:
    if (text is None) == (image is None):
        got = "neither" if text is None else "both"
        raise ConfigError(
            f"got {got} of TEXT and --image, expected exactly one of them",
            hint='costream search "a dog on a beach", or costream search --image dog.jpg',
        )
    if image is not None:
        return image
    # Words that the terminal sent in another encoding reach us as surrogates, which no tokenizer
    # takes.
    words = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if not words.strip():
        raise ConfigError("got an empty text, expected words", hint='costream search "a red car"')
    return words


def _embed(query: str | Path, model_name: str) -> tuple[NDArray[Any], Space]:
    # A query needs one tower only, and no torch: this is what makes a cold start fast.
    if isinstance(query, str):
        from costream.encoders.light.text import load_text_encoder

        reader = load_text_encoder(model_name)
        return reader.encode_texts([query]), reader.space
    from costream.encoders.light.vision import load_image_encoder

    viewer = load_image_encoder(model_name)
    return viewer.encode_images([query]), viewer.space


def _results(index: Index, ids: Sequence[str], scores: NDArray[Any]) -> list[Result]:
    return [
        Result(rank=rank, id=item.id, path=item.path, score=float(score))
        for rank, (item, score) in enumerate(zip(index.get(ids), scores, strict=True), start=1)
    ]
