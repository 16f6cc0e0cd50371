"""Read a folder of pictures, without captions."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from costream.data.dataset import DataSet
from costream.data.failures import printable
from costream.data.gather import Gatherer, ReadOptions, source_name
from costream.data.walk import find_images
from costream.errors import DataError


def read_folder(path: Path, options: ReadOptions) -> DataSet:
    """Read every picture below a folder.

    Args:
        path: The folder.
        options: `allow_missing` counts unreadable files and folders.

    Returns:
        Samples with an empty `text`; ids are paths relative to the folder.

    Raises:
        DataError: The folder is absent or holds no picture, or too much of it cannot be read.
    """
    found, failures = find_images(path)
    gatherer = Gatherer(name=source_name(path), need_captions=False, failures=failures)
    for file in found:
        key = Path(os.path.relpath(file, path)).as_posix()
        gatherer.add(key, file, where=printable(path))
    if not found and not failures:
        raise DataError(
            f"{printable(path)}: holds no picture ({_what_is_there(path)}), expected pictures, "
            "WebDataset tars or a manifest",
            hint="name the folder that holds the pictures",
        )
    return gatherer.finish(options.allow_missing)


def _what_is_there(path: Path) -> str:
    kinds = Counter(entry.suffix.lower() or "no suffix" for entry in path.iterdir())
    if not kinds:
        return "it is empty"
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(4))
