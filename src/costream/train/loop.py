"""The training loop. It knows objectives and batches, and no method's name."""

from __future__ import annotations

import gc
import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from costream.config import check_config
from costream.data import DataSet
from costream.encoders.device import (
    autocast_dtype,
    keep_freed_memory,
    precision,
    training_attention,
)
from costream.encoders.dual import DualEncoder
from costream.errors import NumericalError, WeightsError
from costream.objectives import Objective
from costream.objectives.gather import rank, world_size
from costream.records import Batch
from costream.train.checkpoint import (
    Running,
    newest_checkpoint,
    random_states,
    read_checkpoint,
    write_checkpoint,
)
from costream.train.config import WITHOUT_EFFECT, TrainConfig
from costream.train.loader import Loader
from costream.train.log import TrainingLog
from costream.train.optim import make_optimiser, rate_at

Term = tuple[float, Objective]
_NAMED = 8
_DTYPES: Mapping[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


class StepLoss(nn.Module):
    """All objectives of a batch as one module, which is what gradients are averaged over.

    Args:
        model: The online model.
        terms: (weight, objective) pairs.
    """

    def __init__(self, model: DualEncoder, terms: Sequence[Term]) -> None:
        super().__init__()
        self.model = model
        self.terms = terms
        self.objectives = nn.ModuleList(
            objective for _, objective in terms if isinstance(objective, nn.Module)
        )

    def forward(
        self, batch: Batch, states: Sequence[nn.Module]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of all losses of a batch, and their parts by name.

        A second objective with parts of the same names has them numbered: `contrast 2`.
        """
        total = batch.weight.new_zeros(())
        parts: dict[str, Tensor] = {}
        features = self.model.features(batch)
        for number, ((weight, objective), state) in enumerate(
            zip(self.terms, states, strict=True), start=1
        ):
            losses = objective.loss(self.model, batch, features, state)
            total = total + weight * losses.total
            for name, value in losses.parts.items():
                parts[f"{name} {number}" if name in parts else name] = value
        return total, parts


class AveragedWeights(nn.Module):
    """A running average of the trained weights, which generalises better than the last ones.

    Args:
        model: Whose weights are averaged.
        decay: Share of the old average kept a step; less in the first steps.
    """

    def __init__(self, model: DualEncoder, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.values = nn.ParameterList(
            nn.Parameter(weight.detach().clone(), requires_grad=False)
            for weight in model.parameters()
            if weight.requires_grad
        )

    @torch.no_grad()
    def update(self, model: DualEncoder) -> None:
        """Move towards the model's weights."""
        self.updates += 1
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count))
        weights = [weight.detach() for weight in model.parameters() if weight.requires_grad]
        torch._foreach_lerp_(list(self.values), weights, 1.0 - decay)

    @torch.no_grad()
    def swap(self, model: DualEncoder) -> None:
        """Exchange the average with the model's weights; a second call undoes the first."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        for average, weight in zip(self.values, weights, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)


def start_processes() -> bool:
    """Join the other processes when started by `torchrun`; nothing otherwise.

    On GPUs every process takes the one of its number on the machine.

    Returns:
        Whether they were joined here, and are to be left with `stop_processes`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Its functions keep the group of the time of their import as a default, for good, and the first
    # optimiser imports them; before there is a group they keep none (`stop_processes`).
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True


def stop_processes() -> None:
    """Leave the other processes, and end the threads that talked to them."""
    # The group's threads live as long as anything holds it. One that lets go of the last tensors it
    # sent while the interpreter shuts down aborts the process, after a run that went well. The last
    # holder is a reference cycle that importing parts of PyTorch leaves around the frame of `run`.
    # It goes before the group, for it would keep Python's lock, which the threads wait for.
    gc.collect()
    dist.destroy_process_group()


def run(
    model: DualEncoder,
    terms: Sequence[Term],
    data: DataSet,
    config: TrainConfig,
    out: Path,
    *,
    facts: Mapping[str, Any],
    reads: Sequence[str] = ("image", "text"),
    resume: bool = False,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    on_checkpoint: Callable[[int, DualEncoder], None] | None = None,
) -> None:
    """Train `model` in place; at the end it holds the averaged weights where averaging is on.

    Args:
        model: On its device.
        terms: (weight, objective) pairs.
        data: What to train on.
        config: How.
        out: Directory for checkpoints and logs.
        facts: What a resumed run must agree with.
        reads: Slots of the samples that the objectives need.
        resume: Whether to go on from the newest intact checkpoint; from the start when there is
            none yet.
        progress: Called each step with steps done, steps in all, and the losses.
        on_checkpoint: Called in the first process after each checkpoint with the steps done and the
            model, averaged weights in place (to measure it on a dev split, say). Random numbers
            that it draws do not change the run.

    Raises:
        ConfigError: When a setting is out of range, the batch does not split evenly, or nothing is
            left to train.
        DataError: When a sample has no caption, or too many pictures are broken.
        NumericalError: When a loss or gradient is not finite; the weights are those before the
            step, and the samples are named.
        WeightsError: When the checkpoint is of another run, all checkpoints are damaged, or one
            cannot be written.
    """
    check_config(config)
    keep_freed_memory()
    torch.manual_seed(config.seed + rank())
    device = model.device
    step_loss = StepLoss(model, terms).to(device)
    optimiser = make_optimiser(model, step_loss.objectives, config)
    states = nn.ModuleList(objective.init_state(model) for _, objective in terms)
    modules: dict[str, nn.Module] = {
        "model": model,
        "objectives": step_loss.objectives,
        "states": states,
    }
    average = AveragedWeights(model, config.average) if config.average > 0 else None
    if average is not None:
        modules["average"] = average
    running = Running(modules=modules, optimiser=optimiser)
    facts = {**facts, "config": _settings_with_effect(config)}
    log = TrainingLog(out, active=rank() == 0)
    loader = Loader(data, model, config, reads=reads, rank=rank(), processes=world_size())
    dtype = _agreed_dtype(device, config)
    first = 0
    if resume:
        first, dtype = _resume(out, running, facts, log, dtype, config)
    log.begin(
        first,
        f"steps {first} to {config.steps} on {device} in {_name_of(dtype)}, {world_size()} "
        f"processes, seed {config.seed}, {data.num_images} pictures of {data.name}",
    )

    wrapped: nn.Module = step_loss
    if world_size() > 1:
        # Buffers are constants (pixel means, tables); states are equal everywhere by construction.
        wrapped = DistributedDataParallel(
            step_loss, find_unused_parameters=True, broadcast_buffers=False
        )
    model.train()
    for step, batches in enumerate(loader.batches(first), start=first):
        for sentence in loader.take_failures():
            log.warn(f"picture left out: {sentence}")
        rate = rate_at(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        losses = _backward(wrapped, batches, list(states), device, dtype, step)
        norm = nn.utils.clip_grad_norm_(step_loss.parameters(), config.clip)
        _check_finite({**losses, "gradient_norm": float(norm)}, step, batches)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        for (_, objective), state in zip(terms, states, strict=True):
            objective.after_step(model, state)
        if average is not None:
            average.update(model)
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            log.write(done, {**losses, "learning_rate": rate, "gradient_norm": float(norm)})
        if progress is not None:
            progress(done, config.steps, losses)
        if done % config.checkpoint_every == 0 or done == config.steps:
            random = random_states(device)
            if rank() == 0:
                write_checkpoint(
                    out / "checkpoints",
                    done,
                    running,
                    facts,
                    random=random,
                    precision=_name_of(dtype),
                )
                if on_checkpoint is not None:
                    with _random_states_kept(device):
                        _with_average(model, average, partial(on_checkpoint, done, model))
            model.train()
    if average is not None:
        average.swap(model)
    model.eval()
    log.close()


def _settings_with_effect(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in WITHOUT_EFFECT}


def _resume(
    out: Path,
    running: Running,
    facts: Mapping[str, Any],
    log: TrainingLog,
    dtype: torch.dtype | None,
    config: TrainConfig,
) -> tuple[int, torch.dtype | None]:
    """Steps done and the type to train in, everything else put back into `running`."""
    checkpoint, damaged = newest_checkpoint(out / "checkpoints")
    if rank() == 0:
        for sentence in damaged:
            log.warn(f"damaged checkpoint passed over: {sentence}")
    if checkpoint is None:
        if damaged:
            raise WeightsError(
                f"no checkpoint in {out} is intact: {'; '.join(damaged)}",
                hint="restore one, or train into another directory",
            )
        return 0, dtype
    restored = read_checkpoint(checkpoint, running, facts)
    # Measured anew, the choice could fall the other way, and the run would not go on as it was.
    was = restored.precision or _name_of(dtype)
    if config.precision not in ("auto", was):
        raise WeightsError(
            f"{checkpoint} is of a run in {was}, precision is {config.precision} now",
            hint=f"resume with precision=auto or precision={was}",
        )
    return restored.step, _DTYPES[was]


def _agreed_dtype(device: torch.device, config: TrainConfig) -> torch.dtype | None:
    """The type that is asked for, or the faster one as the first process measured it."""
    if config.precision != "auto":
        return _DTYPES[config.precision]
    dtype = autocast_dtype(device)
    if world_size() == 1:
        return dtype
    reduced = torch.tensor(int(dtype is not None), device=device)
    dist.broadcast(reduced, 0)
    return torch.bfloat16 if int(reduced) else None


def _name_of(dtype: torch.dtype | None) -> str:
    return "float32" if dtype is None else "bfloat16"


def _random_states_kept(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _with_average(
    model: DualEncoder, average: AveragedWeights | None, call: Callable[[], None]
) -> None:
    if average is None:
        call()
        return
    average.swap(model)
    try:
        call()
    finally:
        average.swap(model)


def _backward(
    step_loss: nn.Module,
    batches: Sequence[Batch],
    states: Sequence[nn.Module],
    device: torch.device,
    dtype: torch.dtype | None,
    step: int,
) -> dict[str, float]:
    """Gradients of the mean loss over the parts of a step; returns the mean of each loss."""
    sums: dict[str, float] = {}
    for batch in batches:
        try:
            with precision(device, dtype), training_attention(device):
                total, parts = step_loss(_to(batch, device), states)
        except NumericalError as error:
            raise NumericalError(
                f"step {step}: {error.message} ({_names(batches)}); the weights were not changed",
                hint=error.hint,
            ) from error
        torch.autograd.backward(total / len(batches))
        for name, value in {"loss": total.detach(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    if world_size() > 1:
        values = torch.tensor(list(sums.values()), device=device)
        dist.all_reduce(values)
        sums = dict(zip(sums, (values / world_size()).tolist(), strict=True))
    return sums


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        ids=batch.ids,
        groups=batch.groups.to(device),
        slots={name: value.to(device, non_blocking=True) for name, value in batch.slots.items()},
        weight=batch.weight.to(device),
        seeds=batch.seeds.to(device),
    )


def _names(batches: Sequence[Batch]) -> str:
    names = [name for batch in batches for name in batch.ids]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"samples {', '.join(names[:_NAMED])}{more}"


def _check_finite(losses: Mapping[str, float], step: int, batches: Sequence[Batch]) -> None:
    broken = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if broken:
        raise NumericalError(
            f"{broken} of step {step} are not finite ({_names(batches)}); "
            "the weights were not changed",
            hint="look at these samples, or lower the learning rate",
        )
