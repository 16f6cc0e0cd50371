"""A saved model with its methods, and perhaps more beside them: loaded, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from costream.card import find_methods
from costream.encoders.storage import load
from costream.errors import ConfigError
from costream.method import Method, read_method
from costream.parts import Base, System, compose

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.records import Report


def load_system(
    name_or_dir: str | Path, more: Sequence[str] = (), *, device: str | None = None
) -> System:
    """A saved model with its methods, and perhaps rank steps beside them.

    Args:
        name_or_dir: As of `costream.load`.
        more: Words of methods that bring rank steps. They leave the model as it is, and with it the
            space of its vectors.
        device: As of `costream.load`.

    Returns:
        The model and the parts of all.

    Raises:
        ConfigError: When there is no such method, it brings no rank step, or methods do not go
            together.
        WeightsError: When there is no such model, or it is damaged.
    """
    beside = [_rank_method(words) for words in more]
    model = load(name_or_dir, device=device)
    # Their surgery is done; asked again, they only say what else they bring.
    methods = [*(read_method(words) for words in model.config.methods), *beside]
    parts = [method.module.parts(method.config, Base(model=model)) for method in methods]
    whole = compose(parts, [method.card.name for method in methods])
    return System(
        model=model,
        parts=replace(whole, surgery=()),
        beside=tuple(method.words for method in beside),
    )


def _rank_method(words: str) -> Method:
    """A method that can be put beside any model.

    Raises:
        ConfigError: When there is no such method, or it brings no rank step.
    """
    method = read_method(words)
    if "rank" not in method.card.slots or "surgery" in method.card.slots:
        having = [card.name for card in find_methods().values() if "rank" in card.slots]
        raise ConfigError(
            f"method {method.card.name} brings no rank step, expected one that does",
            hint=f"those that do are {', '.join(having) or 'none'}; a model brings along what it "
            "was trained with",
        )
    return method


def run_protocol(words: str, system: System, data: DataSet) -> Report:
    """Measure a system by the evaluation of a method.

    Args:
        words: Of the method.
        system: What to measure.
        data: What to measure on.

    Returns:
        The report of the method's evaluation.

    Raises:
        ConfigError: When there is no such method, or it brings no evaluation; says which do.
    """
    method = read_method(words)
    evaluations = method.module.parts(method.config, Base(model=system.model)).evaluation
    if not evaluations:
        having = [card.name for card in find_methods().values() if "evaluation" in card.slots]
        raise ConfigError(
            f"method {method.card.name} brings no evaluation",
            hint=f"those that do are {', '.join(having) or 'none'}",
        )
    report: Report = evaluations[0].run(system, data)
    return report
