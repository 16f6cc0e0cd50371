"""What a caption says of a scene, and how much it shares with captions that people wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from costream.data.scenes import COLOURS, POSITIONS, SHAPES, SceneObject

Fact = tuple[str, str]
_SHAPES: Final = {word: shape for shape, words in SHAPES.items() for word in words}
_PLACES: Final = {words: str(n) for n, group in enumerate(POSITIONS) for words in group}


def _either(words: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_OBJECT: Final = re.compile(
    rf"\b({_either(list(COLOURS))}) ({_either(list(_SHAPES))})(?: ({_either(list(_PLACES))}))?"
)
_COMMON: Final = frozenset(
    "a an the is are was were be being of in on at to with and or as by for from into onto up down "
    "over out off near next while his her its their it he she they him them that this there who "
    "which has have some other another".split()
)


def said_objects(caption: str) -> set[tuple[str, str, str]]:
    """Colour, shape and place (empty when not said) of each object that a caption names.

    Example:
        >>> sorted(said_objects("a red circle at the top and a blue box"))
        [('blue', 'square', ''), ('red', 'disc', '1')]
    """
    found = _OBJECT.findall(" ".join(caption.lower().split()))
    return {(colour, _SHAPES[shape], _PLACES.get(place, "")) for colour, shape, place in found}


def facts_of(objects: set[tuple[str, str, str]]) -> set[Fact]:
    """Single attributes: colours, shapes and places."""
    names = ("colour", "shape", "place")
    return {
        (name, part) for each in objects for name, part in zip(names, each, strict=True) if part
    }


def score_scene(caption: str, objects: Sequence[SceneObject]) -> tuple[float, float]:
    """How well a caption tells of a scene.

    Args:
        caption: Any text.
        objects: What there is.

    Returns:
        F1 of attributes, and the share of objects whose colour, shape and place are all said of one
        object; both 0 to 1.
    """
    true = {(each.colour, each.shape, str(each.position)) for each in objects}
    said = said_objects(caption)
    return f_score(facts_of(said), facts_of(true)), len(said & true) / len(true)


def f_score(said: set[Fact] | set[str], true: set[Fact] | set[str]) -> float:
    """Harmonic mean of precision and recall of a set; 0 when nothing is common."""
    common = len({*said} & {*true})
    return 2 * common / (len(said) + len(true)) if common else 0.0


def content_words(text: str) -> set[str]:
    """Words that say something.

    Example:
        >>> sorted(content_words("A dog is on the beach."))
        ['beach', 'dog']
    """
    return set(re.findall(r"[a-z]+", text.lower())) - _COMMON


def word_overlap(caption: str, references: Sequence[str]) -> float:
    """F1 of content words with the reference that is nearest, 0 to 1."""
    said = content_words(caption)
    return max(f_score(said, content_words(reference)) for reference in references)
