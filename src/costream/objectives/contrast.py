"""Contrastive losses over a matrix of scores.

Shape letters: N rows (queries), M columns (keys).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Siblings = Literal["negative", "remove", "positive"]
"""What other columns of the row's own group are: negatives, left out, or positives too."""


def contrast_rows(
    scores_NM: Tensor,
    own_N: Tensor,
    related_NM: Tensor,
    siblings: Siblings = "negative",
) -> Tensor:
    """Negative log probability of each row's true column among all columns.

    For a row with positive set P and the other columns R:
    `-1/|P| sum_{p in P} log( exp(s_p) / sum_{c in P or R} exp(s_c) )`.

    A column at minus infinity is absent: neither a negative nor, with `positive`, a positive.

    Args:
        scores_NM: float32 (N, M), already divided by the temperature.
        own_N: int64 (N,), the column of the row's own partner.
        related_NM: bool (N, M), True where the column is of the row's group (the own column too).
        siblings: What related columns other than the own one are.

    Returns:
        float32 (N,), at least 0.

    Example:
        >>> own, related = torch.tensor([0]), torch.tensor([[True, False]])
        >>> contrast_rows(torch.tensor([[1.0, 0.0]]), own, related)
        tensor([0.3133])
    """
    own_NM = functional.one_hot(own_N, scores_NM.shape[1]).bool()
    if siblings == "remove":
        scores_NM = scores_NM.masked_fill(related_NM & ~own_NM, float("-inf"))
    log_p_NM = functional.log_softmax(scores_NM.float(), dim=1)
    if siblings != "positive":
        return -log_p_NM.gather(1, own_N[:, None])[:, 0]
    positive_NM = (related_NM & ~scores_NM.isneginf()) | own_NM
    chosen_NM = torch.where(positive_NM, log_p_NM, torch.zeros_like(log_p_NM))
    return -chosen_NM.sum(dim=1) / positive_NM.sum(dim=1)
