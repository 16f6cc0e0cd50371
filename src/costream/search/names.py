"""What items may be called, as questions in words are compared with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from costream.scoring.fuse import fold
from costream.search.candidates import look_up

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex
    from costream.index.records import Item

# English words that say nothing about a picture. An item counts as found by words only when it has
# all others of the question: one common word in a file's name is no reason to be on the first page.
_FUNCTION_WORDS = frozenset(
    "a an and are at by for from has have in into is it its of on or over some that the their "
    "there these this to under up while with".split()
)
# Some hundred bytes each.
_KEPT = 50_000


@dataclass(frozen=True, slots=True)
class Names:
    """What one item may be called.

    Attributes:
        texts: As it has them.
        words: All of their words, folded.
    """

    texts: tuple[str, ...]
    words: frozenset[str]


@dataclass(slots=True)
class _State:
    token: str = ""
    names: dict[str, Names] = field(default_factory=dict)


class KnownNames:
    """The names of items that questions in words have met, until the index changes.

    The same words find the same items again and again, and reading these is most of what a
    question costs besides its vector. May be used from several threads.
    """

    def __init__(self) -> None:
        self._state = _State()

    def of(self, index: SearchIndex, ids: Sequence[str]) -> list[Names]:
        """Names of items that were just found, in their order.

        Raises:
            GoneError: One of them was removed meanwhile.
            DataError: The index is damaged.
        """
        token = index.token()
        state = self._state
        if state.token != token or len(state.names) > _KEPT:
            state = self._state = _State(token)
        new = [one for one in ids if one not in state.names]
        if new:
            for item in look_up(index, new):
                texts = names_of(item)
                words = frozenset(word for text in texts for word in fold(text))
                state.names[item.id] = Names(texts, words)
        return [state.names[one] for one in ids]


def names_of(item: Item) -> tuple[str, ...]:
    """What an item may be called: the name of its file without ending, caption, tags, found text.

    Args:
        item: Of an index.

    Returns:
        Texts that are not empty.

    Example:
        >>> from costream.index.records import Item
        >>> names_of(Item(id="1", path="/pictures/red_car.jpg", tags=("garage",)))
        ('red_car', 'garage')
    """
    # PurePath takes longer, and one question looks at hundreds of names.
    stem, _ = os.path.splitext(os.path.basename(item.path or item.id))  # noqa: PTH119, PTH122
    return tuple(text for text in (stem, item.caption, *item.tags, item.text) if text)


def content_words(texts: Sequence[str]) -> frozenset[str]:
    """The words of a question that say what is asked for; all words if none does.

    Example:
        >>> sorted(content_words(["People on a stage"]))
        ['people', 'stage']
    """
    words = frozenset(word for text in texts for word in fold(text))
    return frozenset(word for word in words if word not in _FUNCTION_WORDS) or words
