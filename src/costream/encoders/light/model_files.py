"""What a search needs of a model directory: its description and one tower's weights, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from costream.config import from_dict
from costream.encoders.fingerprint import digest_arrays, is_text_weight, join_digests
from costream.encoders.locate import FORMAT, field_of
from costream.errors import ConfigError, WeightsError
from costream.records import Space

C = TypeVar("C")

Choices = Mapping[str, tuple[object, ...] | None]
"""Every option of a part of a model, with the values that are implemented; None is any value.

A part with an option that is not listed, or with another value, is for the full implementation.
"""

_MODEL: Final[Choices] = {
    "name": None,
    "dim": None,
    "vision": None,
    "text": None,
    "image_preprocess": None,
    "text_preprocess": None,
    "projection_bias": None,
    "projection": ("both",),
}


def covers(choices: Choices, found: Mapping[str, Any]) -> bool:
    """Whether a part has the listed options, with values that are implemented."""
    return set(found) == set(choices) and all(
        allowed is None or found[key] in allowed for key, allowed in choices.items()
    )


def is_known(description: Mapping[str, Any], source: Path) -> bool:
    """Whether a model is in our format and has the usual parts, whatever their kind."""
    return (
        description.get("format") == FORMAT
        and "settings_hash" in description
        and covers(_MODEL, field_of(description, "config", source, dict))
    )


def space_of(description: Mapping[str, Any]) -> Space:
    """The space of a model's vectors."""
    return Space(
        encoder=description["config"]["name"],
        weights_hash=description["weights_hash"],
        preprocessing_hash=description["settings_hash"],
        dim=description["config"]["dim"],
    )


def read_options(kind: type[C], description: Mapping[str, Any], part: str, source: Path) -> C:
    """One part of a model's description as its configuration class.

    Raises:
        WeightsError: When an option is unknown or absent, or has no value that it may have.
    """
    options = field_of(field_of(description, "config", source, dict), part, source, dict)
    try:
        return from_dict(kind, options)
    except ConfigError as error:
        raise WeightsError(
            f"{source} does not describe a model: {error}", hint="copy the model directory again"
        ) from error


def read_weights(
    directory: Path, description: Mapping[str, Any], half: Literal["image", "text"]
) -> dict[str, NDArray[np.floating]]:
    """The weights of one tower with its projection, as they are stored.

    Args:
        directory: Of the model.
        description: Its decoded `config.json`.
        half: Which tower.

    Returns:
        Weights by name.

    Raises:
        WeightsError: When the file is absent or damaged, or does not match the description.
    """
    source, path = directory / "config.json", directory / "model.safetensors"
    image, text, joined = (
        field_of(description, key, source, str)
        for key in ("image_digest", "text_digest", "weights_hash")
    )
    if join_digests(image, text) != joined:
        raise WeightsError(
            f"the checksums in {source} contradict each other",
            hint="the file is damaged; copy the model directory again",
        )
    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if is_text_weight(name) == (half == "text")]
            stored = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"cannot read {path}: {error}", hint="copy the whole model directory again"
        ) from error
    found = digest_arrays((name, values.data) for name, values in stored.items())
    if found != {"image": image, "text": text}[half]:
        raise WeightsError(
            f"the {half} weights in {path} do not match the checksum in config.json",
            hint="the file is damaged or of another model; copy the directory again",
        )
    return stored
