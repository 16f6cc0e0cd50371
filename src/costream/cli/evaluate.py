"""Measure a model on captioned pictures or videos, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from costream.cli.options import DEFAULT_MODEL, AllowBroken, AsJson, DataSource, ModelName
from costream.cli.output import (
    check_target,
    note,
    progress_bar,
    say_json,
    say_rich,
    shown_path,
)


def run(
    data: DataSource,
    model: ModelName = DEFAULT_MODEL,
    split: Annotated[
        str | None, typer.Option("--split", help="Which part, where the data has several.")
    ] = None,
    rank: Annotated[
        list[str] | None,
        typer.Option(
            "--rank", metavar="METHOD", help="A rank step: 'NAME KEY=VALUE ...'; repeatable."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol", metavar="METHOD", help="Another evaluation: 'NAME KEY=VALUE ...'."
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", metavar="NUMBER", min=1, help="Frames taken of each video.")
    ] = 12,
    allow_broken: AllowBroken = 0,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Evaluate a model."""
    if save is not None:
        check_target(save)  # a measurement may take an hour
    from costream.data.detect import read_data

    dataset = read_data(data, split=split, allow_missing=allow_broken)

    from costream.evaluate import evaluate, report_table, report_to_json
    from costream.evaluate.systems import evaluate_system
    from costream.system import load_system, run_protocol

    system = load_system(model, rank or ())
    total = dataset.num_images + dataset.num_captions
    done = 0
    with progress_bar("Evaluating") as advance:

        def count(more: int) -> None:
            nonlocal done
            done += more
            advance(done, total)

        if protocol is not None:
            report = run_protocol(protocol, system, dataset)
        elif system.parts.scorer is not None or system.parts.rank or dataset.shows == "video":
            report = evaluate_system(system, dataset, frames=frames, progress=count)
        else:
            report = evaluate(system.model, dataset, allow_broken=allow_broken, progress=count)
    values = report_to_json(report)
    if as_json:
        say_json(values)
    else:
        say_rich(report_table(report))
    if save is not None:
        save.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        note(f"wrote {shown_path(str(save))}")
    left_out = [*report.data.get("broken", ()), *report.data.get("missing", ())]
    return 1 if left_out else 0
