"""What training minimises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from costream.encoders.dual import DualEncoder
from costream.records import Batch, Features


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """A loss and what it is made of.

    Attributes:
        total: Scalar with gradient.
        parts: Named scalars for the log, without gradient.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


class Objective(Protocol):
    """One thing to minimise; may own weights, and state that is kept in checkpoints.

    One that carries no state and has nothing to do after a step names this class as its base and
    writes `loss` alone.
    """

    def init_state(self, model: DualEncoder) -> nn.Module:
        """State that training carries from step to step (queues, momentum weights, statistics)."""
        return nn.Module()

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """The loss of one batch; may change `state`'s bookkeeping, never the model's weights.

        `features` is the model's clean pass over the batch (`DualEncoder.features`), made once for
        all objectives.
        """
        ...

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Called after each optimiser step."""
        return
