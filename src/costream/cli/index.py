"""Bring pictures into an index; run it again to bring in only what is new or changed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from costream.cli._model_of_index import is_address, recall_model, remember_model
from costream.cli.options import DEFAULT_INDEX, DEFAULT_MODEL, AsJson, IndexPlace
from costream.cli.output import (
    failure_list,
    json_path,
    note_failures,
    progress_bar,
    say,
    say_json,
    shown_path,
)
from costream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from costream.index import UpdateReport


def run(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Folders or files of pictures.")
    ],
    index: IndexPlace = str(DEFAULT_INDEX),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME_OR_DIR",
            help=f"Makes the vectors; default: the one of the index, or {DEFAULT_MODEL}.",
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove pictures whose files are gone.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="Embed here, or with the workers of a Ray cluster."),
    ] = "local",
    ocr: Annotated[
        bool, typer.Option("--ocr", help="Read the words in new pictures, with tesseract.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Index pictures."""
    report, size = index_pictures(paths, index, model, prune=prune, engine=engine, ocr=ocr)
    if as_json:
        counts = {k: v for k, v in asdict(report).items() if k != "failures"}
        say_json(
            {"index": json_path(_whole_name(index))["path"], "pictures": size}
            | counts
            | {"failures": failure_list(report.failures)}
        )
    else:
        say(_in_words(report, size, index))
    note_failures(report.failures, "not indexed")
    return 1 if report.failures else 0


def index_pictures(
    paths: list[Path],
    place: str | Path,
    model_name: str | None,
    *,
    prune: bool,
    engine: Literal["local", "ray"] = "local",
    ocr: bool = False,
) -> tuple[UpdateReport, int]:
    """Bring an index up to date.

    Args:
        paths: Folders or files.
        place: Folder of the index, or the address of its database; made when absent.
        model_name: Name or folder; None for the one that the index was made with, or the default.
        prune: Whether to remove pictures whose files are gone.
        engine: Where pictures are embedded.
        ocr: Whether to read the words in pictures that are embedded.

    Returns:
        What was done, and the number of pictures in the index now.

    Raises:
        DataError: When a path is absent, or nothing that looks like a picture is there.
        SpaceMismatch: When the index was made with another model.
        ConfigError: When the engine, the database's driver or tesseract is not installed, or
            pruning or reading words is asked of a cluster.
    """
    from costream.data.ocr import check_ocr, read_text
    from costream.index import open_index, update_index

    if engine == "ray" and (prune or ocr):
        option = "--prune" if prune else "--ocr"
        raise ConfigError(
            f"got {option} with --engine ray, expected one of them",
            hint=f"use {option} in a run of its own, without --engine",
        )
    if ocr:
        check_ocr()
    _check_paths(paths, place, prune=prune)
    name = model_name or _model_of(place) or DEFAULT_MODEL
    model = _load(name)
    with open_index(place, create=True) as index:
        if index.space is None or index.space == model.space:
            remember_model(place, name)
        with progress_bar("Indexing") as advance:
            if engine == "ray":
                from costream.index.cluster import update_with_cluster

                report = update_with_cluster(index, model, name, paths, progress=advance)
                return report, len(index)
            report = update_index(
                index,
                model,
                paths,
                prune=prune,
                # As `encode_images` decodes, so that an indexed file has the vector it gives.
                smallest_side=model.config.image_preprocess.decoded_px,
                read_words=read_text if ocr else None,
                progress=advance,
            )
        return report, len(index)


def _whole_name(place: str) -> str:
    """A place as it can be used from anywhere; never with a password."""
    if is_address(place):
        from costream.index.postgres import public_url

        return public_url(place)
    return str(Path(place).absolute())


def _check_paths(paths: list[Path], place: str | Path, *, prune: bool) -> None:
    """Refuse what would make an empty index before a model is loaded or a folder is made."""
    from costream.data.walk import IMAGE_SUFFIXES, find_images

    found, failures = find_images(paths)
    if found or failures or (prune and (is_address(place) or Path(place).exists())):
        return
    places = ", ".join(shown_path(str(path)) for path in paths)
    raise DataError(
        f"found no picture below {places}, expected files that end in "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}",
        hint="hidden files and folders are skipped",
    )


def _model_of(place: str | Path) -> str | None:
    from costream.index import open_index
    from costream.index.database import FILE_NAME

    if not is_address(place) and not (Path(place) / FILE_NAME).exists():
        return None
    with open_index(place, create=is_address(place)) as index:
        return recall_model(place, index.space)


def _load(name: str) -> Any:
    from costream.encoders.storage import load

    return load(name)


def _in_words(report: UpdateReport, size: int, place: str) -> str:
    parts = [
        f"{count} {what}"
        for count, what in (
            (report.added, "added"),
            (report.changed, "changed"),
            (report.moved, "moved"),
            (report.unchanged, "unchanged"),
            (report.removed, "removed"),
            (len(report.failures), "failed"),
        )
        if count
    ]
    done = ", ".join(parts) or "nothing to do"
    where = _whole_name(place) if is_address(place) else shown_path(place)
    return f"{done}; {size} picture{'s' * (size != 1)} in {where}"
