"""Methods in words, and how they are put on a model.

A method is named in words as on a command line: its name, then the settings that differ from its
defaults, such as `long_clip keep=20`. A saved model keeps the words of its methods, and is put
together by them when it is loaded.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from costream.card import Card, find_method
from costream.config import parse_settings, parse_words, settings_as_text
from costream.errors import ConfigError
from costream.parts import Base, Parts, System, Training, compose

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder

_STAYS = frozenset({"surgery", "scorer", "index", "generator", "rank"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method and its settings.

    Attributes:
        card: What it is.
        module: Its file.
        config: An instance of the file's `Config`.
    """

    card: Card
    module: ModuleType
    config: Any

    @property
    def words(self) -> str:
        """Name and settings as on a command line."""
        settings = settings_as_text(self.config)
        return shlex.join([self.card.name, *(f"{key}={text}" for key, text in settings.items())])


def find_module(name: str) -> tuple[Card, ModuleType]:
    """The card and the file of a method.

    Raises:
        ConfigError: When there is no such method.
    """
    card = find_method(name)
    return card, importlib.import_module(f"costream.methods.{card.name.replace('-', '_')}")


def read_method(words: str) -> Method:
    """A method from words.

    Args:
        words: Name, then `key=value` settings, with spaces between; a value with spaces in quotes,
            as in a shell.

    Returns:
        The method with its settings.

    Raises:
        ConfigError: When there is no such method, it has no such setting, a setting is given twice
            or without a value, or a quote is not closed.

    Example:
        >>> read_method("cots mvm=0").words
        'cots mvm=0.0'
    """
    try:
        name, *settings = shlex.split(words)
    except ValueError as error:
        raise ConfigError(
            f"got the method {words!r}, expected NAME KEY=VALUE ...",
            hint="put a value with spaces in quotes, and close them",
        ) from error
    card, module = find_module(name)
    config = parse_settings(module.Config, parse_words(settings))
    return Method(card=card, module=module, config=config)


def apply_methods(
    model: DualEncoder,
    methods: Sequence[Method],
    *,
    seed: int = 0,
    training: Training | None = None,
) -> System:
    """Put methods on a model, one after the other; each sees what those before it changed.

    Args:
        model: Changed in place where a method has surgery.
        methods: In order.
        seed: Of everything random.
        training: What is trained on; None when nothing is.

    Returns:
        The model and the parts of all methods.

    Raises:
        ConfigError: When two methods do not go together, or one does not fit the model.
    """
    parts: list[Parts] = []
    if training is not None:
        _leave_query_space(model)
    for method in methods:
        base = Base(model=model, seed=seed, training=training)
        given: Parts = method.module.parts(method.config, base)
        _check_slots(method.card, given)
        parts.append(given)
        if given.surgery:
            _leave_query_space(model)
        for change in given.surgery:
            model = change(model)
        if _STAYS & set(method.card.slots):
            model.config = replace(model.config, methods=(*model.config.methods, method.words))
    return System(model=model, parts=compose(parts, [method.card.name for method in methods]))


def _leave_query_space(model: DualEncoder) -> None:
    """A model that is changed or trained on is fitted to no other one any more."""
    model.config = replace(model.config, in_query_space=False)


def _check_slots(card: Card, given: Parts) -> None:
    """Refuse parts that the card does not tell of: lists and documentation would be wrong."""
    filled = {field.name for field in fields(Parts) if getattr(given, field.name)}
    unknown = filled - {"reads"} - set(card.slots)
    if unknown:
        raise ConfigError(
            f"method {card.name} fills {', '.join(sorted(unknown))}, its card says "
            f"{', '.join(card.slots)}",
            hint="correct the slots of its CARD",
        )
