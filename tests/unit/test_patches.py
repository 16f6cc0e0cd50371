"""Why a picture matched: what is covered up in the wrong place costs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import costream
from costream.cli.demo import GALLERY
from costream.encoders.preprocess import ImagePreprocess
from costream.errors import DataError
from costream.search import explain
from costream.search.patches import _seen
from tiny_world import tiny_model

DOG, CASTLE = (GALLERY / f"{name}.jpg" for name in ("black_dog_in_woods", "chambord_castle"))


def test_the_score_is_that_of_the_search() -> None:
    model = tiny_model()
    picture = Image.effect_noise((60, 40), 90).convert("RGB")
    found = explain(model, picture, "a red circle")
    expected = model.encode_texts(["a red circle"])[0] @ model.encode_images([picture])[0]
    assert found.score == pytest.approx(float(expected), abs=1e-4)
    assert found.grid.shape == (4, 4)
    assert found.grid.dtype == np.float32


def test_a_cell_is_worth_what_the_score_falls_without_it() -> None:
    """By hand: the cell's pixels become the mean of the picture's."""
    model = tiny_model().eval()
    picture = Image.effect_noise((24, 24), 90).convert("RGB")
    asked = torch.from_numpy(model.encode_texts(["a red circle"])[0])
    found = explain(model, picture, asked.numpy())
    pixels = model.config.image_preprocess.pixels(picture)[None].copy()
    normal = model.normalise_pixels(torch.from_numpy(pixels))
    for row, column in ((0, 0), (1, 3), (3, 2)):
        covered = normal.clone()
        block = (..., slice(6 * row, 6 * row + 6), slice(6 * column, 6 * column + 6))
        covered[block] = normal.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 6, 6)
        with torch.inference_mode():
            score = float(model.project_image(model.vision(covered))[0] @ asked)
        assert found.grid[row, column] == pytest.approx(found.score - score, abs=1e-4)


def test_a_picture_of_one_colour_rests_on_no_cell() -> None:
    found = explain(tiny_model(), Image.new("RGB", (30, 30), "red"), "a red circle")
    np.testing.assert_allclose(found.grid, 0, atol=1e-5)


def test_words_and_their_vector_explain_alike() -> None:
    model = tiny_model()
    picture = Image.effect_noise((24, 24), 90).convert("RGB")
    by_vector = explain(model, picture, model.encode_texts(["a blue square"])[0])
    assert np.array_equal(explain(model, picture, "a blue square").grid, by_vector.grid)


def test_explaining_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()
    explain(model, Image.new("RGB", (24, 24)), "a red circle")
    assert model.training


def test_the_shipped_model_looks_at_the_right_side() -> None:
    model = costream.load("cots-mini")
    both = Image.new("RGB", (224, 224))
    for left, path in enumerate((DOG, CASTLE)):
        both.paste(costream.open_image(path).resize((112, 224)), (112 * left, 0))
    for text, side in (("a black dog", 0), ("a castle", 1)):
        grid = explain(model, both, text).grid
        weights = (grid[:, :3].sum(), grid[:, -3:].sum())
        assert weights[side] > weights[1 - side]


@pytest.mark.parametrize(
    ("settings", "size", "region"),
    [
        ({"fit": "squash"}, (400, 100), (0, 0, 1, 1)),
        ({"fit": "crop"}, (400, 100), (0.375, 0, 0.625, 1)),
        ({"fit": "crop", "crop_share": 0.5}, (100, 100), (0.25, 0.25, 0.75, 0.75)),
        ({"fit": "crop_whole"}, (100, 200), (0, 0.25, 1, 0.75)),
    ],
)
def test_the_grid_covers_what_the_model_sees(
    settings: dict[str, object], size: tuple[int, int], region: tuple[float, ...]
) -> None:
    seen = _seen(ImagePreprocess(size_px=24, **settings), size)  # type: ignore[arg-type]
    assert seen == pytest.approx(region)


def test_a_broken_picture_is_refused() -> None:
    with pytest.raises(DataError):
        explain(tiny_model(), b"no picture", "a red circle")
