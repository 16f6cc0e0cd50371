"""What a method puts into a system, and how several methods go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from costream.errors import ConfigError

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.data.pipe import Pipe
    from costream.encoders.dual import DualEncoder
    from costream.generate import Generator
    from costream.index.forms import ItemForm
    from costream.objectives import Objective
    from costream.records import Report
    from costream.scoring.protocol import RankStep, Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What a method is given when a model is trained with it.

    Attributes:
        data: What is trained on.
        directory: Where the method may keep what it makes once (a visual tokenizer, say).
        progress: Told what a method prepares before training ("fitting a visual tokenizer", say),
            how much of that is done, and how much there is.
    """

    data: DataSet
    directory: Path
    progress: Callable[[str, int, int], None] | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        """Call `progress` where somebody listens."""
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What a method builds on.

    Attributes:
        model: The model that is trained or changed, as the methods before left it.
        seed: Of everything random.
        training: What it is trained on; None when a trained model is put together again, so that
            only the parts that stay in use are wanted, and weights are filled in afterwards.
    """

    model: DualEncoder
    seed: int = 0
    training: Training | None = None


class Evaluation(Protocol):
    """What a method measures of a system on data.

    A constant scorer scores chance, an oracle scores best, and other ids change nothing.
    """

    def run(self, system: System, data: DataSet) -> Report:
        """The measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The slots that a method can fill.

    Attributes:
        surgery: Changes of the model, applied in order.
        objective: (weight, objective) pairs, summed.
        reads: Slots of a sample that training needs.
        data: What happens to the training samples first, in order.
        scorer: How a query is compared with an item, in place of the dot product.
        index: How an item is kept in an index and found again, in place of one vector.
        generator: What makes texts from pictures.
        rank: What is done to scores afterwards, in order.
        evaluation: What is measured, each for itself.
    """

    surgery: tuple[Callable[[DualEncoder], DualEncoder], ...] = ()
    objective: tuple[tuple[float, Objective], ...] = ()
    reads: tuple[str, ...] = ()
    data: tuple[Pipe, ...] = ()
    scorer: Scorer | None = None
    index: ItemForm | None = None
    generator: Generator | None = None
    rank: tuple[RankStep, ...] = ()
    evaluation: tuple[Evaluation, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class System:
    """A model with what its methods put beside it.

    Attributes:
        model: After all surgery.
        parts: Of all methods together.
        beside: Words of the methods that leave the model as it is, and so are not in its
            configuration: its vectors, and indexes made of them, stay the same.
    """

    model: DualEncoder
    parts: Parts = Parts()
    beside: tuple[str, ...] = ()


def compose(parts: Sequence[Parts], names: Sequence[str] | None = None) -> Parts:
    """Several methods as one.

    Surgery, data, rank steps and evaluations in order, objectives summed, slots that are read
    united. Of scorer, index and generator there can be one.

    Args:
        parts: One a method.
        names: Of the methods, for messages; numbers when None.

    Returns:
        The parts of all.

    Raises:
        ConfigError: When two methods bring different scorers, indexes or generators; names both.

    Example:
        >>> compose([Parts(reads=("image",)), Parts(reads=("image", "text"))]).reads
        ('image', 'text')
    """
    called = [str(number) for number in range(len(parts))] if names is None else list(names)
    values: dict[str, Any] = {}
    for field in fields(Parts):
        given = [
            (name, getattr(each, field.name)) for name, each in zip(called, parts, strict=True)
        ]
        if isinstance(field.default, tuple):
            values[field.name] = tuple(value for _, some in given for value in some)
        else:
            values[field.name] = _only_one(field.name, given)
    values["reads"] = tuple(dict.fromkeys(values["reads"]))
    return Parts(**values)


def _only_one(slot: str, given: Sequence[tuple[str, Any]]) -> Any:
    filled = [(name, value) for name, value in given if value is not None]
    for name, value in filled[1:]:
        if value is not filled[0][1]:
            raise ConfigError(
                f"methods {filled[0][0]} and {name} both bring a {slot}, expected at most one",
                hint="leave one of them out",
            )
    return filled[0][1] if filled else None
