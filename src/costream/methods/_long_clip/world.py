"""Scenes with a short caption, and crowded ones with a long caption that begins like others do.

A plain scene has two large objects, and one sentence of 8 to 12 tokens names both with their
places. A crowded scene has four small objects more, one sentence each. Crowded scenes come in
families: the large objects and the first small one are the same, so that nothing in the first
sentences tells the members of a family apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from costream.data import DataSet
from costream.data.scenes import COLOURS, SHAPES, SceneObject, draw_object
from costream.records import Sample

OLD_CONTEXT = 16
"""Positions of the model that is made longer; the plain captions train up to the 12th."""

PLACES = (
    *("top left", "top", "top right"),
    *("left", "middle", "right"),
    *("bottom left", "bottom", "bottom right"),
)
FAMILY = 4

_SIDE_PX = 48
_LARGE_PX, _SMALL_PX = 15, 9
_SMALL = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """An object before it is drawn: shape, colour, and one of nine places."""

    shape: str
    colour: str
    place: int

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} {PLACES[self.place]}"


def plain_scenes(count: int, *, seed: int) -> DataSet:
    """Scenes of two large objects with one sentence, no two with the same sentence."""
    rng = np.random.default_rng((seed, 1))
    samples: dict[str, Sample] = {}
    while len(samples) < count:
        large = _things(rng, _places(rng)[:2])
        text = _first_sentence(large)
        if text not in samples:
            samples[text] = _sample(f"plain-{len(samples)}", large, (), text, rng)
    return DataSet(name=f"plain scenes, seed {seed}", samples=tuple(samples.values()))


def crowded_scenes(count: int, *, seed: int) -> DataSet:
    """Families of scenes of two large and four small objects, with five sentences each."""
    rng = np.random.default_rng((seed, 2))
    samples: dict[str, Sample] = {}
    while len(samples) < count:
        places = _places(rng)
        large, shared = _things(rng, places[:2]), _things(rng, places[2:3])
        for _ in range(FAMILY):
            small = (*shared, *_things(rng, rng.permutation(places[3:])[: _SMALL - 1]))
            text = " . ".join([_first_sentence(large), *map(str, small)])
            samples[text] = _sample(f"crowded-{len(samples)}", large, small, text, rng)
    return DataSet(name=f"crowded scenes, seed {seed}", samples=tuple(samples.values())[:count])


def _places(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(len(PLACES))


def _things(rng: np.random.Generator, places: np.ndarray) -> tuple[Thing, ...]:
    shapes, colours = list(SHAPES), list(COLOURS)
    return tuple(
        Thing(shape=str(rng.choice(shapes)), colour=str(rng.choice(colours)), place=int(place))
        for place in places
    )


def _first_sentence(large: tuple[Thing, ...]) -> str:
    return " and ".join(map(str, large))


def _sample(
    name: str,
    large: tuple[Thing, ...],
    small: tuple[Thing, ...],
    text: str,
    rng: np.random.Generator,
) -> Sample:
    shade = int(rng.integers(10, 70))
    image = Image.new("RGB", (_SIDE_PX, _SIDE_PX), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    for side_px, things in ((_LARGE_PX, large), (_SMALL_PX, small)):
        for thing in things:
            draw_object(canvas, _placed(thing, side_px, rng))
    slots = {"image": image, "text": (text,)}
    return Sample(id=name, group=name, slots=slots)


def _placed(thing: Thing, side_px: int, rng: np.random.Generator) -> SceneObject:
    cell_px = _SIDE_PX // 3
    row, column = divmod(thing.place, 3)
    left, top = (
        number * cell_px + int(rng.integers(0, cell_px - side_px + 1)) for number in (column, row)
    )
    return SceneObject(
        shape=thing.shape,
        colour=thing.colour,
        position=thing.place,
        box_px=(left, top, left + side_px, top + side_px),
    )
