"""One ranking from two: by vectors and by words, each trusted for what it knows.

Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009) adds 1 / (60 + rank) of every
ranking that has the item. It needs no scores on a common scale, and has two faults that are mended
here. A word that half of the collection bears says nothing, yet its first match would get as much
as the vectors' first: a ranking by words counts as much as its words tell, log(N / matches) /
log(N) of N items. And a name typed in full would only be one vote: what equals it goes first.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

CONSTANT: Final = 60
"""Of reciprocal rank fusion, as published."""
FEW: Final = 3
"""Items that bear a word at most for it to count as a name."""

_WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """One item of a fused ranking.

    Attributes:
        id: The item.
        score: Sum over the rankings; 0 for what only comes after the depth of the fusion.
        is_named: Whether the words asked for are its name, and it goes first for that.
    """

    id: str
    score: float
    is_named: bool


def fuse(
    by_vectors: Sequence[str],
    by_words: Sequence[str],
    *,
    named: Set[str] = frozenset(),
    words_weight: float = 1.0,
    depth: int = 200,
) -> list[Fused]:
    """Make one ranking of two.

    The order of the first `depth` items depends on nothing that comes after them in `by_vectors`,
    so that a page may be followed by another.

    Args:
        by_vectors: Ids, best first.
        by_words: Ids, best first.
        named: Ids that go first.
        words_weight: What a place among `by_words` counts, 0 to 1; see `telling`.
        depth: Places that count in each ranking.

    Returns:
        Every id of either ranking once, best first. Those of equal score are in the order of
        `by_vectors`.

    Example:
        >>> [one.id for one in fuse(["a", "b", "c"], ["c"])]
        ['c', 'a', 'b']
        >>> [one.id for one in fuse(["a", "b", "c"], ["c"], words_weight=0.0)]
        ['a', 'b', 'c']
    """
    scores = dict.fromkeys([*by_vectors, *by_words], 0.0)
    for ranking, weight in ((by_vectors, 1.0), (by_words, words_weight)):
        for place, item_id in enumerate(ranking[:depth], start=1):
            scores[item_id] += weight / (CONSTANT + place)
    places = {item_id: place for place, item_id in enumerate(scores)}
    ordered = sorted(scores, key=lambda one: (one not in named, -scores[one], places[one]))
    return [Fused(id=one, score=scores[one], is_named=one in named) for one in ordered]


def telling(num_matches: int, num_items: int) -> float:
    """How much a match by words says, 0 (every item has it) to nearly 1 (one of very many).

    Args:
        num_matches: Items that match.
        num_items: Items in all.

    Example:
        >>> telling(1, 10_000), round(telling(100, 10_000), 2), telling(10_000, 10_000)
        (1.0, 0.5, 0.0)
    """
    if num_matches < 1 or num_items <= num_matches:
        return 0.0
    return 1.0 - math.log(num_matches) / math.log(num_items)


def fold(text: str) -> tuple[str, ...]:
    """The words of a text without case, diacritics and what stands between words.

    Args:
        text: Any text; a file name without its ending, say.

    Example:
        >>> fold("Red_Car-São Paulo")
        ('red', 'car', 'sao', 'paulo')
    """
    if text.isascii():  # most names are, and hundreds are looked at for one question
        return tuple(_WORD.findall(text.lower()))
    decomposed = unicodedata.normalize("NFKD", text)
    letters = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    return tuple(_WORD.findall(letters))


def named_by(words: str, names: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """The items whose name the words are.

    A whole name, tag or caption makes an item named however many bear it. Being a part of one does
    so only when at most `FEW` items bear it: "dog" is a word of a thousand captions and names none
    of them, an invoice's number names the invoice.

    Args:
        words: What was asked.
        names: Item to its names: file name without ending, caption, tags, found text.

    Returns:
        Ids of the items that are named.

    Example:
        >>> sorted(named_by("Été", {"a": ["ete"], "b": ["l'été à Nice"], "c": ["winter"]}))
        ['a', 'b']
    """
    asked = fold(words)
    if not asked:
        return frozenset()
    whole: set[str] = set()
    parts: set[str] = set()
    for item_id, texts in names.items():
        folded = [fold(text) for text in texts]
        if asked in folded:
            whole.add(item_id)
        elif any(_holds(text, asked) for text in folded):
            parts.add(item_id)
    return frozenset(whole | parts if len(whole | parts) <= FEW else whole)


def _holds(text: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether some words stand in a text next to each other, in this order."""
    size = len(asked)
    return any(text[i : i + size] == asked for i in range(len(text) - size + 1))
