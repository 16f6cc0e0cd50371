"""What a method puts into a system, and how several methods go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.encoders.dual import DualEncoder
    from costream.objectives import Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What a method builds on.

    Attributes:
        model: The model that is trained or changed.
        data: What it is trained on.
        directory: Where the method may keep what it makes once (a visual tokenizer, say).
        seed: Of everything random.
        progress: Told what a method prepares before training ("fitting a visual tokenizer", say),
            how much of that is done, and how much there is.
    """

    model: DualEncoder
    data: DataSet
    directory: Path
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        """Call `progress` where somebody listens."""
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The slots that a method can fill.

    Attributes:
        surgery: Changes of the model, applied in order.
        objective: (weight, objective) pairs, summed.
    """

    surgery: tuple[Callable[[DualEncoder], DualEncoder], ...] = ()
    objective: tuple[tuple[float, Objective], ...] = ()


def compose(parts: Sequence[Parts]) -> Parts:
    """Several methods as one: surgery in order, objectives summed.

    Example:
        >>> compose([Parts(), Parts()])
        Parts(surgery=(), objective=())
    """
    return Parts(
        surgery=tuple(step for each in parts for step in each.surgery),
        objective=tuple(term for each in parts for term in each.objective),
    )
