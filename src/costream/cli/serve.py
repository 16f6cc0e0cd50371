"""Answer searches over HTTP, with a page for people."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costream.cli._model_of_index import recall_model
from costream.cli.options import DEFAULT_INDEX, DEFAULT_MODEL, IndexPlace, KernelName, RankSteps
from costream.cli.output import note, say, shown_path
from costream.errors import ConfigError

if TYPE_CHECKING:
    from costream.index import SearchIndex
    from costream.serve.models import ModelParts


def run(
    index: IndexPlace = str(DEFAULT_INDEX),
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; other machines need API keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")
    ] = 8080,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="One key a line.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="A further name that clients call; repeatable."
        ),
    ] = None,
    allow_fetch: Annotated[
        bool, typer.Option("--allow-fetch", help="Take pictures by public URLs.")
    ] = False,
    rate: Annotated[
        float,
        typer.Option("--rate", min=0, help="Most requests a second of a client; 0 for any."),
    ] = 0.0,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME_OR_DIR", help="Default: the one that the index was made with."
        ),
    ] = None,
    rank: RankSteps = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Where thumbnails are kept. Default: in the index."
        ),
    ] = None,
    kernel: KernelName = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every request.")] = False,
) -> int:
    """Serve an index."""
    try:
        from costream.serve.keys import KeyRing, read_keys
        from costream.serve.server import Server
        from costream.serve.service import Service
        from costream.serve.settings import Limits, ServeSettings
    except ImportError as error:
        raise ConfigError(
            f"serving needs the package {error.name}, which is not installed",
            hint="pip install 'costream[serve]'",
        ) from error
    settings = ServeSettings(
        host=host,
        port=port,
        keys=KeyRing() if api_key_file is None else read_keys(api_key_file),
        allowed_hosts=tuple(allow_host or ()),
        allow_fetch=allow_fetch,
        kernel=kernel,
        limits=Limits(rate_per_s=rate),
    )

    def load(opened: SearchIndex) -> ModelParts:
        from costream.serve.models import load_parts

        name = model or recall_model(index, opened.space) or DEFAULT_MODEL
        return load_parts(name, rank or ())

    service = Service(index, settings, load, cache=cache)

    def started(url: str) -> None:
        say(url)
        opened = service.collection.index
        note(f"{len(opened)} items of {shown_path(opened.location)}; Ctrl-C ends")

    server = Server(service, started=started)
    _log_to_stderr(verbose)
    server.answer()
    return 0


def _log_to_stderr(verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("costream")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("uvicorn.error").addHandler(handler)
