"""What could not be read, told in a form that people and programs can use."""

from __future__ import annotations

import os
from dataclasses import dataclass

from costream.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One file or record that was left out, and why.

    Attributes:
        path: The file as the operating system names it (bytes that are not UTF-8 come as
            surrogate escapes: print it with `printable`), or the record ("dev.jsonl line 7").
        reason: One sentence in plain words, safe to print.

    Example:
        >>> Failure(path="a.jpg", reason="is empty (0 bytes), expected a picture").reason
        'is empty (0 bytes), expected a picture'
    """

    path: str
    reason: str

    @classmethod
    def of(cls, path: str | os.PathLike[str], error: DataError) -> Failure:
        """Make a failure of an error, without repeating the path in the reason.

        Args:
            path: The file that was being read.
            error: What reading it raised.

        Returns:
            The failure.

        Example:
            >>> Failure.of("a.jpg", DataError("a.jpg: is empty", hint="remove it")).reason
            'is empty; remove it'
        """
        text = str(error)
        return cls(path=os.fspath(path), reason=text.removeprefix(f"{printable(path)}: "))


def printable(path: str | os.PathLike[str]) -> str:
    r"""Write a path on one line of valid Unicode, whatever its bytes are.

    Args:
        path: Any path; newlines, control letters and undecodable bytes are allowed.

    Returns:
        The path with every letter that cannot be printed written as an escape.

    Example:
        >>> printable("two\nlines.jpg")
        'two\\nlines.jpg'
    """
    text = os.fspath(path)
    if text.isprintable():
        return text
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # a byte that was not UTF-8, kept by the file system codec
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter.isprintable() or letter == "\u200d":  # the joiner inside emoji is no control letter
        return letter
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
