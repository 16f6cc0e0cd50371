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


def is_address(place: str | os.PathLike[str]) -> bool:
    """Whether an index is in a database and not in a folder."""
    return "://" in os.fspath(place)


def remember_model(
    place: str | os.PathLike[str], model: str, *, previous: str | None = None
) -> None:
    """Note the model beside the index; folders by their absolute path.

    An index in a database has no such note: its space names the model.

    Args:
        place: Where the index is.
        model: Name or folder, as given.
        previous: The one before, when the index was moved to another; what is noted stays.

    Raises:
        DataError: It cannot be written.
    """
    if is_address(place):
        return
    from costream.index.database import explained

    index_dir = Path(place)
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    note = {"model": name}
    if (before := previous or recall_previous(place)) not in (None, name):
        note["previous"] = str(before)
    content = json.dumps(note) + "\n"
    target = index_dir / _FILE
    if _read(target) == content:
        return
    temporary = index_dir / f"{_FILE}.{os.getpid()}.tmp"
    with explained(target, "write"):
        try:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> str:
    """What is in a file; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def recall_previous(place: str | os.PathLike[str]) -> str | None:
    """The model that an index was moved from; None when that is not known."""
    if is_address(place):
        return None
    try:
        note = json.loads((Path(place) / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = note.get("previous") if isinstance(note, dict) else None
    return name if isinstance(name, str) else None


def recall_model(place: str | os.PathLike[str], space: Space | None) -> str | None:
    """The model that an index was made with.

    Args:
        place: Where the index is.
        space: Space of the index.

    Returns:
        Name or folder; without a note the name in the space; None when neither is there.

    Raises:
        DataError: When the note is damaged or may not be read.
    """
    if is_address(place):
        return None if space is None else space.encoder
    path = Path(place) / _FILE
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["model"]
    except FileNotFoundError:
        return None if space is None else space.encoder
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}), expected the name of a model",
            hint="check its permissions, or give --model",
        ) from error
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


def copy_note(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Note beside a copy of an index what is noted beside the index, if anything is."""
    if is_address(source) or not (Path(source) / _FILE).exists():
        return
    name = recall_model(source, None)
    if name is not None:
        remember_model(target, name)
