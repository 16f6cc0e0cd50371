"""One form of configuration: frozen, keyword-only, slotted dataclasses, checked at run time.

A configuration class names every option with its type; nothing else is an option. The same class is
filled from Python, from `key=value` words of a command line and from JSON. Each way refuses what it
does not know, with a suggestion, and tells all problems at once.

Types of fields: `int`, `float`, `bool`, `str`, `Literal`, `X | None`, `tuple[X, ...]`,
`tuple[X, Y]`, another configuration class (its options are written `outer.inner`), and any of them
as `Annotated[X, Range(low, high)]`.

Example:
    >>> @dataclass(frozen=True, kw_only=True, slots=True)
    ... class Optim:
    ...     rate: float = 1e-4
    ...     warm_up: bool = True
    >>> parse_settings(Optim, {"rate": "3e-4", "warm_up": "no"})
    Optim(rate=0.0003, warm_up=False)
    >>> parse_settings(Optim, {"rat": "1"})
    Traceback (most recent call last):
    costream.errors.ConfigError: Optim has no option 'rat' (did you mean 'rate'?); ...
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar

from costream.config_values import (
    Range,
    ValueProblem,
    check_value,
    describe_type,
    from_json,
    is_optional,
    is_supported,
    nested_class,
    read_text,
)
from costream.errors import ConfigError, CostreamError
from costream.suggest import did_you_mean

__all__ = [
    "Range",
    "Setting",
    "check_config",
    "describe_settings",
    "from_dict",
    "parse_settings",
    "parse_words",
    "settings_as_text",
    "to_dict",
]

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One option, for a help text.

    Attributes:
        key: As written on a command line, `outer.inner` for nested ones.
        type: What to write, in words.
        default: The default as text, or None where a value must be given.
    """

    key: str
    type: str
    default: str | None


def parse_settings(config_class: type[C], settings: Mapping[str, str], base: C | None = None) -> C:
    """Fill a configuration from words of a command line.

    Args:
        config_class: A frozen, keyword-only, slotted dataclass.
        settings: Option to text; nested options are written `outer.inner`. A `tuple` is written
            with commas, None as `none`, a `bool` as true/false, yes/no, on/off or 1/0.
        base: Where options that are not named come from (a preset); the defaults where absent.

    Returns:
        The configuration, every field of its declared type.

    Raises:
        ConfigError: When the class is of another form, an option is unknown or absent, or a value
            does not fit; all problems at once.

    Example:
        >>> parse_settings(Setting, {"key": "a", "type": "text", "default": "none"})
        Setting(key='a', type='text', default=None)
    """
    problems: list[str] = []
    _check_class(config_class)
    nested: dict[str, Any] = {}
    for key, text in settings.items():
        _insert(nested, key, text, problems)
    made = _Builder(config_class, read_text, problems).build(config_class, nested, base, "")
    _raise_all(config_class, problems)
    return typing.cast(C, made)


def parse_words(words: Sequence[str]) -> dict[str, str]:
    """Settings from `key=value` words.

    Args:
        words: As given.

    Returns:
        Key to value, both text; what they mean is for the configuration to say.

    Raises:
        ConfigError: When a word has no `=`, or two words set the same key differently.

    Example:
        >>> parse_words(["steps=10", "text_rate=0.1"])
        {'steps': '10', 'text_rate': '0.1'}
    """
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"got {word!r}, expected key=value", hint="--set steps=1000")
        if settings.setdefault(key, value) != value:
            raise ConfigError(
                f"got {key}={settings[key]} and {key}={value}, expected one of them",
                hint="remove one",
            )
    return settings


def from_dict(config_class: type[C], values: Mapping[str, Any]) -> C:
    """Fill a configuration from decoded JSON, as `to_dict` writes it.

    Args:
        config_class: A frozen, keyword-only, slotted dataclass.
        values: Option to value; nested classes as nested mappings.

    Returns:
        The configuration, every field of its declared type.

    Raises:
        ConfigError: When the class is of another form, an option is unknown or absent, or a value
            does not fit; all problems at once.

    Example:
        >>> from_dict(Setting, {"key": "a", "type": "text", "default": None}).key
        'a'
    """
    problems: list[str] = []
    _check_class(config_class)
    made = _Builder(config_class, from_json, problems).build(config_class, values, None, "")
    _raise_all(config_class, problems)
    return typing.cast(C, made)


def to_dict(config: object) -> dict[str, Any]:
    """A configuration as plain values for JSON.

    Args:
        config: An instance of a configuration class.

    Returns:
        Option to value; nested classes as nested mappings, tuples as lists.

    Raises:
        ConfigError: When it is not a configuration, or one of its values does not fit.

    Example:
        >>> to_dict(Setting(key="a", type="text", default=None))
        {'key': 'a', 'type': 'text', 'default': None}
    """
    check_config(config)
    return {each.name: _plain(getattr(config, each.name)) for each in fields(type(config))}  # type: ignore[arg-type] # checked above


def settings_as_text(config: object) -> dict[str, str]:
    """What differs from the defaults, as `parse_settings` reads it.

    Args:
        config: An instance of a configuration class without configurations inside.

    Returns:
        Option to text.

    Raises:
        ConfigError: When it is not a configuration, one of its values does not fit, or an option
            holds a configuration.

    Example:
        >>> @dataclass(frozen=True, kw_only=True, slots=True)
        ... class Optim:
        ...     rate: float = 1e-4
        ...     sizes: tuple[int, ...] = (1,)
        >>> settings_as_text(Optim(sizes=(2, 3)))
        {'sizes': '2,3'}
    """
    check_config(config)
    texts: dict[str, str] = {}
    for each in fields(type(config)):  # type: ignore[arg-type] # checked above
        value = getattr(config, each.name)
        if is_dataclass(value):
            raise ConfigError(f"option {each.name!r} holds a configuration, expected a value")
        if value != each.default:
            texts[each.name] = _as_text(value)
    return texts


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_as_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def check_config(config: object) -> None:
    """Check the type and the range of every field: Python itself checks none.

    Args:
        config: An instance of a configuration class.

    Raises:
        ConfigError: When its class is of another form, or a value does not fit; all problems at
            once.

    Example:
        >>> check_config(Setting(key="a", type="text", default=3))
        Traceback (most recent call last):
        costream.errors.ConfigError: Setting: default is 3, expected text, or none; ...
    """
    kind = type(config)
    _check_class(kind)
    problems: list[str] = []
    _check_fields(config, "", problems)
    _raise_all(kind, problems)


def describe_settings(config_class: type[Any]) -> tuple[Setting, ...]:
    """All options of a configuration, nested ones with dots.

    Args:
        config_class: A frozen, keyword-only, slotted dataclass.

    Returns:
        One entry an option, in the order of the class.

    Raises:
        ConfigError: When the class is of another form.

    Example:
        >>> [setting.key for setting in describe_settings(Setting)]
        ['key', 'type', 'default']
    """
    _check_class(config_class)
    return tuple(_settings_of(config_class, ""))


class _Builder:
    """Makes configurations of nested mappings and collects what is wrong with them."""

    def __init__(
        self, root: type[Any], read: Callable[[Any, Any], Any], problems: list[str]
    ) -> None:
        self._names = [setting.key for setting in _settings_of(root, "")]
        self._root = root
        self._read = read
        self._problems = problems

    def build(self, kind: type[Any], given: Mapping[str, Any], base: Any, prefix: str) -> Any:
        """An instance of `kind`, or None after adding to the problems."""
        before = len(self._problems)
        forms = _forms(kind)
        for name in given:
            if name not in forms:
                self._unknown(prefix + name)
        values = {}
        for each in fields(kind):
            start = _start(each, base)
            if each.name in given:
                form = forms[each.name]
                values[each.name] = self._value(form, given[each.name], start, prefix + each.name)
            elif start is not MISSING:
                values[each.name] = start
            else:
                self._problems.append(
                    f"{prefix}{each.name} has no value, expected {describe_type(forms[each.name])}"
                )
        if len(self._problems) > before:
            return None
        try:
            made = kind(**values)
        except (CostreamError, ValueError) as error:
            self._problems.append(f"{prefix}{error}" if prefix else str(error))
            return None
        if prefix == "":
            _check_fields(made, "", self._problems)
        return made

    def _value(self, form: Any, given: Any, start: Any, key: str) -> Any:
        inner = nested_class(form)
        # On a command line a mapping means dots after the name of a single value.
        dotted = isinstance(given, Mapping) and self._read is read_text
        if inner is None and not dotted:
            try:
                return self._read(given, form)
            except ValueProblem as problem:
                self._problems.append(f"{key} {problem}")
                return None
        if inner is None:
            for name in given:
                self._unknown(f"{key}.{name}")
            return None
        if isinstance(given, Mapping):
            base = start if isinstance(start, inner) else None
            return self.build(inner, given, base, f"{key}.")
        absent = given is None or (isinstance(given, str) and given.strip().lower() == "none")
        if not (absent and is_optional(form)):
            names = ", ".join(f"{key}.{name}" for name in _forms(inner))
            self._problems.append(f"{key} is {given!r}, expected its options: {names}")
        return None

    def _unknown(self, key: str) -> None:
        self._problems.append(
            f"{self._root.__name__} has no option {key!r}{did_you_mean(key, self._names)}"
        )


def _insert(nested: dict[str, Any], key: str, text: str, problems: list[str]) -> None:
    """Put `a.b.c = text` into nested mappings."""
    *outer, last = key.split(".")
    place = nested
    for name in outer:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            problems.append(f"{name} is set as a whole and by {key!r}, expected one of the two")
            return
        place = inner
    if isinstance(place.get(last), dict):
        problems.append(f"{key} is set as a whole and by its options, expected one of the two")
        return
    place[last] = text


def _start(field: Any, base: Any) -> Any:
    """The value before anything is set: of the base, else the default, else MISSING."""
    if base is not None:
        return getattr(base, field.name)
    if field.default is not MISSING:
        return field.default
    return MISSING if field.default_factory is MISSING else field.default_factory()


def _forms(kind: type[Any]) -> dict[str, Any]:
    """Field to type."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"the types of {kind.__name__} cannot be resolved: {error}",
            hint="import them at run time and define the class at the top of its module",
        ) from error
    return {each.name: hints[each.name] for each in fields(kind)}


def _check_class(kind: type[Any]) -> None:
    """Refuse classes that would let a misspelt or mistyped option pass."""
    name = getattr(kind, "__name__", str(kind))
    wanted = "a dataclass(frozen=True, kw_only=True, slots=True)"
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ConfigError(f"{name} is no dataclass, expected {wanted}", hint="declare it so")
    parameters = vars(kind)["__dataclass_params__"]
    lacks = [
        word
        for word, there in (
            ("frozen", parameters.frozen),
            ("kw_only", all(each.kw_only for each in fields(kind))),
            ("slots", "__slots__" in vars(kind)),
        )
        if not there
    ]
    if lacks:
        raise ConfigError(f"{name} lacks {', '.join(lacks)}, expected {wanted}", hint="add them")
    problems = [
        f"{key} has type {form}, expected int, float, bool, str, Literal, a tuple, X | None or a "
        "configuration class"
        for key, form in _forms(kind).items()
        if not is_supported(form)
    ]
    _raise_all(kind, problems)
    for form in _forms(kind).values():
        inner = nested_class(form)
        if inner is not None:
            _check_class(inner)


def _check_fields(config: Any, prefix: str, problems: list[str]) -> None:
    for name, form in _forms(type(config)).items():
        value = getattr(config, name)
        try:
            check_value(value, form)
        except ValueProblem as problem:
            problems.append(f"{prefix}{name} {problem}")
            continue
        if value is not None and nested_class(form) is not None:
            _check_fields(value, f"{prefix}{name}.", problems)


def _settings_of(kind: type[Any], prefix: str) -> list[Setting]:
    found: list[Setting] = []
    for each, form in zip(fields(kind), _forms(kind).values(), strict=True):
        inner = nested_class(form)
        if inner is not None:
            found.extend(_settings_of(inner, f"{prefix}{each.name}."))
            continue
        start = _start(each, None)
        default = None if start is MISSING else _shown(start)
        found.append(Setting(key=prefix + each.name, type=describe_type(form), default=default))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_shown(each) for each in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return to_dict(value) if is_dataclass(value) else value


def _raise_all(kind: type[Any], problems: Sequence[str]) -> None:
    if not problems:
        return
    name = kind.__name__
    if len(problems) == 1:
        message = problems[0] if problems[0].startswith(f"{name} ") else f"{name}: {problems[0]}"
    else:
        listed = " ".join(f"({number}) {each}" for number, each in enumerate(problems, start=1))
        message = f"{name} has {len(problems)} problems: {listed}"
    raise ConfigError(message, hint="correct them and try again")
