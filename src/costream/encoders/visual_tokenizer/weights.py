"""Reading weights: all of them, or an error that says which do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from costream.errors import WeightsError


def _first(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a safetensors file that must hold exactly the expected weights.

    Args:
        path: The file.
        expected: Name to a tensor of the right shape and type; values are not used.

    Returns:
        Name to tensor, of the types of `expected`.

    Raises:
        WeightsError: When the file is absent or damaged, or any weight is missing, unexpected, of
            another shape or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"no weights at {path}", hint="name the safetensors file")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file: {error}",
            hint="copy or convert it again",
        ) from error
    missing, unexpected = set(expected) - set(found), set(found) - set(expected)
    if missing or unexpected:
        raise WeightsError(
            f"{path}: {len(missing)} of {len(expected)} weights missing ({_first(missing)}), "
            f"{len(unexpected)} unexpected ({_first(unexpected)})",
            hint="it belongs to another kind of tokenizer",
        )
    for name, like in expected.items():
        if found[name].shape != like.shape:
            raise WeightsError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, "
                f"expected {tuple(like.shape)}",
                hint="it belongs to a tokenizer of another size",
            )
        if not torch.isfinite(found[name]).all():
            raise WeightsError(f"{path}: {name} has values that are not finite")
    return {name: found[name].to(like.dtype) for name, like in expected.items()}
