"""Law: scenes are what their graph and captions say, all different, and the same for a seed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from costream.data import make_scenes
from costream.data.scenes import COLOURS, NUM_SCENES, POSITIONS, SHAPES
from costream.errors import ConfigError


def graph(sample: object) -> frozenset[tuple[str, str, int]]:
    objects = sample.meta["objects"]  # type: ignore[attr-defined]
    return frozenset((item.shape, item.colour, item.position) for item in objects)


def named(text: str) -> list[tuple[str, str]]:
    """Colour and shape of every object in a caption, by the synonyms alone."""
    shape_of = {word: shape for shape, words in SHAPES.items() for word in words}
    pattern = rf"a ({'|'.join(COLOURS)}) ({'|'.join(sorted(shape_of, key=len, reverse=True))})"
    return [(colour, shape_of[word]) for colour, word in re.findall(pattern, text)]


def test_number_of_scenes() -> None:
    # 36 pairs of places, 24 kinds for the first object, 23 other kinds for the second
    assert NUM_SCENES == 36 * 24 * 23 == 19_872


def test_all_scenes_differ_and_held_out_ones_are_new() -> None:
    train = make_scenes(4000, seed=1)
    test = make_scenes(500, seed=1, skip=4000)
    graphs = [graph(sample) for sample in (*train.samples, *test.samples)]
    assert len(set(graphs)) == 4500
    assert len({sample.id for sample in (*train.samples, *test.samples)}) == 4500
    assert all(len({item[:2] for item in one}) == 2 for one in graphs)  # never two equal objects
    assert len({item[2] for one in graphs for item in one}) == 9


def test_full_captions_fit_one_scene_only() -> None:
    data = make_scenes(2000, seed=2, detail="full")
    for sample in data.samples:
        (text,) = sample.slots["text"]
        found = set()
        for colour, shape in named(text):
            (item,) = (o for o in sample.meta["objects"] if (o.colour, o.shape) == (colour, shape))
            assert any(place in text for place in POSITIONS[item.position])
            found.add(item)
        assert found == set(sample.meta["objects"])
    assert len({sample.slots["text"] for sample in data.samples}) == 2000


def test_varied_captions_are_true_and_mention_one_or_two() -> None:
    data = make_scenes(500, seed=3, num_captions=3)
    counts = []
    for sample in data.samples:
        assert len(set(sample.slots["text"])) == 3
        for text, mentioned in zip(sample.slots["text"], sample.meta["mentioned"], strict=True):
            objects = [sample.meta["objects"][index] for index in mentioned]
            assert named(text) == [(item.colour, item.shape) for item in objects]
            counts.append(len(objects))
            if len(objects) == 2:
                (row, column), (row2, column2) = (divmod(o.position, 3) for o in objects)
                assert "left of" not in text or column < column2
                assert "right of" not in text or column > column2
                assert not re.search(" above | over ", text) or row < row2
                assert not re.search(" below | under ", text) or row > row2
    assert 0.2 < np.mean(np.array(counts) == 1) < 0.5


def test_pixels_are_what_the_graph_says() -> None:
    for sample in make_scenes(300, seed=4).samples:
        pixels = np.asarray(sample.slots["image"])
        rest = np.ones(pixels.shape[:2], dtype=bool)
        for item in sample.meta["objects"]:
            left, top, right, bottom = item.box_px
            row, column = divmod(item.position, 3)
            assert column * 16 <= left < right <= (column + 1) * 16
            assert row * 16 <= top < bottom <= (row + 1) * 16
            patch = pixels[top:bottom, left:right]
            painted = (patch == COLOURS[item.colour]).all(-1)
            assert 0.3 < painted.mean() <= 1
            assert painted.any(0).all()  # the box is tight
            assert painted.any(1).all()
            assert painted.mean() == 1 or item.shape != "square"
            rest[top:bottom, left:right] = False
        assert np.ptp(pixels[rest]) == 0  # nothing outside the boxes


def test_same_seed_same_scenes_and_longer_sets_begin_alike() -> None:
    assert make_scenes(30, seed=5).hash == make_scenes(30, seed=5).hash
    assert make_scenes(30, seed=5).hash != make_scenes(30, seed=6).hash
    long, short = make_scenes(60, seed=5), make_scenes(30, seed=5)
    for one, other in zip(short.samples, long.samples, strict=False):
        assert one.id == other.id
        assert one.slots["text"] == other.slots["text"]
        assert one.slots["image"].tobytes() == other.slots["image"].tobytes()
    assert [s.id for s in make_scenes(30, seed=5, skip=30).samples] == [
        s.id for s in long.samples[30:]
    ]


@pytest.mark.parametrize("detail", ["vary", "full"])
def test_eight_captions_are_always_possible(detail: str) -> None:
    data = make_scenes(400, seed=7, num_captions=8, detail=detail)
    assert all(len(set(sample.slots["text"])) == 8 for sample in data.samples)


@pytest.mark.parametrize("size_px", [24, 48, 97, 224])
def test_other_sizes(size_px: int) -> None:
    sample = make_scenes(1, size_px=size_px).samples[0]
    assert sample.slots["image"].size == (size_px, size_px)


@pytest.mark.parametrize(
    "options",
    [
        {"num_scenes": 0},
        {"num_scenes": NUM_SCENES + 1},
        {"num_scenes": 1, "skip": NUM_SCENES},
        {"seed": -1},
        {"num_captions": 0},
        {"num_captions": 9},
        {"detail": "most"},
        {"size_px": 23},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make_scenes(**options)
