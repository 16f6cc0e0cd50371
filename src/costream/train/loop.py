"""The training loop. It knows objectives and batches, and no method's name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from costream.data import DataSet
from costream.encoders.device import autocast, keep_freed_memory, training_attention
from costream.encoders.dual import DualEncoder
from costream.errors import NumericalError
from costream.objectives import Objective
from costream.objectives.gather import rank, world_size
from costream.records import Batch
from costream.train.checkpoint import (
    Running,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from costream.train.config import TrainConfig
from costream.train.loader import Loader
from costream.train.log import TrainingLog
from costream.train.optim import make_optimiser, rate_at

Term = tuple[float, Objective]


class StepLoss(nn.Module):
    """All objectives of a batch as one module, which is what gradients are averaged over."""

    def __init__(self, model: DualEncoder, terms: Sequence[Term]) -> None:
        super().__init__()
        self.model = model
        self.terms = terms
        self.objectives = nn.ModuleList(
            objective for _, objective in terms if isinstance(objective, nn.Module)
        )

    def forward(self, batch: Batch, states: Sequence[nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of all losses of a batch, and their parts by name."""
        total = batch.weight.new_zeros(())
        parts: dict[str, Tensor] = {}
        features = self.model.features(batch)
        for (weight, objective), state in zip(self.terms, states, strict=True):
            losses = objective.loss(self.model, batch, features, state)
            total = total + weight * losses.total
            parts |= losses.parts
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


def start_processes() -> None:
    """Join the other processes when started by `torchrun`; nothing otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def run(
    model: DualEncoder,
    terms: Sequence[Term],
    data: DataSet,
    config: TrainConfig,
    out: Path,
    *,
    facts: Mapping[str, Any],
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
        resume: Whether to go on from the newest intact checkpoint.
        progress: Called each step with steps done, steps in all, and the losses.
        on_checkpoint: Called after each checkpoint with the steps done and the model, averaged
            weights in place (to measure it on a dev split, say).

    Raises:
        NumericalError: When a loss or gradient is not finite; the weights are those before the step.
        WeightsError: When the checkpoint is of another run.
    """
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
    facts = {**facts, "config": asdict(config)}
    first = 0
    log = TrainingLog(out, active=rank() == 0)
    if resume:
        checkpoint, damaged = newest_checkpoint(out / "checkpoints")
        for sentence in damaged:
            log.warn(f"damaged checkpoint passed over: {sentence}")
        if checkpoint is not None:
            first = read_checkpoint(checkpoint, running, facts)
    log.keep_until(first)

    wrapped: nn.Module = step_loss
    if world_size() > 1:
        wrapped = DistributedDataParallel(step_loss, find_unused_parameters=True)
    loader = Loader(data, model, config, rank=rank(), processes=world_size())
    model.train()
    for step, batches in enumerate(loader.batches(first), start=first):
        rate = rate_at(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        losses = _backward(wrapped, batches, list(states), device)
        _check_finite(losses, step, batches)
        norm = nn.utils.clip_grad_norm_(step_loss.parameters(), config.clip)
        if not torch.isfinite(norm):
            raise NumericalError(
                f"the gradient of step {step} is not finite ({_names(batches)})",
                hint="lower the learning rate",
            )
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
            if rank() == 0:
                write_checkpoint(out / "checkpoints", done, running, facts)
            if on_checkpoint is not None:
                _with_average(model, average, lambda: on_checkpoint(done, model))
            model.train()
    if average is not None:
        average.swap(model)
    model.eval()
    log.close()


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
    step_loss: nn.Module, batches: Sequence[Batch], states: Sequence[nn.Module], device: torch.device
) -> dict[str, float]:
    """Gradients of the mean loss over the parts of a step; returns the mean of each loss."""
    sums: dict[str, float] = {}
    for batch in batches:
        with autocast(device), training_attention(device):
            total, parts = step_loss(_to(batch, device), states)
        (total / len(batches)).backward()
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
        seeds=batch.seeds,
    )


def _names(batches: Sequence[Batch]) -> str:
    names = [name for batch in batches for name in batch.ids]
    shown = ", ".join(names[:5])
    return f"samples {shown}{', ...' if len(names) > 5 else ''}"


def _check_finite(losses: Mapping[str, float], step: int, batches: Sequence[Batch]) -> None:
    broken = {name: value for name, value in losses.items() if value != value or abs(value) == float("inf")}
    if broken:
        raise NumericalError(
            f"losses {broken} of step {step} are not finite ({_names(batches)}); "
            "the weights were not changed",
            hint="look at these samples, or lower the learning rate",
        )
