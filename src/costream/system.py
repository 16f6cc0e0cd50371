"""A saved model with its methods, and perhaps more beside them: loaded, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from costream.card import find_methods
from costream.encoders.storage import load
from costream.errors import ConfigError
from costream.method import apply_methods, read_method
from costream.parts import Base, System, compose

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.records import Report


def load_system(
    name_or_dir: str | Path, more: Sequence[str] = (), *, device: str | None = None
) -> System:
    """A saved model with its methods, and perhaps more of them that need no training.

    Args:
        name_or_dir: As of `costream.load`.
        more: Words of further methods.
        device: As of `costream.load`.

    Returns:
        The model and the parts of all.

    Raises:
        ConfigError: When there is no such method, or methods do not go together.
        WeightsError: When there is no such model, or it is damaged.
    """
    model = load(name_or_dir, device=device)
    own = [read_method(words) for words in model.config.methods]
    # Their surgery is done; asked again, they only say what else they bring.
    parts = [method.module.parts(method.config, Base(model=model)) for method in own]
    added, before = [read_method(words) for words in more], model.config.methods
    system = apply_methods(model, added)
    beside: tuple[str, ...] = ()
    if not system.parts.surgery:
        # What changes no vector must not change the space of the vectors either.
        beside = tuple(method.words for method in added)
        model.config = replace(model.config, methods=before)
    names = [method.card.name for method in own]
    whole = compose([*parts, system.parts], [*names, "+".join(m.card.name for m in added)])
    return System(
        model=system.model, parts=replace(whole, surgery=system.parts.surgery), beside=beside
    )


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
