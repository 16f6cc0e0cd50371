"""Train a model with a method; stop it at any time and go on with --resume."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from costream.cli.options import AllowBroken, AsJson, DataSource
from costream.cli.output import json_path, json_text, note, progress_bar, say, say_json, shown_path
from costream.data.failures import printable


def run(
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help="See costream methods; several with commas between."),
    ],
    data: DataSource,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="For the model, log and checkpoints."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An option of the training or of the method."
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="More options, after --set or without."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest intact checkpoint.")
    ] = False,
    allow_broken: AllowBroken = 0,
    as_json: AsJson = False,
) -> int:
    """Train a model."""
    from costream.card import find_together
    from costream.config import parse_words

    # Refuses an unknown name before torch is loaded.
    method = ",".join(card.name for card in find_together(method))
    options = parse_words([*(settings or []), *(more or [])])

    from costream.train import train

    with progress_bar("Training") as advance, _warnings_noted() as warnings:

        def step(done: int, total: int, _losses: Mapping[str, float]) -> None:
            advance(done, total)

        def prepare(what: str, done: int, total: int) -> None:
            advance(done, total, what)

        model_dir = train(
            method,
            data,
            out,
            options,
            resume=resume,
            allow_missing=allow_broken,
            progress=step,
            preparing=prepare,
        )
    if os.environ.get("RANK", "0") != "0":
        return 0  # under torchrun, one process speaks for all
    if as_json:
        model = json_path(str(model_dir.absolute()))["path"]
        say_json({"method": method, "model": model, "warnings": [json_text(w) for w in warnings]})
    else:
        say(f"trained; use it with --model {shown_path(str(model_dir))}")
    return 1 if warnings else 0


@contextlib.contextmanager
def _warnings_noted() -> Iterator[list[str]]:
    """Show the warnings of a training on stderr as they come, and collect them."""
    sentences: list[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sentences.append(record.getMessage())
            note(printable(sentences[-1]))

    logger, handler = logging.getLogger("costream.train"), Noting(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield sentences
    finally:
        logger.removeHandler(handler)
