"""A checkpoint on disk, read so that nothing is left over and nothing is made up."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from costream.errors import WeightsError

_SINGLE: Final = "model.safetensors"
_SHARDS: Final = "model.safetensors.index.json"


class Source:
    """The weights of a checkpoint, each to be taken once.

    Args:
        weights: By their names in the checkpoint.
        place: For messages.
        meaningless: Patterns of names that may stay untaken.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], place: Path, *, meaningless: tuple[str, ...] = ()
    ) -> None:
        self._weights = dict(weights)
        self._place = place
        self._meaningless = re.compile("|".join((*meaningless, r".*position_ids")))
        self._missing: list[str] = []

    def has(self, name: str) -> bool:
        """Whether there is a weight of this name that was not taken yet."""
        return name in self._weights

    def take(self, name: str) -> Tensor:
        """The weight of this name as float32; what is missing is reported by `finish`."""
        value = self._weights.pop(name, None)
        if value is None:
            self._missing.append(name)
            return torch.zeros(())
        return value.to(torch.float32)

    def take_pair(self, target: str, name: str) -> dict[str, Tensor]:
        """Weight and bias of a layer, renamed."""
        return {
            f"{target}.weight": self.take(f"{name}.weight"),
            f"{target}.bias": self.take(f"{name}.bias"),
        }

    def take_attention(self, target: str, names: tuple[str, str, str]) -> dict[str, Tensor]:
        """Query, key and value of a layer as one `qkv`."""
        parts = [self.take_pair("part", name) for name in names]
        if any(part[key].ndim == 0 for part in parts for key in part):
            return {}
        return {
            f"{target}.qkv.{kind}": torch.cat([part[f"part.{kind}"] for part in parts])
            for kind in ("weight", "bias")
        }

    def finish(self) -> None:
        """Check that all was found and all was taken.

        Raises:
            WeightsError: Names what is missing and what is left.
        """
        left = sorted(name for name in self._weights if not self._meaningless.fullmatch(name))
        if self._missing or left:
            raise WeightsError(
                f"the weights in {self._place} do not fit their config.json: "
                f"missing {_some(self._missing)}, unexpected {_some(left)}",
                hint="this architecture or variant is not supported, or files of two models mixed",
            )


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:4])
    return f"{shown}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"


def fill(tower: nn.Module, state: Mapping[str, Tensor], place: Path) -> None:
    """Load a tower's weights; all, of the right shape, and finite.

    Raises:
        WeightsError: Names the first weights that do not fit.
    """
    expected = tower.state_dict()
    odd = sorted(set(expected) ^ set(state))
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if odd or wrong or broken:
        raise WeightsError(
            f"the weights in {place} do not fit their config.json: "
            f"{_some([*wrong, *(f'{n} in only one of them' for n in odd)])}; "
            f"not finite: {_some(broken)}",
            hint="the files are damaged or of two models",
        )
    tower.load_state_dict(state)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when the file does not exist.

    Raises:
        WeightsError: When it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", hint="the file is damaged") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All weights of a directory, from one safetensors file or from shards.

    Raises:
        WeightsError: When there are none, only pickles, or a file is damaged.
    """
    if (directory / _SINGLE).is_file():
        files = [_SINGLE]
    elif (directory / _SHARDS).is_file():
        files = sorted(set(read_json(directory / _SHARDS).get("weight_map", {}).values()))
    else:
        pickles = sorted(p.name for p in directory.glob("*.bin"))
        found = f"only pickles ({', '.join(pickles)})" if pickles else "no weights"
        raise WeightsError(
            f"{directory} has {found}, expected {_SINGLE}",
            hint="convert with transformers: AutoModel.from_pretrained(DIR).save_pretrained(NEW); "
            "costream unpickles nothing",
        )
    weights: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise WeightsError(f"{_SHARDS} names {name!r}, expected a file beside it")
        try:
            weights |= load_file(directory / name)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                f"cannot read {directory / name}: {error}", hint="the file is damaged or absent"
            ) from error
    # Old checkpoints call the two halves of a layer normalisation gamma and beta.
    return {
        re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name)): value
        for name, value in weights.items()
    }


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names without the model's own prefix, which checkpoints with a head have."""
    return {name.removeprefix(prefix): value for name, value in weights.items()}


ACTIVATIONS: Final = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def activation_of(config: Mapping[str, Any], default: str) -> Any:
    """Our name of the configuration's activation.

    Raises:
        WeightsError: When it is one that our layers do not have.
    """
    name = config.get("hidden_act", default)
    if name not in ACTIVATIONS:
        raise WeightsError(
            f"config.json asks for the activation {name!r}, expected one of {sorted(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
