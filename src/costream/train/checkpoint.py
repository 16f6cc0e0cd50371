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
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from costream.errors import WeightsError
from costream.objectives.gather import gather_rows, rank, world_size

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """What a checkpoint says beside the state that it puts back.

    Attributes:
        step: Steps done.
        precision: Name of the type that the run trains in, `float32` or `bfloat16`, or None where
            the checkpoint does not say.
    """

    step: int
    precision: str | None


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The random states of all processes; every process must call this.

    Args:
        device: That the run is on.

    Returns:
        `cpu` and, on a GPU, `cuda` of the first process; `cpu/1` and so on of the others.
    """
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    states = {}
    for name, state in own.items():
        rows = gather_rows(state[None].to(device)).cpu()
        for number, row in enumerate(rows):
            states[_random_key(name, number)] = row
    return states


def _random_key(name: str, process: int) -> str:
    return name if process == 0 else f"{name}/{process}"


def _tensors_of(running: Running, random: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {
        f"{name}/{key}": value
        for name, module in running.modules.items()
        for key, value in module.state_dict().items()
    }
    for number, moments in running.optimiser.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimiser/{number}/{key}"] = value
    tensors |= {f"random/{name}": state for name, state in random.items()}
    return {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def write_checkpoint(
    directory: Path,
    step: int,
    running: Running,
    facts: Mapping[str, Any],
    *,
    random: Mapping[str, Tensor],
    precision: str | None = None,
    keep: int = 2,
) -> Path:
    """Write `directory/step-<step>` durably and remove all but the newest `keep`.

    Args:
        directory: Where checkpoints of the run are.
        step: Steps done.
        running: What to save.
        facts: JSON values that a resumed run must agree with (configuration, data hash).
        random: Of `random_states`.
        precision: Name of the type that the run trains in.
        keep: Checkpoints to keep.

    Returns:
        The new directory.

    Raises:
        WeightsError: When the disk refuses, full for instance; older checkpoints are whole.
    """
    target = directory / f"step-{step:08d}"
    working = directory / f".{target.name}.part"
    payload = save(_tensors_of(running, random))
    description = {
        "format": _FORMAT,
        "step": step,
        "precision": precision,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "facts": facts,
    }
    try:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        _write(working / _TENSORS, payload)
        _write(working / _FACTS, json.dumps(description, indent=1).encode())
        _sync_directory(working)
        shutil.rmtree(target, ignore_errors=True)
        working.rename(target)
        _sync_directory(directory)
    except OSError as error:
        shutil.rmtree(working, ignore_errors=True)
        raise WeightsError(
            f"cannot write the checkpoint {target}: {error.strerror or error}",
            hint="make room; older checkpoints are whole, go on from them with --resume",
        ) from error
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


def _describe(checkpoint: Path) -> dict[str, Any]:
    """The decoded description of a checkpoint.

    Raises:
        OSError: When it cannot be read.
        ValueError: When it is damaged.
    """
    description: dict[str, Any] = json.loads((checkpoint / _FACTS).read_text())
    expected = {"format": int, "step": int, "sha256": str, "facts": dict}
    described = isinstance(description, dict) and all(
        isinstance(description.get(key), kind) for key, kind in expected.items()
    )
    if not described or description.get("precision") not in (None, "float32", "bfloat16"):
        raise ValueError(f"{_FACTS} does not describe a checkpoint")
    return description


def newest_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and what is wrong with newer ones.

    Args:
        directory: Where checkpoints of the run are; may be absent.

    Returns:
        Its directory, or None when there is none; and one sentence for each damaged one.
    """
    damaged = []
    for candidate in sorted(directory.glob("step-*"), reverse=True):
        try:
            expected = _describe(candidate)["sha256"]
            with (candidate / _TENSORS).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            damaged.append(f"{candidate.name}: {error}")
            continue
        if found == expected:
            return candidate, damaged
        damaged.append(f"{candidate.name}: {_TENSORS} does not match its checksum")
    return None, damaged


def read_checkpoint(checkpoint: Path, running: Running, facts: Mapping[str, Any]) -> Restored:
    """Put a checkpoint back into live objects, and into the generators of random numbers.

    Args:
        checkpoint: Directory of one checkpoint.
        running: What to fill; modules of the same form as when it was written.
        facts: Must agree with those it was written with, in everything that is named here.

    Returns:
        Steps done, and the precision.

    Raises:
        WeightsError: When the checkpoint is damaged, or of another run, format or form; nothing was
            changed then.
    """
    try:
        description = _describe(checkpoint)
        tensors = load((checkpoint / _TENSORS).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"cannot read {checkpoint}: {error}", hint="remove it") from error
    if description["format"] != _FORMAT:
        raise WeightsError(
            f"{checkpoint} has format {description['format']}, expected {_FORMAT}",
            hint="resume with the version of costream that wrote it",
        )
    differing = _differing(facts, description["facts"], "")
    if differing:
        raise WeightsError(
            f"{checkpoint} is of another run ({'; '.join(differing)})",
            hint="give the same settings and data, or another --out",
        )
    state = _optimiser_state(running.optimiser, tensors, checkpoint)
    for name, module in running.modules.items():
        _check_form(name, module.state_dict(), tensors, checkpoint)
    for name, module in running.modules.items():
        module.load_state_dict({key: tensors[f"{name}/{key}"] for key in module.state_dict()})
    running.optimiser.load_state_dict(state)
    _restore_random(tensors)
    return Restored(step=description["step"], precision=description.get("precision"))


def _differing(now: Mapping[str, Any], was: Mapping[str, Any], prefix: str) -> list[str]:
    """One phrase for each value of `now` that is another in `was`.

    A checkpoint from before an option existed does not contradict it.
    """
    phrases = []
    for key, value in now.items():
        if key not in was:
            continue
        before = was[key]
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            phrases += _differing(value, before, f"{prefix}{key}.")
        elif json.loads(json.dumps(value)) != before:
            phrases.append(f"{prefix}{key}: was {before!r}, now {value!r}")
    return phrases


def _check_form(
    name: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], checkpoint: Path
) -> None:
    found = {
        key.removeprefix(f"{name}/"): tensors[key] for key in tensors if key.startswith(f"{name}/")
    }
    wrong = set(expected) ^ set(found)
    wrong |= {key for key in expected if key in found and expected[key].shape != found[key].shape}
    if wrong:
        raise WeightsError(
            f"{checkpoint} does not fit {name}: {sorted(wrong)[:5]} differ",
            hint="resume with the method and settings of the run",
        )


def _optimiser_state(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], checkpoint: Path
) -> dict[str, Any]:
    """The optimiser's state with the moments of the checkpoint; the optimiser stays as it is."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, number, moment = key.split("/")
            moments.setdefault(int(number), {})[moment] = value
    fits = all(
        number < len(weights) and value.shape in ((), weights[number].shape)
        for number, values in moments.items()
        for value in values.values()
    )
    if not fits:
        raise WeightsError(
            f"{checkpoint} does not fit the optimiser",
            hint="resume with the method and settings of the run",
        )
    return {**optimiser.state_dict(), "state": moments}


def _restore_random(tensors: Mapping[str, Tensor]) -> None:
    """A process that the checkpoint knows nothing of keeps the state that it was seeded with."""
    number = rank() if world_size() > 1 else 0
    cpu = tensors.get(f"random/{_random_key('cpu', number)}")
    if cpu is not None:
        torch.set_rng_state(cpu)
    cuda = tensors.get(f"random/{_random_key('cuda', number)}")
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
