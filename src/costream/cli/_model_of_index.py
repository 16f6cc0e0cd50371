"""Which model an index was made with, kept beside it, so that searching finds the same one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from costream.errors import DataError

if TYPE_CHECKING:
    from costream.records import Space

_FILE = "model.json"


def remember_model(index_dir: Path, model: str) -> None:
    """Note the model beside the index; folders by their absolute path.

    Args:
        index_dir: Folder of the index.
        model: Name or folder, as given.
    """
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    content = json.dumps({"model": name}) + "\n"
    target = index_dir / _FILE
    temporary = index_dir / f"{_FILE}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(target)


def recall_model(index_dir: Path, space: Space | None) -> str | None:
    """The model that an index was made with.

    Args:
        index_dir: Folder of the index.
        space: Space of the index.

    Returns:
        Name or folder; without a note the name in the space; None when neither is there.

    Raises:
        DataError: When the note is damaged.
    """
    path = index_dir / _FILE
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["model"]
    except FileNotFoundError:
        return None if space is None else space.encoder
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}), expected the name of a model as JSON",
            hint="delete it and give --model",
        ) from error
    if not isinstance(name, str):
        raise DataError(
            f"{path} names {name!r}, expected the name of a model",
            hint="delete it and give --model",
        )
    return name
