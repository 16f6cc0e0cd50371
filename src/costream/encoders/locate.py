"""Where a model is, by name or path. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

from costream.encoders.fingerprint import file_digest
from costream.errors import WeightsError
from costream.suggest import did_you_mean

FORMAT: Final = "costream-model-1"
DEFAULT_MODEL: Final = "cots-mini"
"""The model that comes with costream: used, and trained on, where none is named."""

V = TypeVar("V")


def shipped_models() -> dict[str, Path]:
    """Models inside the package: name to directory."""
    root = Path(str(resources.files("costream") / "assets" / "models"))
    if not root.is_dir():
        return {}
    return {each.name: each for each in sorted(root.iterdir()) if (each / "config.json").is_file()}


def locate_model(name_or_dir: str | Path) -> Path:
    """Directory of a model.

    Args:
        name_or_dir: A shipped name, a directory, or a hub name with one slash, which is fetched
            when no directory of that name exists. A string that is a shipped name always means the
            shipped model; a directory of the same name is `./name`.

    Returns:
        A directory that exists.

    Raises:
        WeightsError: When there is none; says what there is.
    """
    shipped = shipped_models()
    if isinstance(name_or_dir, str) and name_or_dir in shipped:
        return shipped[name_or_dir]
    path = Path(name_or_dir)
    if path.is_dir():
        return path
    name = str(name_or_dir)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from costream.encoders.pretrained import fetch_from_hub

        return fetch_from_hub(name)
    raise WeightsError(
        f"no model {name!r}: not a directory, and the shipped models are {sorted(shipped)}",
        hint=did_you_mean(name, shipped).strip()
        or "give a model directory or a hub name like owner/name",
    )


def read_description(directory: Path, *, ours: bool = True) -> dict[str, Any]:
    """The decoded `config.json` of a model directory.

    Args:
        directory: Of a model.
        ours: Whether it must be in costream's own format.

    Returns:
        What the file holds.

    Raises:
        WeightsError: When it is absent, damaged, or in an unknown format.
    """
    path = directory / "config.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        below = directory / "model"  # where a training run puts its model
        hint = f"did you mean {below}?" if below.is_dir() else "give a model directory"
        raise WeightsError(f"{directory} has no config.json", hint=hint) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", hint="the file is damaged") from error
    if not isinstance(description, dict):
        raise WeightsError(
            f"{path} holds a {type(description).__name__}, expected an object",
            hint="the file is damaged",
        )
    if ours and description.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has format {description.get('format')!r}, expected {FORMAT!r}",
            hint="it was made by another version of costream, or by another program",
        )
    return description


def field_of(description: Mapping[str, Any], key: str, source: Path, kind: type[V]) -> V:
    """One value of a decoded `config.json`.

    Args:
        description: Of `read_description`, or a part of it.
        key: Of the value.
        source: Where it was read from, for the message.
        kind: What it must be.

    Returns:
        The value.

    Raises:
        WeightsError: When it is absent or of another kind.

    Example:
        >>> field_of({"format": "x"}, "format", Path("config.json"), str)
        'x'
    """
    value = description.get(key)
    if not isinstance(value, kind):
        found = "no" if key not in description else f"a {type(value).__name__} as"
        raise WeightsError(
            f"{source} has {found} {key!r}, expected a {kind.__name__}",
            hint="the file is damaged; copy the model directory again",
        )
    return value


def saved_methods(name_or_dir: str | Path) -> tuple[str, ...]:
    """The words of the methods that a saved model is put together by.

    Args:
        name_or_dir: As of `locate_model`.

    Returns:
        In order; none for a model in another format.

    Raises:
        WeightsError: As of `locate_model` and `read_description`.

    Example:
        >>> saved_methods("cots-mini")
        ()
    """
    config = read_description(locate_model(name_or_dir), ours=False).get("config")
    return tuple(config.get("methods", ())) if isinstance(config, dict) else ()


def check_tokenizer(directory: Path, description: Mapping[str, Any]) -> None:
    """Compare `tokenizer.json` with its checksum: one changed entry would change vectors unseen.

    Args:
        directory: Of the model.
        description: Of `read_description`. Without `tokenizer_digest` nothing is compared.

    Raises:
        WeightsError: When they differ, or the file is absent.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise WeightsError(
            f"no tokenizer at {path}", hint="the model directory needs tokenizer.json"
        )
    expected = description.get("tokenizer_digest")
    if expected is not None and file_digest(path.read_bytes()) != expected:
        raise WeightsError(
            f"{path} does not match the checksum in config.json",
            hint="the file is damaged or of another model; copy the directory again",
        )
