"""Run the experiment behind a method's claim and print its table with a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costream.cli.options import AsJson
from costream.cli.output import check_target, note, say, say_json, shown_path
from costream.errors import ConfigError, CostreamError

if TYPE_CHECKING:
    from costream.evaluate import ClaimOptions, ClaimTable

DEFAULT_RESULTS = Path("reproduced")
_PAGE = "report.html"


def run(
    method: Annotated[
        str | None, typer.Argument(metavar="NAME", help="See costream methods; or: all.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=2, metavar="N", help="Runs of each comparison.")
    ] = 3,
    fast: Annotated[
        bool, typer.Option("--fast", help="Only see that it runs: proves nothing.")
    ] = False,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root",
            metavar="DIR",
            help="Folder with real data sets by name (flickr8k, ...), used where wanted.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for results and plots [reproduced]."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write one HTML page of all results in --out.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Reproduce a claim."""
    from costream.card import find_method, find_methods
    from costream.evaluate.claims import ClaimOptions

    if method is None and not report:
        raise ConfigError(
            "got no method, expected one", hint="costream reproduce NAME, or all, or --report"
        )
    if data_root is not None and not data_root.is_dir():
        raise ConfigError(
            f"there is no folder {shown_path(str(data_root))} (--data-root)",
            hint="name the folder that has flickr8k, rsicd, ... in it",
        )
    every = list(find_methods())
    names = every if method == "all" else [] if method is None else [find_method(method).name]
    # Many minutes of work are kept for the report, and to go on from after a stop.
    keeps = out is not None or report or method == "all"
    folder = (out or DEFAULT_RESULTS) if keeps else None
    if method is None and folder is not None and not folder.is_dir():
        raise ConfigError(
            f"there is no folder {shown_path(str(folder))} with results to report",
            hint="costream reproduce NAME (or all) --out DIR makes them",
        )
    if folder is None:
        note("what it finds is not kept, nor what a stop leaves; --out DIR keeps both")
    options = ClaimOptions(seeds=seeds, fast=fast, data_root=data_root, out=folder, say=note)
    claims: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in names:
        if len(names) > 1:
            note(f"--- {name}")
        try:
            tables = _reproduce(name, options)
        except CostreamError as error:
            if len(names) == 1:
                raise
            failed.append(name)
            note(f"{name} failed: {error}")
            continue
        claims.append(_shown(name, tables, as_json=as_json))
    if report and folder is not None:
        _write_page(folder)
    if as_json:
        say_json(claims[0] if len(names) == 1 else {"methods": claims, "failed": failed})
    return 1 if failed else 0


def _reproduce(name: str, options: ClaimOptions) -> Sequence[ClaimTable]:
    from costream.evaluate.claim_results import earlier_result, write_result
    from costream.method import find_module

    _, module = find_module(name)
    claim = vars(module).get("claim")
    if claim is None:
        raise ConfigError(
            f"method {name!r} has no claim to reproduce, expected a function claim in its file",
            hint="see costream methods",
        )
    earlier: dict[str, Any] = {}
    if options.out is not None:
        check_target(options.out / f"{name}.json")
        earlier = earlier_result(options.out, name, fast=options.fast)
    begin = time.monotonic()
    tables: Sequence[ClaimTable] = claim(replace(options))
    if options.out is not None:
        write_result(options.out, name, tables, options, time.monotonic() - begin, earlier)
    return tables


def _shown(name: str, tables: Sequence[ClaimTable], *, as_json: bool) -> dict[str, Any]:
    from costream.card import find_method
    from costream.evaluate.claims import claim_to_json, render_claim

    scale = find_method(name).scale
    if not as_json:
        say("\n\n".join(render_claim(table) for table in tables))
        if any(row.verdict != "shown" for table in tables for row in table.rows):
            say(f"\nscale: {scale}")
    return {"method": name, "scale": scale, "claims": [claim_to_json(t) for t in tables]}


def _write_page(folder: Path) -> None:
    from costream.card import find_methods
    from costream.evaluate.claim_results import read_results, report_page

    folder.mkdir(parents=True, exist_ok=True)
    page = report_page(read_results(folder), find_methods())
    (folder / _PAGE).write_text(page, encoding="utf-8")
    note(f"wrote {shown_path(str(folder / _PAGE))}")
