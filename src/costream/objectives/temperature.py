"""The temperature of a softmax over similarities, trained with the model and kept in a range."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """A positive number that divides similarities; trains in log form, as is usual.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
    (2021), section 2.5, where its inverse is at most 100.

    Args:
        start: Its value at first, above 0.
        least: `clamp` raises it to this.
        greatest: `clamp` lowers it to this.
        trains: Whether the optimiser may change it.

    Example:
        >>> temperature = Temperature(0.5)
        >>> round(float(temperature.inverse()), 4)
        2.0
    """

    def __init__(
        self,
        start: float,
        *,
        least: float = 0.0,
        greatest: float = math.inf,
        trains: bool = True,
    ) -> None:
        super().__init__()
        self.least, self.greatest = least, greatest
        self.log = nn.Parameter(torch.tensor(math.log(start)), requires_grad=trains)

    def inverse(self) -> Tensor:
        """What similarities are multiplied by: a scalar, with gradient when it trains."""
        return torch.exp(-self.log)

    def value(self) -> Tensor:
        """The temperature: a scalar without gradient."""
        return self.log.detach().exp()

    def clamp(self) -> None:
        """Bring it back into its range, to be called after each step; a fixed one stays."""
        if not self.log.requires_grad:
            return
        low = math.log(self.least) if self.least > 0 else -math.inf
        with torch.no_grad():
            self.log.clamp_(low, math.log(self.greatest))
