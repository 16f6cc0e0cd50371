"""Bring pictures and clips into an index; run it again for only what is new or changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from costream.cli._model_of_index import is_address, recall_model, remember_model
from costream.cli.interrupts import load_torch
from costream.cli.options import DEFAULT_INDEX, DEFAULT_MODEL, AsJson, IndexPlace
from costream.cli.output import (
    failure_list,
    json_path,
    note,
    note_failures,
    progress_bar,
    say,
    say_json,
    shown_path,
)
from costream.cli.places import public_place
from costream.config import check_config
from costream.data.video import DEFAULT_SAMPLING, Sampling
from costream.errors import ConfigError, DataError
from costream.index.filters import Filter

if TYPE_CHECKING:
    from costream.index import UpdateReport
    from costream.index.protocol import SearchIndex
    from costream.index.records import Modality
    from costream.parts import System


def run(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders or files of pictures and clips."),
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
        bool, typer.Option("--prune", help="Remove what has no file any more.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="Embed here, or with the workers of a Ray cluster."),
    ] = "local",
    ocr: Annotated[
        bool, typer.Option("--ocr", help="Read the words in new pictures, with tesseract.")
    ] = False,
    every: Annotated[
        float,
        typer.Option("--every", metavar="SECONDS", help="Of a video, what one vector stands for."),
    ] = DEFAULT_SAMPLING.every_s,
    max_moments: Annotated[
        int,
        typer.Option("--max-moments", metavar="NUMBER", help="Most vectors of a video."),
    ] = DEFAULT_SAMPLING.max_frames,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            "--precision", help="Of a model on a CPU; bfloat16 is faster where the CPU has it."
        ),
    ] = "float32",
    as_json: AsJson = False,
) -> int:
    """Index pictures and clips."""
    sampling = replace(DEFAULT_SAMPLING, every_s=every, max_frames=max_moments)
    report, holdings = index_files(
        paths,
        index,
        model,
        prune=prune,
        engine=engine,
        ocr=ocr,
        sampling=sampling,
        precision=precision,
    )
    if as_json:
        counts = {k: v for k, v in asdict(report).items() if k != "failures"}
        say_json(
            {"index": json_path(public_place(index))["path"]}
            | holdings
            | counts
            | {"failures": failure_list(report.failures)}
        )
    else:
        say(_in_words(report, holdings, index))
    for left in report.left_out:
        note(f"{_counted(left.count, left.what)} left out: {left.reason}")
    note_failures(report.failures, "not indexed")
    return 1 if report.failures else 0


def index_files(
    paths: list[Path],
    place: str | Path,
    model_name: str | None,
    *,
    prune: bool,
    engine: Literal["local", "ray"] = "local",
    ocr: bool = False,
    sampling: Sampling = DEFAULT_SAMPLING,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> tuple[UpdateReport, dict[str, int]]:
    """Bring an index up to date.

    Args:
        paths: Folders or files.
        place: Folder of the index, or the address of its database; made when absent.
        model_name: Name or folder; None for the one that the index was made with, or the default.
        prune: Whether to remove items whose files are gone.
        engine: Where pictures are embedded.
        ocr: Whether to read the words in pictures that are embedded.
        sampling: Which moments of videos that are embedded get a vector.
        precision: Of the model's matrix products on a CPU.

    Returns:
        What was done, and how many `pictures`, `videos` and `sounds` the index holds now.

    Raises:
        DataError: When a path is absent, or nothing that looks like a picture or a clip is there.
        SpaceMismatch: When the index was made with another model.
        ConfigError: When the engine, the database's driver or tesseract is not installed, pruning,
            reading words or a precision is asked of a cluster, a number is out of range, or the
            model only asks what another one has embedded.
        NumericalError: When the model gives other vectors in bfloat16.
    """
    from costream.data.ocr import check_ocr, read_text
    from costream.index import open_index, update_index
    from costream.index.check import refuse_query_only

    asked = {"--prune": prune, "--ocr": ocr, "--precision": precision != "float32"}
    option = next((name for name, is_asked in asked.items() if is_asked), "")
    if engine == "ray" and option:
        raise ConfigError(
            f"got {option} with --engine ray, expected one of them",
            hint=f"use {option} in a run of its own, without --engine",
        )
    if ocr:
        check_ocr()
    check_config(sampling)
    _check_paths(paths, place, prune=prune)
    name = model_name or _model_of(place) or DEFAULT_MODEL
    system = _load(name)
    model, form = system.model, system.parts.index
    model.precision = precision
    maker = model if form is None else form
    refuse_query_only(maker)
    with open_index(place, create=True) as index:
        if index.space is None or index.space == maker.space:
            remember_model(place, name)
        with progress_bar("Indexing") as advance:
            if engine == "ray":
                from costream.index.cluster import update_with_cluster

                report = update_with_cluster(
                    index, maker, name, paths, sampling=sampling, progress=advance
                )
                return report, _holdings(index)
            report = update_index(
                index,
                maker,
                paths,
                prune=prune,
                # As `encode_images` decodes, so that an indexed file has the vector it gives.
                smallest_side=model.config.image_preprocess.decoded_px,
                read_words=read_text if ocr else None,
                sampling=sampling,
                progress=advance,
            )
        return report, _holdings(index)


def _holdings(index: SearchIndex) -> dict[str, int]:
    kinds: tuple[tuple[str, Modality], ...]
    kinds = (("pictures", "image"), ("videos", "video"), ("sounds", "audio"))
    return {name: index.count(Filter(modality=(kind,))) for name, kind in kinds}


def _check_paths(paths: list[Path], place: str | Path, *, prune: bool) -> None:
    """Refuse what would make an empty index before a model is loaded or a folder is made."""
    from costream.data.walk import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_media

    found, failures = find_media(paths)
    if found or failures or (prune and (is_address(place) or Path(place).exists())):
        return
    places = ", ".join(shown_path(str(path)) for path in paths)
    raise DataError(
        f"found no picture or video below {places}, expected files that end in "
        f"{', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))}",
        hint="hidden files and folders are skipped",
    )


def _model_of(place: str | Path) -> str | None:
    from costream.index import open_index
    from costream.index.database import FILE_NAME

    if not is_address(place) and not (Path(place) / FILE_NAME).exists():
        return None
    with open_index(place, create=is_address(place)) as index:
        return recall_model(place, index.space)


def _load(name: str) -> System:
    load_torch()
    from costream.encoders.device import keep_freed_memory
    from costream.system import load_system

    keep_freed_memory()
    return load_system(name)


def _in_words(report: UpdateReport, holdings: Mapping[str, int], place: str) -> str:
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
    where = public_place(place) if is_address(place) else shown_path(place)
    return f"{done}; {in_all(holdings)} in {where}"


def in_all(holdings: Mapping[str, int]) -> str:
    """How many there are of each kind.

    Args:
        holdings: As `index_files` gives them.

    Example:
        >>> in_all({"pictures": 3, "videos": 1, "sounds": 0})
        '3 pictures and 1 video'
        >>> in_all({"pictures": 0, "videos": 0, "sounds": 0})
        '0 pictures'
    """
    some = {kind: count for kind, count in holdings.items() if count} or {"pictures": 0}
    parts = [_counted(count, kind) for kind, count in some.items()]
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _counted(count: int, kind: str) -> str:
    return f"{count} {kind.removesuffix('s') if count == 1 else kind}"
