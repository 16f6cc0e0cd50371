"""Errors that say what was got, what was expected and what to do."""

from __future__ import annotations


class CostreamError(Exception):
    """Base of every error that costream raises on purpose.

    Args:
        message: What was got and what was expected.
        hint: What to do about it; printed after the message.

    Example:
        >>> raise CostreamError("got 0 pictures, expected at least 1", hint="name a folder")
        Traceback (most recent call last):
        costream.errors.CostreamError: got 0 pictures, expected at least 1; name a folder
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}; {hint}" if hint else message)


class ConfigError(CostreamError):
    """A configuration value or option is unknown, mistyped or out of range."""


class DataError(CostreamError):
    """A file, record or data set is absent, broken or of another form than expected."""


class SpaceMismatch(CostreamError):
    """Vectors of two different models or preprocessings were about to be compared."""


class WeightsError(CostreamError):
    """A model file is absent, damaged, or does not fit its configuration."""


class NotFittedError(CostreamError):
    """A part was used before the step that gives it its state."""


class NumericalError(CostreamError):
    """A loss, score or vector is not finite."""
