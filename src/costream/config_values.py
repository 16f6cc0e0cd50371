"""Single values of a configuration: from text, from JSON, and whether they fit their type."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from costream.suggest import did_you_mean

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NONE = "none"


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a field may take: `Annotated[float, Range(0, 1)]`.

    Attributes:
        low: Least value, or None for no bound.
        high: Greatest value, or None for no bound.
        low_included: Whether `low` itself is allowed.
        high_included: Whether `high` itself is allowed.

    Example:
        >>> str(Range(0, 1, low_included=False))
        'above 0 and at most 1'
    """

    low: float | None = None
    high: float | None = None
    _: KW_ONLY
    low_included: bool = True
    high_included: bool = True

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"{'at least' if self.low_included else 'above'} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'at most' if self.high_included else 'below'} {self.high:g}")
        return " and ".join(parts)

    def holds(self, value: float) -> bool:
        """Whether a number is in the range.

        Args:
            value: Any number; NaN is in no range.

        Returns:
            True when it is.
        """
        if math.isnan(value):
            return False
        if self.low is not None and (value < self.low or (value == self.low) > self.low_included):
            return False
        return self.high is None or not (
            value > self.high or (value == self.high) > self.high_included
        )


class ValueProblem(Exception):
    """A value does not fit; the message says what was got and what was expected."""


def read_text(text: str, form: Any) -> Any:
    """A value from what was written on a command line.

    Args:
        text: As written: `3`, `1e-4`, `yes`, `none`, `1,5,10`.
        form: Type of the field.

    Returns:
        A value of that type.

    Raises:
        ValueProblem: When the text is no value of that type.

    Example:
        >>> read_text("1,5,10", tuple[int, ...])
        (1, 5, 10)
    """
    value = _read(text, form)
    check_value(value, form)
    return value


def check_value(value: Any, form: Any) -> None:
    """Refuse a value that is not of its field's type or outside its range.

    `True` is no number, a whole number is also a `float`, and NaN and infinity are no values.

    Args:
        value: Any value.
        form: Type of the field.

    Raises:
        ValueProblem: When it does not fit.

    Example:
        >>> check_value(True, int)
        Traceback (most recent call last):
        costream.config_values.ValueProblem: is True, expected a whole number
    """
    inner, ranges = _peel(form)
    if _is_optional(inner) and value is None:
        return
    core = without_none(inner)
    if core is not inner:
        _check_inside(value, core, form)
    elif not _fits(value, inner):
        raise ValueProblem(f"is {value!r}, expected {describe_type(form)}")
    for allowed in ranges:
        if not allowed.holds(value):
            raise ValueProblem(f"is {value!r}, expected {describe_type(form)}")


def from_json(value: Any, form: Any) -> Any:
    """A value from decoded JSON: lists become tuples, and whole numbers floats where meant.

    Args:
        value: As decoded.
        form: Type of the field.

    Returns:
        A value of that type.

    Raises:
        ValueProblem: When the value does not fit.

    Example:
        >>> from_json([1, 2], tuple[float, ...])
        (1.0, 2.0)
    """
    core = without_none(_peel(form)[0])
    core = _peel(core)[0]
    if get_origin(core) is tuple and isinstance(value, list | tuple):
        value = tuple(
            from_json(each, kind)
            for each, kind in zip(value, _element_types(core, len(value), str(value)), strict=True)
        )
    elif core is float and type(value) is int:
        value = float(value)
    check_value(value, form)
    return value


def describe_type(form: Any) -> str:
    """A type in words.

    Args:
        form: Type of a field.

    Returns:
        What people have to write.

    Example:
        >>> describe_type(Annotated[int, Range(1)] | None)
        'a whole number at least 1, or none'
    """
    inner, ranges = _peel(form)
    if _is_optional(inner):
        words = f"{describe_type(without_none(inner))}, or none"
    elif get_origin(inner) is Literal:
        words = "one of " + ", ".join(_as_text(choice) for choice in get_args(inner))
    elif get_origin(inner) is tuple:
        words = _describe_tuple(inner)
    elif is_dataclass(inner):
        words = f"options of {getattr(inner, '__name__', inner)}"
    else:
        simple = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        words = simple[inner]
    return " ".join([words, *(str(allowed) for allowed in ranges)])


def is_supported(form: Any) -> bool:
    """Whether a field may have this type.

    Args:
        form: Any type.

    Returns:
        True when the functions of this file can deal with it.

    Example:
        >>> is_supported(tuple[int, ...]), is_supported(dict[str, int]), is_supported(int | str)
        (True, False, False)
    """
    inner, _ = _peel(form)
    core = without_none(inner)
    if core is not inner:
        return is_supported(core)
    if get_origin(inner) is Literal:
        return all(isinstance(choice, str | int) for choice in get_args(inner))
    if get_origin(inner) is tuple:
        kinds = [kind for kind in get_args(inner) if kind is not ...]
        return all(is_supported(kind) and nested_class(kind) is None for kind in kinds)
    return inner in (int, float, bool, str) or (isinstance(inner, type) and is_dataclass(inner))


def nested_class(form: Any) -> type[Any] | None:
    """The configuration class that a field holds.

    Args:
        form: Type of the field.

    Returns:
        The class, or None when the field holds a single value.
    """
    core = _peel(without_none(_peel(form)[0]))[0]
    return core if isinstance(core, type) and is_dataclass(core) else None


def is_optional(form: Any) -> bool:
    """Whether a field may be None.

    Args:
        form: Type of the field.

    Returns:
        True when it may.
    """
    return _is_optional(_peel(form)[0])


def without_none(form: Any) -> Any:
    """`X` of `X | None`, and any other type as it is.

    Args:
        form: Type of a field.

    Returns:
        The type without None.
    """
    if not _is_optional(form):
        return form
    kinds = [kind for kind in get_args(form) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else form


def _peel(form: Any) -> tuple[Any, list[Range]]:
    """The type inside `Annotated`, and its ranges."""
    if get_origin(form) is not Annotated:
        return form, []
    inner, *extras = get_args(form)
    return inner, [extra for extra in extras if isinstance(extra, Range)]


def _is_optional(form: Any) -> bool:
    return get_origin(form) in (Union, types.UnionType) and type(None) in get_args(form)


def _check_inside(value: Any, core: Any, form: Any) -> None:
    """Check `X` of `X | None`, and say in the message that None would do as well."""
    try:
        check_value(value, core)
    except ValueProblem:
        raise ValueProblem(f"is {value!r}, expected {describe_type(form)}") from None


def _fits(value: Any, form: Any) -> bool:
    if get_origin(form) is Literal:
        # 1 == True, so the types have to agree as well.
        return any(value == choice and type(value) is type(choice) for choice in get_args(form))
    if get_origin(form) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = _element_types(form, len(value), repr(value))
        for each, kind in zip(value, kinds, strict=True):
            check_value(each, kind)
        return True
    if form is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if form is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, form)


def _read(text: str, form: Any) -> Any:
    inner, _ = _peel(form)
    core = without_none(inner)
    if core is not inner:
        return None if text.strip().lower() == _NONE else _read(text, core)
    if get_origin(inner) is Literal:
        return _read_choice(text, get_args(inner))
    if get_origin(inner) is tuple:
        parts = text.split(",") if text.strip() else []
        kinds = _element_types(inner, len(parts), repr(text))
        return tuple(_read(part.strip(), kind) for part, kind in zip(parts, kinds, strict=True))
    if inner is bool:
        return _read_bool(text)
    if inner is str:
        return text
    try:
        return inner(text)
    except ValueError:
        raise ValueProblem(f"is {text!r}, expected {describe_type(form)}") from None


def _read_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueProblem(f"is {text!r}, expected true or false (yes, no, on, off, 1, 0)")


def _read_choice(text: str, choices: Sequence[Any]) -> Any:
    words = {_as_text(choice): choice for choice in choices}
    if text in words:
        return words[text]
    raise ValueProblem(
        f"is {text!r}, expected one of {', '.join(words)}{did_you_mean(text, words)}"
    )


def _as_text(choice: Any) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _element_types(form: Any, count: int, shown: str) -> list[Any]:
    kinds = list(get_args(form))
    if len(kinds) == 2 and kinds[1] is ...:
        return kinds[:1] * count
    if kinds == [()]:
        kinds = []
    if len(kinds) != count:
        raise ValueProblem(f"is {shown}, expected {describe_type(form)}")
    return kinds


def _describe_tuple(form: Any) -> str:
    kinds = get_args(form)
    if len(kinds) == 2 and kinds[1] is ...:
        return f"a list separated by commas, each {describe_type(kinds[0])}"
    return f"{len(kinds)} values separated by commas: " + "; ".join(map(describe_type, kinds))
