"""JSON files beside the weights, checked value by value as they are read. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from costream.errors import WeightsError

_ACTIVATIONS: Final[Mapping[str, Literal["gelu", "gelu_tanh", "quick_gelu"]]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
T = TypeVar("T")


class Settings:
    """A decoded JSON object.

    Args:
        path: Of the file, for messages.
        values: The object.
        place: Where in the file it stands, for messages.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], place: str = "") -> None:
        self.path = path
        self._values = values
        self._place = place

    def keys(self) -> frozenset[str]:
        """All keys that are there."""
        return frozenset(self._values)

    def require_type(self, *wanted: str, hint: str) -> str:
        """`model_type`, refused when it is another one."""
        kind = self._values.get("model_type")
        if not isinstance(kind, str) or kind not in wanted:
            expected = " or ".join(repr(each) for each in wanted)
            raise WeightsError(
                f"{self.path.parent} is of type {kind!r}, expected {expected}", hint=hint
            )
        return kind

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it stands, None where absent."""
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.problem(key, "a whole number of at least 1")
        return value

    def token_id(self, key: str) -> int | None:
        """A token id of at least 0, None where absent."""
        if not self.has(key):
            return None
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.problem(key, "a token id of at least 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.problem(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.problem(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.problem(key, "a string")
        return value

    def square(self, key: str, default: int) -> int:
        """The side of a square, written as one number or as two equal ones."""
        value = self._get(key, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.problem(key, "the side of a square, at least 1")
        return value

    def colours(self, key: str) -> tuple[float, float, float]:
        """Three finite numbers, or one that counts for all three."""
        value = self._get(key, None)
        values = value if isinstance(value, list) else [value] * 3
        plain = [x for x in values if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(values) != 3 or len(plain) != 3 or not all(map(math.isfinite, plain)):
            raise self.problem(key, "three finite numbers, one a colour")
        return float(plain[0]), float(plain[1]), float(plain[2])

    def activation(self, key: str, default: str) -> Literal["gelu", "gelu_tanh", "quick_gelu"]:
        """An activation that the towers know."""
        name = self.text(key, default)
        if name not in _ACTIVATIONS:
            raise self.problem(key, f"one of {sorted(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def require(self, key: str, default: T, *wanted: T) -> None:
        """Refuse a setting that the towers do not have, rather than compute something else."""
        value = self._get(key, default)
        if value not in wanted:
            raise self.problem(key, " or ".join(repr(each) for each in wanted))

    def inner(self, key: str) -> Settings:
        """An object in the object; empty where absent."""
        value: Any = self._get(key, {})
        if not isinstance(value, dict):
            raise self.problem(key, "an object")
        return Settings(self.path, value, f"{self._place}{key}.")

    def over(self, other: Settings) -> Settings:
        """This object, with the values of `other` where this one has none."""
        return Settings(self.path, {**other._values, **self._values}, self._place)

    def problem(self, key: str, expected: str) -> WeightsError:
        """The error for a value that does not fit."""
        got = repr(self._values[key]) if key in self._values else "absent"
        return WeightsError(
            f"{self.path}: {self._place}{key} is {got}, expected {expected}",
            hint="the file is damaged, or the model has a form that cannot be loaded",
        )

    def _get(self, key: str, default: T) -> Any | T:
        value = self._values.get(key)
        return default if value is None else value


def read_settings(path: Path) -> Settings:
    """Read a JSON file that must be there.

    Raises:
        WeightsError: When it is absent, unreadable, no JSON, or no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"no {path.name} in {path.parent}",
            hint="a model directory needs config.json, model.safetensors and, depending on the "
            "model, tokenizer.json and preprocessor_config.json; copy all of them",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"cannot read {path}: {error}", hint="the file is damaged; copy or download it again"
        ) from error
    if not isinstance(values, dict):
        raise WeightsError(
            f"{path} holds a {type(values).__name__}, expected an object",
            hint="the file is damaged; copy or download it again",
        )
    return Settings(path, values)


def read_optional(path: Path) -> Settings:
    """Read a JSON file that may be absent; an empty object then."""
    return read_settings(path) if path.is_file() else Settings(path, {})
