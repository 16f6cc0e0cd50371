"""The plainest objective: pictures and texts of a batch are told apart.

For models that experiments start from, in one process; weights of pairs are not read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.dual import DualEncoder
from costream.objectives import Losses, Objective
from costream.records import Batch, Features

_TEMPERATURE = 0.07


class Contrast(Objective):
    """Symmetric contrast within the batch (an `Objective`)."""

    def loss(
        self, model: DualEncoder, batch: Batch, features: Mapping[str, Features], state: nn.Module
    ) -> Losses:
        """Cross entropy of both directions."""
        scores = features["image"].pooled @ features["text"].pooled.T / _TEMPERATURE
        own = torch.arange(len(scores))
        total: Tensor = functional.cross_entropy(scores, own)
        total = (total + functional.cross_entropy(scores.T, own)) / 2
        return Losses(total=total, parts={"contrast": total.detach()})
