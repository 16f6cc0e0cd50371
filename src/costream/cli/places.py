"""Places of indexes as verbs name them."""

from __future__ import annotations

from pathlib import Path

from costream.cli._model_of_index import is_address
from costream.errors import ConfigError


def public_place(place: str) -> str:
    """A place as it can be used from anywhere; never with a password."""
    if is_address(place):
        from costream.index.postgres import public_url

        return public_url(place)
    return str(Path(place).absolute())


def folder_of(place: str, doing: str, instead: str) -> Path:
    """The folder of an index that is in one.

    Args:
        place: As given.
        doing: Verb for the message.
        instead: What to do with an index in a database.

    Raises:
        ConfigError: It is in a database.
    """
    if is_address(place):
        raise ConfigError(
            f"cannot {doing} the index {public_place(place)}, expected one in a folder",
            hint=instead,
        )
    return Path(place)
