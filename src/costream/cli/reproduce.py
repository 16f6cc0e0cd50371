"""Run the experiment behind a method's claim and print its table with a verdict."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from costream.cli.options import AsJson
from costream.cli.output import note, say, say_json
from costream.errors import ConfigError


def run(
    method: Annotated[str, typer.Argument(metavar="NAME", help="See costream methods.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="Real pictures, where wanted."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for results and plots.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Reproduce a claim."""
    from costream.card import find_method

    card = find_method(method)
    module = import_module(f"costream.methods.{card.name.replace('-', '_')}")
    claim = vars(module).get("claim")
    if claim is None:
        raise ConfigError(
            f"method {method!r} has no claim to reproduce, expected a function claim in its file",
            hint="see costream methods",
        )

    from costream.evaluate.claims import claim_to_json, render_claim

    tables = claim(data=data, out=out, say=note)
    if as_json:
        say_json({"method": method, "claims": [claim_to_json(table) for table in tables]})
    else:
        say("\n\n".join(render_claim(table) for table in tables))
    return 0
