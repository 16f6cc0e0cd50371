"""The words of the items: which hold a word, and how well they fit a question.

FTS5 keeps inverted lists and no text. To take an item out it must be told the very words that were
put in, so what is derived from an item here may only change with the format of the index.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from costream.index.records import Item
from costream.index.schema import DamageError

# FTS5 takes letters that follow each other for one word. In scripts without blanks each letter is
# made a word of its own, and letters asked for together a phrase.
_LETTERS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff])")
# What may be in a phrase: letters, digits and their marks, as FTS5 itself splits.
_WORD = re.compile(r"[^\W_]+")
# Words of a question that are looked for; FTS5 refuses expressions without end.
_MAX_WORDS = 200
_INSERT = "INSERT INTO words (rowid, name, caption, tags, text) VALUES (?, ?, ?, ?, ?)"
_DELETE = (
    "INSERT INTO words (words, rowid, name, caption, tags, text) VALUES ('delete', ?, ?, ?, ?, ?)"
)


def add(connection: sqlite3.Connection, keyed: Iterable[tuple[int, Item]]) -> None:
    """Make items findable by their words."""
    connection.executemany(_INSERT, _rows(keyed))


def remove(connection: sqlite3.Connection, keyed: Iterable[tuple[int, Item]]) -> None:
    """Undo `add`; the items must be as they were then."""
    connection.executemany(_DELETE, _rows(keyed))


def clear(connection: sqlite3.Connection) -> None:
    """Forget every word."""
    connection.execute("INSERT INTO words (words) VALUES ('delete-all')")


def optimise(connection: sqlite3.Connection) -> None:
    """Merge everything, so that no trace of removed items is left."""
    connection.execute("INSERT INTO words (words) VALUES ('optimize')")


def check(connection: sqlite3.Connection) -> None:
    """Compare the lists with themselves.

    Raises:
        sqlite3.DatabaseError: They do not fit.
    """
    connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")


def count(connection: sqlite3.Connection) -> int:
    """How many items can be found by words."""
    return int(connection.execute("SELECT COUNT(*) FROM words_docsize").fetchone()[0])


def has_words(item: Item) -> bool:
    """Whether there is anything to find an item by."""
    return any(_columns(item))


def question(words: str) -> str | None:
    """A question in the language of FTS5: any of these words; None when there is none.

    Example:
        >>> question('dogs "on" beach-1.jpg OR')
        '"dogs" OR "on" OR "beach 1 jpg" OR "OR"'
    """
    whole = words.encode("utf-8", "replace").decode()
    parts = [" ".join(_WORD.findall(_LETTERS.sub(r" \1 ", part))) for part in whole.split()]
    found = list(dict.fromkeys(part for part in parts if part))
    return " OR ".join(f'"{part}"' for part in found[:_MAX_WORDS]) or None


def search(
    connection: sqlite3.Connection,
    asked: str,
    count: int,
    condition: tuple[str, Sequence[Any]] | None,
) -> tuple[list[int], list[float]]:
    """Keys and scores of the items that fit best, best first.

    Args:
        connection: In a transaction.
        asked: What `question` gave.
        count: How many at most.
        condition: SQL on the columns of `items`, with its values.

    Raises:
        DamageError: A score is no number, as those of lists that are not what was written.
    """
    # Not by `rank`, which is the same number and is sorted in a slower way.
    query, values = "SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ?", [asked]
    if condition is not None:
        query += f" AND rowid IN (SELECT key FROM items WHERE {condition[0]})"  # noqa: S608
        values += condition[1]
    found = connection.execute(f"{query} ORDER BY score DESC LIMIT ?", [*values, count]).fetchall()
    if any(score is None for _, score in found):
        raise DamageError("its lists of words are not what was written")
    return [key for key, _ in found], [score for _, score in found]


def _rows(keyed: Iterable[tuple[int, Item]]) -> Iterable[tuple[Any, ...]]:
    for key, item in keyed:
        # At a glance: most of many items without files have no words at all.
        if item.path is not None or item.caption or item.text or item.tags:
            columns = _columns(item)
            if any(columns):
                yield key, *columns


def _columns(item: Item) -> tuple[str, str, str, str]:
    name = ""
    if item.path is not None:
        name = os.fsencode(PurePath(item.path).name).decode("utf-8", "replace")
    columns = (name, item.caption, " ".join(item.tags), item.text)
    if all(map(str.isascii, columns)):
        return columns
    name, caption, tags, text = (_LETTERS.sub(r" \1 ", column) for column in columns)
    return name, caption, tags, text
