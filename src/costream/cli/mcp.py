"""Let language models search an index, as a server of the Model Context Protocol on stdio."""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from costream.cli._model_of_index import recall_model
from costream.cli.options import DEFAULT_INDEX, DEFAULT_MODEL, IndexPlace, RankSteps
from costream.errors import ConfigError

if TYPE_CHECKING:
    from costream.index import SearchIndex
    from costream.search import Searcher


def run(
    index: IndexPlace = str(DEFAULT_INDEX),
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME_OR_DIR", help="Default: the one that the index was made with."
        ),
    ] = None,
    rank: RankSteps = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every refusal.")] = False,
) -> int:
    """Serve an index to a client that starts this program and speaks on its stdin and stdout."""
    try:
        from costream.serve.mcp.server import serve
    except ImportError as error:
        raise ConfigError(
            f"MCP needs the package {error.name}, which is not installed",
            hint="pip install 'costream[mcp]'",
        ) from error

    def load(opened: SearchIndex) -> Searcher:
        from costream.search.model import load_searcher

        name = model or recall_model(index, opened.space) or DEFAULT_MODEL
        return load_searcher(opened, name, rank or ())

    # On stdout every line is a message of the protocol.
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    # The thread that waits for stdin cannot be told to stop; nothing here needs tidying up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve(index, load)
    return 0
