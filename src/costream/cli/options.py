"""Options that several verbs share, so that they are spelt and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_INDEX = Path(".costream")
DEFAULT_MODEL = "cots-mini"

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
IndexPlace = Annotated[
    str,
    typer.Option(
        "--index", metavar="DIR_OR_URL", help="Folder of the index, or postgresql://HOST/DATABASE."
    ),
]
IndexDir = Annotated[Path, typer.Option("--index", metavar="DIR", help="Folder of the index.")]
KernelName = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        metavar="NAME",
        help="What scans the vectors: exact, four_bit or graph. Default: by size.",
    ),
]
RankSteps = Annotated[
    list[str] | None,
    typer.Option("--rank", metavar="METHOD", help="A rank step: 'NAME KEY=VALUE ...'; repeatable."),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME_OR_DIR", help="A shipped model, a folder, or a hub name."
    ),
]
DataSource = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DIR_OR_MANIFEST",
        help="Captioned pictures: JSONL, COCO, Karpathy or Flickr captions, WebDataset tars.",
    ),
]
AllowBroken = Annotated[
    int,
    typer.Option(
        "--allow-broken",
        min=0,
        metavar="NUMBER",
        help="Records that may have no picture or caption; they are listed.",
    ),
]
