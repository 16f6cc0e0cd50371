"""Procedural scenes with captions and a scene graph: a data set that needs no files.

Two objects out of 4 shapes x 6 colours stand on two of nine named places; captions come from
templates with synonyms and mention one object, the relation of both, or everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from costream.data.dataset import DataSet
from costream.errors import ConfigError
from costream.records import Sample

Detail: TypeAlias = Literal["vary", "full"]

SHAPES: dict[str, tuple[str, ...]] = {
    "disc": ("disc", "circle"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus sign"),
}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (60, 90, 235),
    "yellow": (235, 215, 50),
    "purple": (160, 60, 200),
    "white": (240, 240, 240),
}
# Row by row, from the top left; the position of an object is its index here.
POSITIONS: tuple[tuple[str, ...], ...] = (
    ("at the top left", "in the upper left corner"),
    ("at the top", "at the upper edge"),
    ("at the top right", "in the upper right corner"),
    ("on the left", "at the left edge"),
    ("in the centre", "in the middle"),
    ("on the right", "at the right edge"),
    ("at the bottom left", "in the lower left corner"),
    ("at the bottom", "at the lower edge"),
    ("at the bottom right", "in the lower right corner"),
)

_KINDS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
_PLACES = tuple((a, b) for a in range(9) for b in range(a + 1, 9))
# Two different kinds on two places: every number below this is one scene.
NUM_SCENES = len(_PLACES) * len(_KINDS) * (len(_KINDS) - 1)

_MAX_DRAWS = 200  # tries for captions of one scene that all differ


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One object of a scene graph.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        position: Index in `POSITIONS`, 0 (top left) to 8 (bottom right), row by row.
        box_px: Left, top, right, bottom in pixels, right and bottom exclusive.
    """

    shape: str
    colour: str
    position: int
    box_px: tuple[int, int, int, int]


def make_scenes(
    num_scenes: int = 100,
    *,
    seed: int = 0,
    skip: int = 0,
    num_captions: int = 1,
    detail: Detail = "vary",
    size_px: int = 48,
) -> DataSet:
    """Draw scenes that all differ in their scene graph.

    The scenes of a seed form one sequence: a longer set begins with the shorter one, and
    `skip=4000` gives scenes that are in no set of 4,000. Everything about a scene (jitter,
    background, captions) depends on seed and scene only.

    Args:
        num_scenes: How many; with `skip` at most `NUM_SCENES` (19,872).
        seed: Chooses order, jitter, background and words; at least 0.
        skip: How many scenes of the sequence to leave out first.
        num_captions: Captions a scene, 1 to 8, all different.
        detail: "vary" mentions one object, the relation, or all; "full" always both objects with
            their places, so that no caption fits two scenes.
        size_px: Width and height, at least 24.

    Returns:
        Samples with PIL images. `meta["objects"]` is a tuple of two `SceneObject`;
        `meta["mentioned"]` a tuple with, for every caption, the indices of the objects in it.

    Raises:
        ConfigError: A number is out of its range.

    Example:
        >>> data = make_scenes(3, seed=1, detail="full")
        >>> data.num_images, data.samples[0].slots["image"].size
        (3, (48, 48))
    """
    _check(num_scenes, seed, skip, num_captions, detail, size_px)
    order = np.random.default_rng(seed).permutation(NUM_SCENES)[skip : skip + num_scenes]
    samples = tuple(_scene(int(code), seed, num_captions, detail, size_px) for code in order)
    return DataSet(name=f"scenes seed {seed}, {skip} to {skip + num_scenes}", samples=samples)


def _check(
    num_scenes: int, seed: int, skip: int, num_captions: int, detail: str, size_px: int
) -> None:
    problems = []
    if num_scenes < 1 or skip < 0 or skip + num_scenes > NUM_SCENES:
        problems.append(
            f"num_scenes={num_scenes} with skip={skip}, expected at least 1 and 0, together at "
            f"most {NUM_SCENES}"
        )
    if seed < 0:
        problems.append(f"seed={seed}, expected at least 0")
    if not 1 <= num_captions <= 8:
        problems.append(f"num_captions={num_captions}, expected 1 to 8")
    if detail not in ("vary", "full"):
        problems.append(f"detail={detail!r}, expected 'vary' or 'full'")
    if size_px < 24:
        problems.append(f"size_px={size_px}, expected at least 24")
    if problems:
        raise ConfigError("got " + "; ".join(problems), hint="change these arguments")


def _scene(code: int, seed: int, num_captions: int, detail: Detail, size_px: int) -> Sample:
    rng = np.random.default_rng([seed, code])
    kinds_and_places = _decode(code)
    objects = tuple(
        SceneObject(shape=shape, colour=colour, position=place, box_px=_box(place, size_px, rng))
        for (shape, colour), place in kinds_and_places
    )
    image = _draw(objects, size_px, rng)
    texts = _captions(objects, num_captions, detail, rng)
    name = f"scene-{code:05d}"
    return Sample(
        id=name,
        group=name,
        slots={"image": image, "text": tuple(texts)},
        meta={"objects": objects, "mentioned": tuple(texts.values())},
    )


def _decode(code: int) -> list[tuple[tuple[str, str], int]]:
    """Split a scene number into its parts: places, first kind, second kind (not the first)."""
    rest, second = divmod(code, len(_KINDS) - 1)
    place, first = divmod(rest, len(_KINDS))
    second += second >= first
    return [(_KINDS[first], _PLACES[place][0]), (_KINDS[second], _PLACES[place][1])]


def _box(position: int, size_px: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    cell_px = size_px // 3
    side_px = int(rng.integers(cell_px * 5 // 8, cell_px * 7 // 8 + 1))
    row, column = divmod(position, 3)
    left = column * cell_px + int(rng.integers(0, cell_px - side_px + 1))
    top = row * cell_px + int(rng.integers(0, cell_px - side_px + 1))
    return left, top, left + side_px, top + side_px


def _draw(objects: tuple[SceneObject, ...], size_px: int, rng: np.random.Generator) -> Image.Image:
    shade = int(rng.integers(10, 70))
    image = Image.new("RGB", (size_px, size_px), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    for item in objects:
        draw_object(canvas, item)
    return image


def draw_object(canvas: ImageDraw.ImageDraw, item: SceneObject) -> None:
    """Draw one object into its box.

    Args:
        canvas: Of an RGB picture.
        item: Its shape, colour and box.
    """
    left, top, right, bottom = item.box_px
    right, bottom = right - 1, bottom - 1  # Pillow draws the last pixel too
    fill = COLOURS[item.colour]
    if item.shape == "disc":
        canvas.ellipse((left, top, right, bottom), fill=fill)
    elif item.shape == "square":
        canvas.rectangle((left, top, right, bottom), fill=fill)
    elif item.shape == "triangle":
        canvas.polygon(((left + right) // 2, top, right, bottom, left, bottom), fill=fill)
    else:
        third = (right - left + 1) // 3
        canvas.rectangle((left + third, top, right - third, bottom), fill=fill)
        canvas.rectangle((left, top + third, right, bottom - third), fill=fill)


def _captions(
    objects: tuple[SceneObject, ...], num: int, detail: Detail, rng: np.random.Generator
) -> dict[str, tuple[int, ...]]:
    """Map each of `num` different captions to the indices of the objects that it mentions."""
    texts: dict[str, tuple[int, ...]] = {}
    for _ in range(_MAX_DRAWS):
        if len(texts) == num:
            return texts
        kind = "full" if detail == "full" else str(rng.choice(["one", "relation", "full"]))
        first, second = (int(index) for index in rng.permutation(2))
        if kind == "one":
            place = f" {_place(objects[first], rng)}" if rng.random() < 0.5 else ""
            texts[_noun(objects[first], rng) + place] = (first,)
        elif kind == "relation":
            texts[_relation(objects[first], objects[second], rng)] = (first, second)
        else:
            texts[_full(objects[first], objects[second], rng)] = (first, second)
    raise AssertionError("the templates give at least 8 captions a scene")


def _noun(item: SceneObject, rng: np.random.Generator) -> str:
    return f"a {item.colour} {rng.choice(SHAPES[item.shape])}"


def _place(item: SceneObject, rng: np.random.Generator) -> str:
    return str(rng.choice(POSITIONS[item.position]))


def _relation(first: SceneObject, second: SceneObject, rng: np.random.Generator) -> str:
    down, across = (
        one - other
        for one, other in zip(divmod(first.position, 3), divmod(second.position, 3), strict=True)
    )
    words = []
    if across:
        words += ["left of", "to the left of"] if across < 0 else ["right of", "to the right of"]
    if down:
        words += ["above", "over"] if down < 0 else ["below", "under"]
    return f"{_noun(first, rng)} {rng.choice(words)} {_noun(second, rng)}"


def _full(first: SceneObject, second: SceneObject, rng: np.random.Generator) -> str:
    joint = str(rng.choice([" and ", ", and there is ", " with "]))
    described = [f"{_noun(item, rng)} {_place(item, rng)}" for item in (first, second)]
    return joint.join(described)


def made_up_language(text: str, language: str, rng: np.random.Generator, synonyms: int = 1) -> str:
    """A caption in a language that does not exist: other words, in the opposite order.

    Args:
        text: In English.
        language: Name; two languages share no word.
        rng: Chooses among synonyms.
        synonyms: Words that the language has for each English one: the more, the harder it is.

    Returns:
        As many words as `text` has.

    Example:
        >>> made_up_language("a red disc", "x", np.random.default_rng(0))
        'xdisc0 xred0 xa0'
    """
    name = "".join(letter for letter in language if letter.isalnum())
    words = text.replace(",", " ").split()
    return " ".join(f"{name}{word}{rng.integers(synonyms)}" for word in reversed(words))
