"""Visual tokenizers on disk: settings as JSON, weights as safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch

from costream.encoders.visual_tokenizer.dvae import DiscreteVae, DiscreteVaeConfig
from costream.encoders.visual_tokenizer.kmeans import KMeansTokenizer
from costream.encoders.visual_tokenizer.published import PublishedDvae, PublishedDvaeConfig
from costream.encoders.visual_tokenizer.weights import read_weights
from costream.errors import ConfigError, WeightsError

AnyTokenizer: TypeAlias = DiscreteVae | PublishedDvae | KMeansTokenizer

_FORMAT = "costream visual tokenizer 1"
_SETTINGS = "visual_tokenizer.json"
_WEIGHTS = "visual_tokenizer.safetensors"


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_tokenizer(tokenizer: AnyTokenizer, directory: str | Path) -> None:
    """Write a visual tokenizer into a directory, which is made when it is not there.

    Args:
        tokenizer: Any of the three kinds.
        directory: Gets `visual_tokenizer.json` and `visual_tokenizer.safetensors`.

    Raises:
        OSError: When the disk refuses; what was there before is still whole.
    """
    from safetensors.torch import save

    if isinstance(tokenizer, DiscreteVae):
        kind, config = "dvae", asdict(tokenizer.config)
    elif isinstance(tokenizer, PublishedDvae):
        kind, config = "published_dvae", asdict(tokenizer.config)
    else:
        kind, config = (
            "kmeans",
            {
                "vocab_size": tokenizer.vocab_size,
                "side_px": tokenizer.pixels_per_token,
            },
        )
    state = {
        name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()
    }
    weights = save(state)
    settings = {
        "format": _FORMAT,
        "kind": kind,
        "config": config,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # Weights first: a stop between the two leaves a checksum that does not fit, never a mixture.
    _replace(folder / _WEIGHTS, weights)
    _replace(folder / _SETTINGS, json.dumps(settings, indent=2).encode())


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(f"no visual tokenizer at {path.parent}", hint=f"{path.name} is missing")
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("format") != _FORMAT:
        found = settings.get("format") if isinstance(settings, dict) else type(settings).__name__
        raise WeightsError(f"{path}: format is {found!r}, expected {_FORMAT!r}")
    return settings


def _empty(kind: object, config: Mapping[str, Any]) -> AnyTokenizer:
    """A tokenizer of the right form, its weights still to be filled in."""
    if kind == "dvae":
        return DiscreteVae(DiscreteVaeConfig(**config))
    if kind == "published_dvae":
        return PublishedDvae(PublishedDvaeConfig(**config))
    if kind == "kmeans":
        return KMeansTokenizer(torch.zeros(config["vocab_size"], 3 * config["side_px"] ** 2))
    raise ConfigError(f"kind is {kind!r}, expected dvae, published_dvae or kmeans")


def load_tokenizer_model(directory: str | Path) -> AnyTokenizer:
    """Read a visual tokenizer from a directory that `save_tokenizer` wrote.

    Args:
        directory: The directory.

    Returns:
        The tokenizer on the CPU, in evaluation mode, taking no gradient.

    Raises:
        WeightsError: When a file is absent, damaged, or does not fit the other.
    """
    folder = Path(directory)
    settings = _read_settings(folder / _SETTINGS)
    try:
        tokenizer = _empty(settings.get("kind"), settings.get("config", {}))
    except (TypeError, KeyError, ConfigError) as error:
        raise WeightsError(
            f"{folder / _SETTINGS} does not describe a tokenizer: {error}"
        ) from error
    path = folder / _WEIGHTS
    if path.is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != settings.get("weights_sha256"):
            raise WeightsError(
                f"{path} has sha256 {found[:16]}..., expected {settings.get('weights_sha256')}",
                hint="the file is damaged or belongs to another tokenizer; copy or train it again",
            )
    tokenizer.load_state_dict(read_weights(path, tokenizer.state_dict()))
    tokenizer.requires_grad_(requires_grad=False)
    return tokenizer.eval()
