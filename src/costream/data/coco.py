"""Read COCO captions JSON (`captions_val2017.json` and the like)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costream.data.dataset import DataSet
from costream.data.failures import printable
from costream.data.gather import (
    Gatherer,
    ReadOptions,
    find_picture_folder,
    picture_key,
    source_name,
)
from costream.errors import DataError


def read_coco(path: Path, document: Mapping[str, Any], options: ReadOptions) -> DataSet:
    """Read `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.

    Args:
        path: The file, for messages and to find the pictures near it.
        document: Its parsed content.
        options: `images` and `allow_missing` apply.

    Returns:
        One sample a picture; ids are file names; `meta` holds the picture's other fields.

    Raises:
        DataError: The file is of another COCO task, a caption belongs to no picture, or too many
            pictures are missing.
    """
    shown = printable(path)
    images, annotations = document["images"], document["annotations"]
    _check_task(images, annotations, shown)
    captions: dict[Any, list[Any]] = {record["id"]: [] for record in images}
    if len(captions) != len(images):
        raise DataError(
            f"{shown}: {len(images)} images share {len(captions)} ids, expected one id each",
            hint="the file was merged from several: give every picture its own id",
        )
    gatherer = Gatherer(name=source_name(path))
    for position, annotation in enumerate(annotations):
        owner = annotation["image_id"]
        if owner in captions:
            captions[owner].append(annotation["caption"])
        else:
            where = f"{shown} annotation {position}"
            gatherer.fail(where, f"has image_id {owner!r}, which is no picture's id")
    names = [picture_key(record["file_name"], shown) for record in images]
    folder = find_picture_folder(path, names, options)
    for record, name in zip(images, names, strict=True):
        where = f"{shown} image {record['id']!r}"
        meta = {key: value for key, value in record.items() if key != "file_name"}
        gatherer.add(name, folder / name, where=where, captions=captions[record["id"]], meta=meta)
    return gatherer.finish(options.allow_missing)


def _check_task(images: Any, annotations: Any, shown: str) -> None:
    for kind, records, needed in (
        ("images", images, ("id", "file_name")),
        ("annotations", annotations, ("image_id", "caption")),
    ):
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(
                f"{shown}: got '{kind}' that is no list of objects, expected COCO captions",
                hint="download the captions file again",
            )
        for position, record in enumerate(records):
            lacking = [field for field in needed if field not in record]
            if lacking:
                keys = ", ".join(map(repr, record)) or "no fields"
                raise DataError(
                    f"{shown}: {kind}[{position}] has {keys}; expected {lacking[0]!r} (COCO "
                    "captions, not instances, keypoints or test information)",
                    hint="name the captions_*.json file",
                )
