"""Read Karpathy's `dataset_flickr8k.json`, `dataset_flickr30k.json` and `dataset_coco.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costream.data.dataset import DataSet
from costream.data.failures import printable
from costream.data.gather import (
    Gatherer,
    ReadOptions,
    choose_split,
    find_picture_folder,
    picture_key,
    source_name,
)
from costream.errors import DataError


def read_karpathy(path: Path, document: Mapping[str, Any], options: ReadOptions) -> DataSet:
    """Read `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`.

    `split="train"` includes `restval`, as in the published results on COCO (113,287 pictures).

    Args:
        path: The file, for messages and to find the pictures near it.
        document: Its parsed content.
        options: `split`, `images` and `allow_missing` apply.

    Returns:
        One sample a picture; ids are `filepath/filename`; `meta` holds split and numbers.

    Raises:
        DataError: A record has another form, the split is not named or absent, or too many
            pictures are missing.
    """
    shown = printable(path)
    records = [
        _checked(record, f"{shown} image {n}") for n, record in enumerate(document["images"])
    ]
    found = Counter(_split_of(record) for record in records)
    split = choose_split(found, options.split, shown)
    chosen = [record for record in records if split is None or _split_of(record) == split]
    names = [_name(record, shown) for record in chosen]
    folder = find_picture_folder(path, names, options)
    gatherer = Gatherer(name=source_name(path) + (f" {split}" if split else ""))
    for record, name in zip(chosen, names, strict=True):
        used = {"filename", "filepath", "sentences"}
        gatherer.add(
            name,
            folder / name,
            where=f"{shown} {name}",
            captions=[sentence["raw"] for sentence in record["sentences"]],
            meta={key: value for key, value in record.items() if key not in used},
        )
    return gatherer.finish(options.allow_missing)


def _split_of(record: Mapping[str, Any]) -> str:
    split = str(record.get("split", "all"))
    return "train" if split == "restval" else split


def _name(record: Mapping[str, Any], shown: str) -> str:
    return picture_key(str(Path(record.get("filepath") or "") / record["filename"]), shown)


def _checked(record: Any, where: str) -> dict[str, Any]:
    good = (
        isinstance(record, dict)
        and isinstance(record.get("filename"), str)
        and isinstance(record.get("sentences"), list)
        and all(isinstance(text, dict) and "raw" in text for text in record["sentences"])
    )
    if not good:
        raise DataError(
            f"{where}: got {record!r:.80}, expected 'filename' and 'sentences' with 'raw' texts",
            hint="download Karpathy's caption data sets again",
        )
    return dict(record)
