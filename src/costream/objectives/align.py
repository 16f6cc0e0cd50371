"""Losses that bring two distributions together."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

Direction = Literal["forward", "reverse", "symmetric"]


def kl_rows(first_NM: Tensor, second_NM: Tensor, direction: Direction = "symmetric") -> Tensor:
    """Kullback-Leibler divergence between softmax(first) and softmax(second), row by row.

    `forward` is KL(first || second), `reverse` KL(second || first), `symmetric` half their sum.
    Columns at minus infinity in both count nothing.

    Args:
        first_NM: Logits (N, M).
        second_NM: Logits (N, M), columns in the same order.
        direction: Which way.

    Returns:
        float32 (N,), at least 0.

    Example:
        >>> import torch
        >>> kl_rows(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.5]]), "forward")
        tensor([0.0263])
    """
    first = functional.log_softmax(first_NM.float(), dim=1)
    second = functional.log_softmax(second_NM.float(), dim=1)
    # exp(-inf) * (-inf + inf) would be NaN; such columns have probability 0 in both.
    gap = (first - second).masked_fill(first.isneginf() & second.isneginf(), 0.0)
    forward = (first.exp() * gap).sum(dim=1)
    if direction == "forward":
        return forward
    reverse = -(second.exp() * gap).sum(dim=1)
    return reverse if direction == "reverse" else (forward + reverse) / 2
