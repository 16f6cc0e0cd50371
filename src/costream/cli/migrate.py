"""Move an index to another model: it answers with the old one until all is embedded again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from costream.cli._model_of_index import recall_model, recall_previous, remember_model
from costream.cli.interrupts import load_torch
from costream.cli.options import DEFAULT_INDEX, AsJson, IndexPlace
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
from costream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex
    from costream.index.reembedding import MigrationReport


def run(
    index: IndexPlace = str(DEFAULT_INDEX),
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME_OR_DIR", help="The model to move to.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the model before the last move.")
    ] = False,
    drop: Annotated[
        bool,
        typer.Option("--drop", help="Give up the vectors of every model but the one in use."),
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Move even if items cannot be embedded: they are found by words only.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Move an index to another model."""
    from costream.index import open_index

    if (model is not None) + rollback + drop != 1:
        raise ConfigError("got no or several of --model, --rollback and --drop, expected one")
    with open_index(index) as opened:
        if drop:
            return _drop(opened, index, as_json=as_json)
        name, report = _moved(opened, index, model, allow_missing=allow_missing)
    if as_json:
        say_json(
            {
                "index": json_path(public_place(index))["path"],
                "model": json_path(name)["path"],
                "embedded": report.embedded,
                "switched": report.switched,
                "failures": failure_list(report.failures),
            }
        )
    else:
        answers = "answers" if report.switched else "does not answer"
        say(f"{report.embedded} embedded; {shown_path(index)} {answers} with {shown_path(name)}")
    note_failures(report.failures, "not embedded")
    if not report.switched:
        note("bring the index up to date and run it again, or accept that with --allow-missing")
    return 1 if report.failures else 0


def _moved(
    opened: SearchIndex, place: str, wanted: str | None, *, allow_missing: bool
) -> tuple[str, MigrationReport]:
    """The name of the model that was moved to, and what was done."""
    from costream.index.reembedding import MigrationReport, migrate_index

    before = recall_model(place, opened.space)
    name = wanted or _previous(opened, place)
    held = [entry.space for entry in opened.spaces() if entry.role == "retired"]
    if wanted is None and len(held) == 1 and not opened.missing(held[0], 1):
        # Needs no model, which may not be there any more.
        opened.switch_space(held[0])
        opened.load()
        report = MigrationReport(embedded=0, switched=True, failures=())
    else:
        model = _load(name)
        if wanted is None and model.space not in held:
            raise DataError(
                f"{name} has changed: its vectors are none of those that the index holds",
                hint="--model NAME_OR_DIR names the model to go to",
            )
        with progress_bar("Embedding") as advance:
            report = migrate_index(
                opened,
                model,
                allow_missing=allow_missing,
                smallest_side=model.config.image_preprocess.decoded_px,
                progress=advance,
            )
    if report.switched:
        remember_model(place, name, previous=before)
    return name, report


def _previous(opened: SearchIndex, place: str) -> str:
    held = [entry.space for entry in opened.spaces() if entry.role == "retired"]
    if not held:
        raise ConfigError(
            f"the index {public_place(place)} holds no vectors of an earlier model",
            hint="--model NAME_OR_DIR embeds every item again",
        )
    return recall_previous(place) or held[-1].encoder


def _drop(opened: SearchIndex, place: str, *, as_json: bool) -> int:
    dropped = [entry.space for entry in opened.spaces() if entry.role != "active"]
    for space in dropped:
        opened.drop_space(space)
    names = [space.encoder for space in dropped]
    if as_json:
        say_json({"index": json_path(public_place(place))["path"], "dropped": names})
    else:
        say(f"dropped the vectors of {', '.join(names)}" if names else "nothing to drop")
    return 0


def _load(name: str) -> Any:
    load_torch()
    from costream.encoders.storage import load

    return load(name)
