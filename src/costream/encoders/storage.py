"""A model as a directory: `config.json`, `model.safetensors`, `tokenizer.json`, `card.md`.

Weights are stored in float16. Loading is all or error: every file is checked against the others,
and the loaded model must give the vectors that the saved one gave.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from costream.config import from_dict, to_dict
from costream.encoders.dual import DualConfig, DualEncoder, settings_hash, weight_digests
from costream.encoders.fingerprint import file_digest, join_digests
from costream.encoders.locate import (
    DEFAULT_MODEL,
    FORMAT,
    check_tokenizer,
    field_of,
    locate_model,
    read_description,
)
from costream.encoders.preprocess import load_tokenizer
from costream.errors import ConfigError, WeightsError

_GOLDEN_TEXT: Final = "A dog runs along the beach."
_GOLDEN_TOLERANCE: Final = 2e-3


def _golden_pixels(side: int) -> Tensor:
    """A fixed picture: smooth waves, a different one in each channel."""
    axis = torch.linspace(0, 6.283, side)
    waves = [torch.sin(axis * k)[:, None] * torch.cos(axis * (k + 1))[None, :] for k in (1, 2, 3)]
    return ((torch.stack(waves) + 1) * 127.5).round().to(torch.uint8)[None]


def golden_features(model: DualEncoder) -> dict[str, list[float]]:
    """First eight numbers of the vectors of a fixed picture and a fixed text.

    They are stored with a model and compared when it is loaded: weights that fit by name and shape
    but mean something else (another activation, say) do not pass.

    Returns:
        `image` and `text`, at most eight numbers each.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pixels = _golden_pixels(model.config.image_preprocess.size_px)
            image = model.embed_pixels(pixels.to(model.device))
        text = model.encode_texts([_GOLDEN_TEXT])
    finally:
        model.train(was_training)
    return {
        "image": [round(float(value), 5) for value in image[0, :8]],
        "text": [round(float(value), 5) for value in text[0, :8]],
    }


def save_model(model: DualEncoder, directory: str | Path, *, card: str = "") -> Path:
    """Write a model directory.

    Weights are stored, and from then on used, in float16: the saved model is what gets measured.

    Args:
        model: On any device.
        directory: Made if absent; files of an older model in it are replaced one by one.
        card: Markdown for people: data, licence, numbers; no card is written when empty.

    Returns:
        The directory.

    Raises:
        WeightsError: When a weight is not finite in float16; nothing was written then.
        OSError: When the disk refuses.

    Example:
        >>> import costream
        >>> model = costream.load("cots-mini")
        >>> costream.load(save_model(model, "copy")).space == model.space
        True
    """
    directory = Path(directory)
    state = {
        name: value.detach().cpu().to(torch.float16).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(
            f"weights {broken[:5]} are not finite in float16", hint="train on or again"
        )
    image_digest, text_digest = weight_digests(state)
    now = model.config
    config = replace(
        model.base_config,
        methods=now.methods,
        name=now.name,
        query_space=now.query_space,
        in_query_space=now.in_query_space,
    )
    stored = _empty_model(config, model.tokenizer)
    stored.load_state_dict(state)
    tokenizer = model.tokenizer.to_str().encode()
    description = {
        "format": FORMAT,
        "config": _plain(config),
        "image_digest": image_digest,
        "text_digest": text_digest,
        "weights_hash": join_digests(image_digest, text_digest),
        "settings_hash": settings_hash(model.config),
        "tokenizer_digest": file_digest(tokenizer),
        "golden": golden_features(stored),
    }
    directory.mkdir(parents=True, exist_ok=True)
    _replace(directory / "model.safetensors", save(state, {"format": "pt"}))
    _replace(directory / "tokenizer.json", tokenizer)
    if card:
        _replace(directory / "card.md", card.encode())
    _replace(directory / "config.json", (json.dumps(description, indent=1) + "\n").encode())
    return directory


def _plain(config: DualConfig) -> dict[str, Any]:
    """A configuration for JSON; without methods it is what earlier versions wrote and read."""
    values = to_dict(config)
    if not config.methods:
        del values["methods"]
    if config.query_space is None:
        del values["query_space"], values["in_query_space"]
    return values


def _empty_model(config: DualConfig, tokenizer: Tokenizer) -> DualEncoder:
    """A model whose weights are about to be filled in; leaves the random state of torch alone.

    Saving the best model in the middle of a run must not change the steps that follow.
    """
    from costream.method import apply_methods, read_method

    with torch.random.fork_rng(devices=[]):
        model = DualEncoder(replace(config, methods=()), tokenizer)
        model = apply_methods(model, [read_method(words) for words in config.methods]).model
        model.config = replace(model.config, in_query_space=config.in_query_space)
        return model


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    working = path.with_name(f".{path.name}.part")
    with working.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    working.replace(path)


def load_own_model(directory: Path) -> DualEncoder:
    """Read a directory that `save_model` wrote; all or error.

    Raises:
        WeightsError: When a file is absent, damaged, or does not fit the others.
    """
    description = read_description(directory)
    source = directory / "config.json"
    golden = field_of(description, "golden", source, dict)
    digests = tuple(field_of(description, f"{x}_digest", source, str) for x in ("image", "text"))
    check_tokenizer(directory, description)
    try:
        config = from_dict(DualConfig, field_of(description, "config", source, dict))
        model = _empty_model(config, load_tokenizer(directory / "tokenizer.json"))
    except (ConfigError, ValueError) as error:
        raise WeightsError(
            f"{source} does not describe a model: {error}", hint="copy the model directory again"
        ) from error
    found = settings_hash(model.config)
    if description.get("settings_hash", found) != found:
        raise WeightsError(
            f"the settings in {source} do not match their checksum",
            hint="the file was changed by hand or is damaged; copy the directory again",
        )
    state = _read_weights(directory / "model.safetensors", model.state_dict())
    if digests != weight_digests(state):
        raise WeightsError(
            f"{directory / 'model.safetensors'} does not match the checksum in config.json",
            hint="the file is damaged or of another model; copy the directory again",
        )
    model.load_state_dict(state)
    model.eval()
    _check_golden(model, golden, directory)
    return model


def _read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weights at {path}", hint="copy the whole model directory")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", hint="the file is damaged") from error
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [n for n in expected if n in state and state[n].shape != expected[n].shape]
    if missing or unknown or wrong:
        raise WeightsError(
            f"{path} does not fit its config.json: missing {missing[:5]}, unknown {unknown[:5]}, "
            f"of another shape {wrong[:5]}",
            hint="copy both files from the same model",
        )
    return state


def _check_golden(model: DualEncoder, golden: Mapping[str, Any], directory: Path) -> None:
    for slot, values in golden_features(model).items():
        stored = golden.get(slot)
        if not _are_numbers(stored, len(values)):
            raise WeightsError(
                f"{directory / 'config.json'} has no {len(values)} golden numbers for {slot}",
                hint="the file is damaged; copy the model directory again",
            )
        gap = float(np.abs(np.array(values) - np.array(stored)).max())
        if not gap <= _GOLDEN_TOLERANCE:
            raise WeightsError(
                f"{directory}: the {slot} vector of the fixed input is off by {gap:.4f}, "
                f"expected at most {_GOLDEN_TOLERANCE}",
                hint="config.json and the weights are not of the same model",
            )


def _are_numbers(values: object, count: int) -> TypeGuard[list[float]]:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) for value in values)
    )


def load(name_or_dir: str | Path = DEFAULT_MODEL, *, device: str | None = None) -> DualEncoder:
    """Load a model: one of ours, a Hugging Face directory, or a hub name like `openai/clip-...`.

    Args:
        name_or_dir: `cots-mini` (shipped), a directory, or a hub name with a slash (fetched only
            then).
        device: Where to, such as `cpu` or `cuda:1`; the first GPU if there is one, else the CPU,
            when None.

    Returns:
        The model, ready to embed.

    Raises:
        WeightsError: When there is no such model, or it is damaged.
        ConfigError: When there is no such device.

    Example:
        >>> load("cots-mini").space.dim
        256
    """
    from costream.encoders.device import default_device

    where = default_device() if device is None else _device_of(device)
    directory = locate_model(name_or_dir)
    if _is_own(directory):
        model = load_own_model(directory)
    else:
        from costream.encoders.pretrained import load_pretrained

        model = load_pretrained(directory)
    return model.to(where)


def _device_of(name: str) -> torch.device:
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"got device {name!r}, which torch cannot use: {first}") from error


def _is_own(directory: Path) -> bool:
    description: dict[str, Any] = read_description(directory, ours=False)
    return "format" in description
