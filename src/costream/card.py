"""Method cards: what a method is, read from its file without running it.

Every file of `costream/methods` (but those that begin with an underscore) holds one method and a
literal `CARD = {...}` or `CARD = Card(...)`. Cards are found by scanning the folder and read from
the syntax tree, so that listing the methods imports neither them nor torch, and a method exists as
soon as its file does.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from costream.config import from_dict
from costream.config_values import Range
from costream.errors import ConfigError
from costream.suggest import did_you_mean

Slot = Literal["surgery", "objective", "data", "scorer", "index", "generator", "rank", "evaluation"]
IndexImpact = Literal[
    "none", "query_only", "per_item_bias", "reencode", "multi_vector", "sparse", "pairwise"
]

METHODS_FOLDER = Path(__file__).parent / "methods"


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a method is, for lists, documentation and checks.

    Attributes:
        name: As written on a command line; the name of its file, `-` for `_`.
        title: Full name of the method.
        paper: Title and venue of the publication.
        year: Of the publication.
        kind: What it does in a few words (training objective, re-ranking, ...).
        slots: Slots of `Parts` that it fills.
        index_impact: What an index that exists has to do when the method is used: nothing, treat
            queries differently, store one number an item, encode all items again, hold several
            vectors an item, hold sparse vectors, or be a first stage for scores of pairs.
        losses: Names of the losses that it logs, in words.
        summary: One or two sentences.
        scale: With what data and models it was published, and so what a claim that does not show
            here would need; stands beside such claims.

    Example:
        >>> Card(
        ...     name="clip", title="CLIP", paper="Learning Transferable Visual Models", year=2021,
        ...     kind="training objective", slots=("objective",), index_impact="reencode",
        ...     losses=("contrast",), summary="Two towers, symmetric contrast.",
        ...     scale="Published with 400 million pairs.",
        ... ).slots
        ('objective',)
    """

    name: str
    title: str
    paper: str
    year: Annotated[int, Range(1900, 2100)]
    kind: str
    slots: tuple[Slot, ...]
    index_impact: IndexImpact
    losses: tuple[str, ...] = ()
    summary: str
    scale: str


def find_methods(folder: Path = METHODS_FOLDER) -> dict[str, Card]:
    """All methods of a folder, by name.

    Args:
        folder: Folder of method files.

    Returns:
        Name to card, sorted by name.

    Raises:
        ConfigError: When the folder is absent, or a file has no card, one that is not literal, or
            one that does not fit; names every such file.

    Example:
        >>> all(name == card.name for name, card in find_methods().items())
        True
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder of methods", hint="install costream again")
    cards, problems = [], []
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_"):
            continue
        try:
            cards.append(read_card(path))
        except ConfigError as error:
            problems.append(error.message)
    if problems:
        raise ConfigError(" ".join(problems), hint="correct the CARD of each file")
    return {card.name: card for card in sorted(cards, key=lambda card: card.name)}


def find_method(name: str, folder: Path = METHODS_FOLDER) -> Card:
    """The card of one method.

    Args:
        name: As written on a command line.
        folder: Folder of method files.

    Returns:
        Its card.

    Raises:
        ConfigError: When there is no such method; lists what there is.

    Example:
        >>> find_method("no-such-method")
        Traceback (most recent call last):
        costream.errors.ConfigError: there is no method 'no-such-method'...
    """
    cards = find_methods(folder)
    if name not in cards:
        raise ConfigError(
            f"there is no method {name!r}{did_you_mean(name, cards)}",
            hint=f"methods are: {', '.join(cards) or 'none'}",
        )
    return cards[name]


def find_together(names: str, folder: Path = METHODS_FOLDER) -> tuple[Card, ...]:
    """The cards of methods that are used together.

    Args:
        names: One name, or several with commas between, in the order in which they are applied.
        folder: Folder of method files.

    Returns:
        Their cards, in this order.

    Raises:
        ConfigError: When there is no such method, or one is named twice.

    Example:
        >>> [card.name for card in find_together("cots, filip")]
        ['cots', 'filip']
    """
    cards = tuple(find_method(name.strip(), folder) for name in names.split(","))
    named = [card.name for card in cards]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ConfigError(
            f"got the method {twice[0]!r} {named.count(twice[0])} times, expected each once",
            hint="to weigh a loss otherwise, use its settings",
        )
    return cards


def read_card(path: Path) -> Card:
    """The card of a method file, read without running the file.

    Args:
        path: A Python file.

    Returns:
        Its card.

    Raises:
        ConfigError: When the file is not Python, has not exactly one literal `CARD`, or the card
            does not fit its fields or its file's name.
    """
    values = _literal_card(path)
    try:
        card = from_dict(Card, values)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error.message}", hint=error.hint) from error
    if card.name.replace("-", "_") != path.stem:
        raise ConfigError(
            f"{path.name}: the card is called {card.name!r}, expected the name of its file",
            hint="rename one of the two",
        )
    blank = [part for part in ("title", "paper", "kind", "summary") if not getattr(card, part)]
    if blank or not card.slots:
        raise ConfigError(
            f"{path.name}: {', '.join(blank) or 'slots'} of the card is empty",
            hint="say what the method is",
        )
    return card


def _literal_card(path: Path) -> Mapping[str, Any]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: is not Python: {error}", hint="correct it") from error
    found = [value for node in tree.body if (value := _card_value(node)) is not None]
    if len(found) != 1:
        raise ConfigError(
            f"{path.name}: has {len(found)} assignments to CARD, expected one",
            hint="put CARD = Card(...) with literal values at the top of the module",
        )
    return _read_literal(found[0], path)


def _card_value(node: ast.stmt) -> ast.expr | None:
    """The value that a statement gives to `CARD`."""
    if isinstance(node, ast.AnnAssign):
        targets: list[ast.expr] = [node.target]
    elif isinstance(node, ast.Assign):
        targets = node.targets
    else:
        return None
    named = any(isinstance(target, ast.Name) and target.id == "CARD" for target in targets)
    return node.value if named else None


def _read_literal(value: ast.expr, path: Path) -> Mapping[str, Any]:
    problem = ConfigError(
        f"{path.name}: CARD (line {value.lineno}) is not literal",
        hint="write CARD = Card(name=..., ...) with plain strings, numbers and tuples",
    )
    try:
        if isinstance(value, ast.Call):
            callee = value.func.attr if isinstance(value.func, ast.Attribute) else value.func
            named = callee if isinstance(callee, str) else getattr(callee, "id", None)
            if named != "Card" or value.args or any(word.arg is None for word in value.keywords):
                raise problem
            return {str(word.arg): ast.literal_eval(word.value) for word in value.keywords}
        literal = ast.literal_eval(value)
    except (ValueError, TypeError) as error:
        raise problem from error
    if not isinstance(literal, dict) or not all(isinstance(key, str) for key in literal):
        raise problem
    return literal
