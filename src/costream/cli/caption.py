"""Write captions of pictures, with a model that was trained to; one line a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costream.cli.options import AsJson
from costream.cli.output import (
    failure_list,
    json_path,
    json_text,
    note_failures,
    progress_bar,
    say,
    say_json,
    shown_path,
)
from costream.data.failures import Failure, printable
from costream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from costream.generate import Candidate

_AT_ONCE = 16


def run(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE...", help="Files of pictures.")
    ],
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME_OR_DIR", help="A model trained to write captions."),
    ],
    samples: Annotated[
        int,
        typer.Option("--samples", min=1, help="Captions tried a picture; the best is shown."),
    ] = 1,
    as_json: AsJson = False,
) -> int:
    """Caption pictures."""
    from costream.system import load_system

    system = load_system(model)
    generator = system.parts.generator
    if generator is None:
        from costream.card import find_methods

        having = [card.name for card in find_methods().values() if "generator" in card.slots]
        raise ConfigError(
            f"{model} writes no captions, expected a model that was trained to",
            hint=f"costream train {' or '.join(having)} --data DATA --out OUT, then --model "
            "OUT/model",
        )
    failures: list[Failure] = []
    found: list[tuple[Path, list[Candidate]]] = []
    with progress_bar("Captioning") as advance:
        for start in range(0, len(pictures), _AT_ONCE):
            some = pictures[start : start + _AT_ONCE]
            decoded = _decoded(some, system.model.config.image_preprocess.decoded_px, failures)
            if decoded:
                texts = generator.generate(list(decoded.values()), samples)
                found.extend(zip(decoded, texts, strict=True))
            advance(start + len(some), len(pictures))
    if not found:
        raise DataError(
            f"none of {len(pictures)} pictures could be read: {failures[0].reason}",
            hint="name files of pictures",
        )
    if as_json:
        told = [_as_json(*each) for each in found]
        say_json({"pictures": told, "failures": failure_list(failures)})
    else:
        for path, candidates in found:
            say(f"{shown_path(str(path))}: {printable(candidates[0].text)}")
    note_failures(failures, "not captioned")
    return 1 if failures else 0


def _decoded(paths: Sequence[Path], side_px: int, failures: list[Failure]) -> dict[Path, Image]:
    """Pictures by path; what cannot be read is added to the failures."""
    from costream.data.decode import open_image

    found = {}
    for path in paths:
        try:
            found[path] = open_image(path, smallest_side=side_px)
        except DataError as error:
            failures.append(Failure.of(path, error))
    return found


def _as_json(path: Path, candidates: Sequence[Candidate]) -> dict[str, object]:
    captions = [{"text": json_text(each.text), "score": each.score} for each in candidates]
    return {**json_path(str(path.absolute())), "captions": captions}
