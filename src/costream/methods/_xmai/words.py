"""Captions as words at places, and a language model that counts them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

STOP_WORDS = frozenset(
    "a an the and or of in on at to with for from by as is are was were be being it its his her "
    "their they he she this that these those there some two three four one while into over under "
    "up down out off near next behind through around other another which who what very".split()
)
ATTRIBUTES = (
    *"black white red blue green yellow brown orange pink purple gray grey blond dark".split(),
    *"bright small little large big tall short young old long wet dirty wooden empty".split(),
    *"snowy grassy sandy rocky muddy colorful striped shirtless furry busy".split(),
)
"""Common attributes of things in photographs: what a detector would name, where there is none."""

_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A place before a noun.

    Attributes:
        start: Where the noun begins in the caption.
        noun: As written there.
        objects: Which of the picture's objects it may be.
    """

    start: int
    noun: str
    objects: tuple[int, ...]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    Example:
        >>> words_of("A dog's ball, red.")
        ['a', "dog's", 'ball', 'red']
    """
    return [match.group().lower() for match in _WORD.finditer(text)]


def insert(caption: str, inserted: Sequence[tuple[int, str]]) -> str:
    """A caption with words before places.

    Args:
        caption: As it is.
        inserted: Places in the caption and words, the places rising.

    Example:
        >>> insert("a dog and a cat", [(2, "red"), (12, "old")])
        'a red dog and a old cat'
    """
    parts, last = [], 0
    for start, word in inserted:
        parts += [caption[last:start], word, " "]
        last = start
    return "".join([*parts, caption[last:]])


def direct_slots(caption: str, names: Sequence[Sequence[str]]) -> list[Slot]:
    """Slots before names of objects as they are written in a caption.

    Args:
        caption: Any text.
        names: What each object may be called.

    Returns:
        By place; the first occurrence of each name that follows a space and is a whole word.

    Example:
        >>> [slot.start for slot in direct_slots("a dog and a dog", [("dog",)])]
        [2]
    """
    found: dict[int, tuple[str, list[int]]] = {}
    for number, called in enumerate(names):
        for name in called:
            match = re.search(rf"(?<= ){re.escape(name)}(?!\w)", caption, re.IGNORECASE)
            if match is not None:
                found.setdefault(match.start(), (match.group(), []))[1].append(number)
    return [
        Slot(start=start, noun=noun, objects=tuple(dict.fromkeys(objects)))
        for start, (noun, objects) in sorted(found.items())
    ]


class WordModel:
    """P(word | word before, word after), by counts of neighbours in a corpus.

    The two conditions are taken as independent given the word:
    P(w | left, right) ~ P(w | left) P(right | w), each smoothed by `smoothing` of the frequency.

    Args:
        texts: The corpus.
        smoothing: Counts given to every continuation, shared by frequency.

    Example:
        >>> model = WordModel(["a red car", "a red bus", "a tall man"])
        >>> model.best("a", "bus", 2)[0][0]
        'red'
    """

    def __init__(self, texts: Iterable[str], smoothing: float = 1.0) -> None:
        self._count: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        for text in texts:
            words = ["<s>", *words_of(text), "</s>"]
            self._count.update(words)
            self._pairs.update(pairwise(words))
        self._total = sum(self._count.values())
        self._smoothing = smoothing
        self._vocabulary = sorted(set(self._count) - {"<s>", "</s>"})
        self._known: dict[tuple[str, str], list[tuple[str, float]]] = {}

    def _next(self, word: str, left: str) -> float:
        """P(word | left)."""
        prior = self._count[word] / self._total if self._total else 0.0
        return (self._pairs[left, word] + self._smoothing * prior) / (
            self._count[left] + self._smoothing
        )

    def best(self, left: str, right: str, count: int) -> list[tuple[str, float]]:
        """The most probable words between two, with their probabilities, best first."""
        key = (left, right)
        if key not in self._known:
            masses = [(w, self._next(w, left) * self._next(right, w)) for w in self._vocabulary]
            total = math.fsum(mass for _, mass in masses) or 1.0
            ordered = sorted(masses, key=lambda pair: (-pair[1], pair[0]))[:50]
            self._known[key] = [(word, mass / total) for word, mass in ordered]
        return self._known[key][:count]


def nouns_of(texts: Iterable[str], *, least: int = 3) -> frozenset[str]:
    """Words that stand after an article or an attribute and are neither: nouns, roughly.

    Args:
        texts: A corpus.
        least: How often a word must stand so, and in at least a third of its occurrences.

    Example:
        >>> sorted(nouns_of(["a dog runs", "the dog", "a black dog"]))
        ['dog']
    """
    before = {"a", "an", "the", "two", "three", "his", "her", *ATTRIBUTES}
    count: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for text in texts:
        words = words_of(text)
        count.update(words)
        after.update(word for left, word in pairwise(words) if left in before)
    never = STOP_WORDS | set(ATTRIBUTES)
    return frozenset(
        word
        for word, times in after.items()
        if word not in never and times >= least and 3 * times >= count[word]
    )


def bleu(candidate: str, reference: str, longest: int = 4) -> float:
    """Smoothed BLEU in percent (method 4 of Chen and Cherry, 2014) against one reference.

    Example:
        >>> bleu("a red dog runs fast", "a red dog runs fast")
        100.0
    """
    given, wanted = words_of(candidate), words_of(reference)
    if not given or not wanted:
        return 0.0
    logs, misses = [], 1.0
    for size in range(1, min(longest, len(given)) + 1):
        grams, truth = _grams(given, size), _grams(wanted, size)
        hits: float = sum((grams & truth).values())
        if hits == 0:
            if size == 1:
                return 0.0
            # Short texts get less for what they do not hit.
            misses *= 2
            hits = 1 / (misses * 5 / math.log(max(len(given), 2)))
        logs.append(math.log(hits / sum(grams.values())))
    brevity = min(0.0, 1 - len(wanted) / len(given))
    return 100.0 * math.exp(brevity + sum(logs) / len(logs))


def _grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))
