"""Everything a run needs to go on as if it had never stopped, in safetensors and JSON.

A checkpoint is one directory, `step-00000500`, written beside and renamed when complete; the newest
intact one is resumed from, a damaged one is passed over with a warning in the log.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from costream.errors import WeightsError

_TENSORS = "state.safetensors"
_FACTS = "state.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """The live objects that a checkpoint is taken from and put back into.

    Attributes:
        modules: Name to module: the model, objectives, their state, averaged weights.
        optimiser: With its moments.
    """

    modules: Mapping[str, nn.Module]
    optimiser: torch.optim.Optimizer


def _tensors_of(running: Running) -> dict[str, Tensor]:
    tensors = {
        f"{name}/{key}": value
        for name, module in running.modules.items()
        for key, value in module.state_dict().items()
    }
    for number, moments in running.optimiser.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimiser/{number}/{key}"] = value
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def write_checkpoint(
    directory: Path, step: int, running: Running, facts: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `directory/step-<step>` durably and remove all but the newest `keep`.

    Args:
        directory: Where checkpoints of the run are.
        step: Steps done.
        running: What to save.
        facts: JSON values that a resumed run must agree with (configuration, data hash).
        keep: Checkpoints to keep.

    Returns:
        The new directory.
    """
    target = directory / f"step-{step:08d}"
    working = directory / f".{target.name}.part"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    payload = save(_tensors_of(running))
    digest = hashlib.sha256(payload).hexdigest()
    _write(working / _TENSORS, payload)
    description = {"format": _FORMAT, "step": step, "sha256": digest, "facts": facts}
    _write(working / _FACTS, json.dumps(description, indent=1).encode())
    shutil.rmtree(target, ignore_errors=True)
    working.rename(target)
    _sync_directory(directory)
    for old in sorted(directory.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def newest_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and what is wrong with newer ones.

    Returns:
        Its directory, or None when there is none; and one sentence for each damaged one.
    """
    damaged = []
    for candidate in sorted(directory.glob("step-*"), reverse=True):
        try:
            description = json.loads((candidate / _FACTS).read_text())
            payload = (candidate / _TENSORS).read_bytes()
        except (OSError, ValueError) as error:
            damaged.append(f"{candidate.name}: {error}")
            continue
        if hashlib.sha256(payload).hexdigest() == description.get("sha256"):
            return candidate, damaged
        damaged.append(f"{candidate.name}: {_TENSORS} does not match its checksum")
    return None, damaged


def read_checkpoint(checkpoint: Path, running: Running, facts: Mapping[str, Any]) -> int:
    """Put a checkpoint back into live objects.

    Args:
        checkpoint: Directory of one checkpoint.
        running: What to fill; modules of the same form as when it was written.
        facts: Must equal those it was written with.

    Returns:
        Steps done.

    Raises:
        WeightsError: When the checkpoint is of another run, format or form; nothing was changed then.
    """
    description = json.loads((checkpoint / _FACTS).read_text())
    if description["format"] != _FORMAT:
        raise WeightsError(
            f"{checkpoint} has format {description['format']}, expected {_FORMAT}",
            hint="resume with the version of costream that wrote it",
        )
    differing = [
        f"{key}: was {description['facts'].get(key)!r}, now {value!r}"
        for key, value in facts.items()
        if description["facts"].get(key) != value
    ]
    if differing:
        raise WeightsError(
            f"{checkpoint} is of another run ({'; '.join(differing)})",
            hint="give the same settings and data, or another --out",
        )
    tensors = load((checkpoint / _TENSORS).read_bytes())
    for name, module in running.modules.items():
        expected = set(module.state_dict())
        found = {key.removeprefix(f"{name}/") for key in tensors if key.startswith(f"{name}/")}
        if expected != found:
            raise WeightsError(
                f"{checkpoint} does not fit {name}: {sorted(expected ^ found)[:5]} differ",
                hint="resume with the method and settings of the run",
            )
    for name, module in running.modules.items():
        module.load_state_dict({key: tensors[f"{name}/{key}"] for key in module.state_dict()})
    state = running.optimiser.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, number, moment = key.split("/")
            moments.setdefault(int(number), {})[moment] = value
    state["state"] = moments
    running.optimiser.load_state_dict(state)
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    return int(description["step"])
