"""Where a model is, by name or path. Needs no torch."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Final

from costream.errors import WeightsError
from costream.suggest import did_you_mean

FORMAT: Final = "costream-model-1"


def shipped_models() -> dict[str, Path]:
    """Models inside the package: name to directory."""
    root = Path(str(resources.files("costream") / "assets" / "models"))
    if not root.is_dir():
        return {}
    return {each.name: each for each in sorted(root.iterdir()) if (each / "config.json").is_file()}


def locate_model(name_or_dir: str | Path) -> Path:
    """Directory of a model.

    Args:
        name_or_dir: A shipped name, a directory, or a hub name with one slash, which is fetched when
            no directory of that name exists.

    Raises:
        WeightsError: When there is none; says what there is.
    """
    path = Path(name_or_dir)
    if path.is_dir():
        return path
    shipped = shipped_models()
    name = str(name_or_dir)
    if name in shipped:
        return shipped[name]
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from costream.encoders.pretrained import fetch_from_hub

        return fetch_from_hub(name)
    raise WeightsError(
        f"no model {name!r}: not a directory, and the shipped models are {sorted(shipped)}",
        hint=f"{did_you_mean(name, shipped)}".strip() or "give a model directory or a hub name like owner/name",
    )


def read_description(directory: Path, *, ours: bool = True) -> dict[str, Any]:
    """The decoded `config.json` of a model directory.

    Args:
        directory: Of a model.
        ours: Whether it must be in costream's own format.

    Raises:
        WeightsError: When it is absent, damaged, or in an unknown format.
    """
    path = directory / "config.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(
            f"{directory} has no config.json", hint="give a model directory"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", hint="the file is damaged") from error
    if not isinstance(description, dict):
        raise WeightsError(f"{path} holds a {type(description).__name__}, expected an object")
    if ours and description.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has format {description.get('format')!r}, expected {FORMAT!r}",
            hint="it was made by another version of costream, or by another program",
        )
    return description
