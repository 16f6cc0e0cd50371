"""Weights in safetensors files, every one of them accounted for.

Shape letters: O outputs, I inputs, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from costream.encoders.pretrained.settings import read_settings
from costream.errors import WeightsError

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_SHOWN: Final = 8
_TOO_MANY: Final = 64
# Names of the layer normalisation's parts in checkpoints that were made with TensorFlow.
_OLD_ENDINGS: Final = (
    (".LayerNorm.gamma", ".LayerNorm.weight"),
    (".LayerNorm.beta", ".LayerNorm.bias"),
)


class Checkpoint:
    """The tensors of a model directory, to be taken by name and shape.

    Nothing is raised by `take`: all that does not fit is collected and told at once by `finish`,
    which also refuses tensors that nobody took.

    Args:
        directory: Of the model, for messages.
        files: Name of a tensor to the open file that holds it.
        prefix: Left out at the start of names, where it stands there (`bert.`).
    """

    def __init__(self, directory: Path, files: Mapping[str, Any], *, prefix: str = "") -> None:
        self._directory = directory
        self._sources = {_plain_name(name, prefix): (name, file) for name, file in files.items()}
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._wrong: list[str] = []
        self._not_finite: list[str] = []
        self._unreadable: list[str] = []

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name as float32; an empty one when it does not fit.

        Raises:
            WeightsError: When so many are missing that the settings must be of another model.
        """
        self._taken.add(name)
        if name not in self._sources:
            self._missing.append(name)
            if len(self._missing) > _TOO_MANY:
                self.finish()
            return torch.empty(0)
        stored, file = self._sources[name]
        try:
            got = tuple(file.get_slice(stored).get_shape())
            if got != shape:
                self._wrong.append(f"{name} is {got}, config.json says {shape}")
                return torch.empty(0)
            tensor: Tensor = file.get_tensor(stored)
        except (SafetensorError, OSError, ValueError) as error:
            self._unreadable.append(f"{name} ({error})")
            return torch.empty(0)
        if not tensor.is_floating_point():
            self._unreadable.append(f"{name} (holds {tensor.dtype}, expected floating point)")
            return torch.empty(0)
        tensor = tensor.to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            self._not_finite.append(name)
        return tensor

    def linear(
        self, name: str, outputs: int, inputs: int, *, bias: bool = True
    ) -> dict[str, Tensor]:
        """`weight` (O, I) and `bias` (O,) of a linear layer; zeros for a bias that it has not."""
        shift = self.take(f"{name}.bias", outputs) if bias else torch.zeros(outputs)
        return {"weight": self.take(f"{name}.weight", outputs, inputs), "bias": shift}

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        """`weight` (D,) and `bias` (D,) of a layer normalisation."""
        return {
            "weight": self.take(f"{name}.weight", width),
            "bias": self.take(f"{name}.bias", width),
        }

    def finish(self, *, ignored: Sequence[str] = ()) -> None:
        """Tell all that did not fit.

        Args:
            ignored: Names, or beginnings of names that end in a dot, of tensors that the towers
                have no use for.

        Raises:
            WeightsError: When a tensor is missing, unexpected, of another shape, or broken.
        """
        beginnings = tuple(each for each in ignored if each.endswith("."))
        left = (name for name in self._sources if name not in self._taken and name not in ignored)
        unexpected = [name for name in left if not (beginnings and name.startswith(beginnings))]
        problems = [
            f"{what} {_listed(names)}"
            for what, names in (
                ("missing", self._missing),
                ("unexpected", unexpected),
                ("of another shape:", self._wrong),
                ("not finite:", self._not_finite),
                ("not readable:", self._unreadable),
            )
            if names
        ]
        if problems:
            raise WeightsError(
                f"the weights in {self._directory} do not fit its config.json: "
                + "; ".join(problems),
                hint="the files are damaged, of two models, or of a variant that is not supported",
            )


def _plain_name(name: str, prefix: str) -> str:
    for old, new in _OLD_ENDINGS:
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name.removeprefix(prefix)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@contextlib.contextmanager
def open_checkpoint(directory: Path, *, prefix: str = "") -> Iterator[Checkpoint]:
    """Open the safetensors files of a directory, one or the shards that its index names.

    Args:
        directory: Of the model.
        prefix: As for `Checkpoint`.

    Raises:
        WeightsError: When there is none, only pickled weights, a damaged file, or an index that
            does not fit its shards.
    """
    with contextlib.ExitStack() as stack:
        if (directory / _SINGLE).is_file():
            file = _open(stack, directory / _SINGLE)
            yield Checkpoint(directory, dict.fromkeys(file.keys(), file), prefix=prefix)
        elif (directory / _INDEX).is_file():
            yield Checkpoint(directory, _open_shards(stack, directory), prefix=prefix)
        else:
            raise _no_weights(directory)


def _open(stack: contextlib.ExitStack, path: Path) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"cannot read {path} ({path.stat().st_size if path.exists() else 0} bytes): {error}",
            hint="the file is damaged or not complete; copy or download it again",
        ) from error


def _open_shards(stack: contextlib.ExitStack, directory: Path) -> dict[str, Any]:
    index = read_settings(directory / _INDEX)
    places = index.raw("weight_map")
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise index.problem("weight_map", "an object of tensor names to file names")
    files: dict[str, Any] = {}
    for shard in sorted(set(places.values())):
        # A name with a folder in it could point anywhere on the disk.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise WeightsError(
                f"{index.path} names the file {shard!r}, expected one like "
                "model-00001-of-00002.safetensors in the same directory",
                hint="use the directory as it was published",
            )
        if not (directory / shard).is_file():
            raise WeightsError(
                f"{index.path} names {shard}, which is not there",
                hint="copy or download all files of the model",
            )
        file = _open(stack, directory / shard)
        named = {name for name, place in places.items() if place == shard}
        if named != set(file.keys()):
            differing = sorted(named ^ set(file.keys()))
            raise WeightsError(
                f"{index.path} and {shard} differ in {len(differing)} tensors: "
                f"{_listed(differing)}",
                hint="the files are of different models; copy or download them again",
            )
        files.update(dict.fromkeys(named, file))
    return files


def _no_weights(directory: Path) -> WeightsError:
    forms = ("*.bin", "*.pt", "*.pth")
    pickles = sorted(path.name for form in forms for path in directory.glob(form))
    if not pickles:
        return WeightsError(
            f"{directory} has no weights, expected {_SINGLE}",
            hint="copy or download the model's safetensors files",
        )
    load = f"AutoModel.from_pretrained({str(directory)!r})"
    return WeightsError(
        f"{directory} has only pickles ({', '.join(pickles)}), expected {_SINGLE}; a pickle can "
        "run any program when it is read, so costream reads none",
        hint="if you trust them, pip install transformers and run: python -c "
        f'"from transformers import AutoModel; {load}.save_pretrained({str(directory)!r})"',
    )
