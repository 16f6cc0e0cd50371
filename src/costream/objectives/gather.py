"""Sums and columns across the processes of a distributed run; the identity in a single one."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, without gradient; (N, ...) to (N * processes, ...).

    Every process must give the same number of rows.
    """
    if world_size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """As `gather_rows`, and the gradient flows back to the process that made a row."""
    if world_size() == 1:
        return rows
    return cast(Tensor, _GatherRows.apply(rows))  # type: ignore[no-untyped-call] # stub


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; what all of them send back for a row is summed where it was made."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Rows (N, ...) to (N * processes, ...)."""
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient (N * processes, ...) to that of the own rows (N, ...)."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.tensor_split(world_size())[rank()]


def wait_for_all() -> None:
    """Return when every process has come here; at once in a single one."""
    if world_size() > 1:
        dist.barrier()


def mean_across(values_N: Tensor, weight_N: Tensor) -> Tensor:
    """Weighted mean over the rows of all processes, as each process's share of it.

    The average of the shares over the processes, which is what distributed gradients are averaged
    to, is the mean over all rows. Exactly 0 with zero gradient when all weights are 0.

    Args:
        values_N: (N,), rows of weight 0 may be anything, NaN too.
        weight_N: (N,), at least 0.

    Returns:
        Scalar.

    Example:
        >>> values = torch.tensor([1.0, 3.0, float("nan")])
        >>> float(mean_across(values, torch.tensor([1.0, 1.0, 0.0])))
        2.0
        >>> float(mean_across(values, torch.zeros(3)))
        0.0
    """
    total = weight_N.sum().detach()
    if world_size() > 1:
        dist.all_reduce(total)
        total = total / world_size()
    used = torch.where(weight_N > 0, values_N, torch.zeros_like(values_N))
    return (used * weight_N).sum() / total.clamp_min(torch.finfo(values_N.dtype).tiny)
