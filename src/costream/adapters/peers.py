"""What is said when the library of an adapter is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def installed(package: str, *, extra: str) -> Iterator[None]:
    """Around the imports from a package.

    Args:
        package: As `pip` calls it.
        extra: Of costream, that installs it.

    Raises:
        ImportError: The package is not there; says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{package} is not installed ({error}); pip install 'costream[{extra}]'"
        ) from error
