"""The two-stream model: what goes in comes out in order, alone as in a batch, in one space."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers.processors import TemplateProcessing

from costream.data import make_scenes
from costream.encoders.dual import DualConfig, DualEncoder, settings_hash
from costream.encoders.fingerprint import settings_that_count
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess, tokenize
from costream.encoders.storage import load, save_model
from costream.errors import ConfigError, CostreamError, DataError
from tiny_world import scene_batch, tiny_config, tiny_model

PICTURES = [sample.slots["image"] for sample in make_scenes(7, size_px=40).samples]
TEXTS = [
    "a red disc",
    "",
    "a blue cross above a green box",
    "zwei Hunde 🐶 两只狗",
    "a " * 10_000,
    "x",
    "name that is not UTF-8: \udcff",
]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return tiny_model().eval()


def close(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    return bool(np.abs(first - second).max(initial=0.0) < 1e-5)


# --- order, batches, forms ---


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_rows_are_in_input_order_and_do_not_depend_on_the_batch(
    model: DualEncoder, batch_size: int
) -> None:
    for encode, items in ((model.encode_images, PICTURES), (model.encode_texts, TEXTS)):
        alone = np.concatenate([encode([item]) for item in items])  # type: ignore[operator] # both
        together = encode(items, batch_size=batch_size)  # type: ignore[operator] # both
        assert together.dtype == np.float32
        assert together.shape == (7, 8)
        assert close(alone, together)
        assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
        backwards = encode(items[::-1], batch_size=batch_size)  # type: ignore[operator] # both
        assert close(backwards[::-1], together)


def test_nothing_in_nothing_out(model: DualEncoder) -> None:
    for rows in (model.encode_images([]), model.encode_texts([]), model.encode_videos([])):
        assert rows.shape == (0, 8)
        assert rows.dtype == np.float32


def test_the_same_twice_is_the_same_bits(model: DualEncoder) -> None:
    assert np.array_equal(model.encode_texts(TEXTS), model.encode_texts(TEXTS))
    assert np.array_equal(model.encode_images(PICTURES), model.encode_images(PICTURES))


def test_pictures_come_as_paths_strings_bytes_or_objects(
    model: DualEncoder, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    PICTURES[0].save(path)
    rows = model.encode_images([path, str(path), path.read_bytes(), PICTURES[0]])
    assert all(close(rows[0], row) for row in rows[1:])


def test_a_picture_is_the_same_through_files_and_tensors(model: DualEncoder) -> None:
    pixels = model.config.image_preprocess.pixels(PICTURES[0])
    with torch.no_grad():
        direct = model.embed_pixels(torch.from_numpy(pixels.copy())[None]).numpy()
    assert close(direct, model.encode_images(PICTURES[:1]))


def test_training_and_embedding_see_the_same_vectors(model: DualEncoder) -> None:
    batch = scene_batch(model, captions=2)
    with torch.no_grad():
        found = model.features(batch)
        ids, mask = batch.slots["text.ids"], batch.slots["text.mask"]
        texts = model.embed_tokens(ids.flatten(0, 1), mask.flatten(0, 1))
        images = model.embed_pixels(batch.slots["image"])
        again = model.features(batch, found["image"].extras["frozen"])
    assert torch.allclose(found["text"].pooled, texts, atol=1e-6)
    assert torch.allclose(found["image"].pooled, images, atol=1e-6)
    assert torch.equal(found["image"].pooled, again["image"].pooled)


def test_progress_counts_every_item(model: DualEncoder) -> None:
    done: list[int] = []
    model.encode_images(PICTURES, batch_size=3, progress=done.append)
    assert done == [3, 3, 1]
    done.clear()
    model.encode_texts(TEXTS, batch_size=4, progress=done.append)
    assert done == [4, 3]


# --- what is refused ---


def generator() -> Iterator[str]:
    yield "a red disc"


@pytest.mark.parametrize("one", ["a red disc", b"a red disc", generator()])
def test_one_item_instead_of_a_list_is_refused(model: DualEncoder, one: Any) -> None:
    for encode in (model.encode_texts, model.encode_images, model.encode_videos):
        with pytest.raises(DataError, match="expected a list of"):
            encode(one)  # type: ignore[operator] # one of three
    with pytest.raises(DataError, match="list of frames as video 0"):
        model.encode_videos([one])


def test_one_picture_or_path_instead_of_a_list_is_refused(model: DualEncoder) -> None:
    for one in (PICTURES[0], Path("a.png")):
        with pytest.raises(DataError, match="expected a list of pictures"):
            model.encode_images(one)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_nothing_are_refused(model: DualEncoder, size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size is {size}"):
        model.encode_texts(TEXTS, batch_size=size)


def test_a_text_that_is_none_is_named(model: DualEncoder) -> None:
    with pytest.raises(DataError, match="text 1 is a NoneType, expected a str"):
        model.encode_texts(["a", None])  # type: ignore[list-item] # on purpose


def test_a_broken_picture_is_named_and_the_model_stays_in_its_mode(
    model: DualEncoder, tmp_path: Path
) -> None:
    model.train()
    try:
        for training in (True, False):
            model.train(training)
            with pytest.raises(DataError, match=r"absent\.png"):
                model.encode_images([PICTURES[0], tmp_path / "absent.png"])
            assert model.training == training
            assert model.vision.training == training
    finally:
        model.eval()


# --- videos ---


def test_a_video_is_the_unit_mean_of_its_frames(model: DualEncoder) -> None:
    """Pooled after normalising each frame, then made unit length again."""
    rows = model.encode_images(PICTURES).astype(np.float64)
    videos = [PICTURES[:3], PICTURES[3:4], PICTURES[2:7]]
    found = model.encode_videos(videos, batch_size=2)
    for row, part in zip(found, (rows[:3], rows[3:4], rows[2:7]), strict=True):
        mean = part.mean(axis=0)
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_the_order_of_frames_does_not_count(model: DualEncoder) -> None:
    forth, back = model.encode_videos([PICTURES[:5], PICTURES[4::-1]])
    assert close(forth, back)
    assert close(model.encode_videos([PICTURES[:1] * 4]), model.encode_images(PICTURES[:1]))


def test_a_video_without_frames_is_refused(model: DualEncoder) -> None:
    with pytest.raises(DataError, match="video 1 has no frame"):
        model.encode_videos([PICTURES[:1], []])


# --- texts and pictures before the towers ---


def test_a_long_text_is_cut_and_keeps_its_closing_token(model: DualEncoder) -> None:
    ids, mask = tokenize(model.tokenizer, ["a " * 10_000, "a"], TextPreprocess(max_tokens=6))
    assert ids.shape == (2, 6)
    assert ids[0, 0] == 2
    assert ids[0, -1] == ids[1, 2] == 3
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]


def test_padding_to_the_longest_or_to_the_context(model: DualEncoder) -> None:
    whole = TextPreprocess(max_tokens=6, pad_id=9, pad_to_max=True)
    ids, mask = tokenize(model.tokenizer, ["a"], whole)
    assert ids[0].tolist()[2:] == [3, 9, 9, 9]
    assert mask.all()
    assert tokenize(model.tokenizer, [], TextPreprocess(max_tokens=6))[0].shape == (0, 0)


def test_a_prefix_stands_between_the_opening_token_and_the_words_and_is_never_cut() -> None:
    tokenizer = tiny_model().tokenizer
    plain, _ = tokenize(tokenizer, ["a disc", ""], TextPreprocess(max_tokens=8))
    settings = TextPreprocess(max_tokens=8, prefix_ids=(7, 8))
    ids, mask = tokenize(tokenizer, ["a disc", "", "a " * 20], settings)
    assert ids[0, :6].tolist() == [plain[0, 0], 7, 8, *plain[0, 1:]]
    assert ids[1, :4].tolist() == [plain[1, 0], 7, 8, plain[1, 1]]
    assert ids[2, :3].tolist() == ids[0, :3].tolist() and ids[2, -1] == plain[0, -1]
    assert mask.sum(axis=1).tolist() == [6, 4, 8]
    tokenizer.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    assert tokenize(tokenizer, ["a"], settings)[0][0, :2].tolist() == [7, 8]


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (24, 24), (25, 400)])
@pytest.mark.parametrize("fit", ["crop", "crop_whole", "squash"])
def test_pictures_of_any_shape_become_squares(size: tuple[int, int], fit: Any) -> None:
    settings = ImagePreprocess(size_px=24, fit=fit, crop_share=0.8)
    made = settings.pixels(Image.new("RGB", size, (1, 2, 3)))
    assert made.shape == (3, 24, 24)
    assert made.reshape(3, -1).std(axis=1).tolist() == [0.0, 0.0, 0.0]
    assert made[:, 0, 0].tolist() == [1, 2, 3]


def test_a_thin_strip_is_cut_without_scaling_all_of_it() -> None:
    """Scaled whole, these two would have 800 million pixels each."""
    settings = ImagePreprocess(size_px=224, fit="crop_whole")
    for size in ((16_000, 1), (1, 16_000)):
        picture = Image.new("RGB", size, (1, 2, 3))
        assert settings.pixels(picture).shape == (3, 224, 224)
        plain = ImagePreprocess(size_px=224).pixels(picture)
        assert np.array_equal(settings.pixels(picture), plain)


@pytest.mark.parametrize("fit", ["crop", "crop_whole"])
def test_the_centre_is_cut_out(fit: Any) -> None:
    picture = Image.new("RGB", (60, 20))
    picture.paste((255, 255, 255), (20, 0, 40, 20))
    cut = ImagePreprocess(size_px=20, fit=fit).pixels(picture)
    assert cut[:, :, 3:-3].min() > 250
    squashed = ImagePreprocess(size_px=20, fit="squash").pixels(picture)
    assert squashed[:, :, :4].max() < 5


# --- the space ---


def test_the_space_changes_with_every_weight() -> None:
    model = tiny_model()
    spaces = {model.space.weights_hash}
    weights = list(model.parameters())
    for weight in weights:
        with torch.no_grad():
            weight.view(-1)[-1] += 0.125
        spaces.add(model.space.weights_hash)
    assert len(spaces) == len(weights) + 1


def test_two_weights_that_change_places_change_the_space() -> None:
    model = tiny_model()
    before = model.space
    one, other = model.image_projection.weight, model.text_projection.weight
    with torch.no_grad():
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
    assert model.space != before


def variants(config: DualConfig) -> dict[str, DualConfig]:
    """One change of a setting that decides on a vector each."""
    image, text = config.image_preprocess, config.text_preprocess
    layers = config.text.transformer

    def tower(**changes: Any) -> DualConfig:
        return replace(config, text=replace(config.text, **changes))

    def stack(**changes: Any) -> DualConfig:
        return tower(transformer=replace(layers, **changes))

    return {
        "size_px": replace(config, image_preprocess=replace(image, size_px=30)),
        "fit": replace(config, image_preprocess=replace(image, fit="squash")),
        "crop_share": replace(config, image_preprocess=replace(image, crop_share=0.9)),
        "resample": replace(config, image_preprocess=replace(image, resample="bilinear")),
        "mean": replace(config, image_preprocess=replace(image, mean=(0.5, 0.5, 0.4))),
        "std": replace(config, image_preprocess=replace(image, std=(0.5, 0.5, 0.4))),
        "max_tokens": replace(config, text_preprocess=replace(text, max_tokens=9)),
        "pad_id": replace(config, text_preprocess=replace(text, pad_id=1)),
        "pad_to_max": replace(config, text_preprocess=replace(text, pad_to_max=True)),
        "name": replace(config, name="other"),
        "pooling": tower(pooling="first"),
        "causal": tower(causal=True),
        "heads": stack(heads=4),
        "norm": stack(norm="pre"),
        "activation": stack(activation="quick_gelu"),
        "norm_eps": stack(norm_eps=1e-3),
    }


def test_the_space_changes_with_every_setting_of_a_vector() -> None:
    """The weights are the same in all; a space must not say that the vectors are."""
    state = tiny_model().state_dict()
    configs = {"": tiny_config(), **variants(tiny_config())}
    spaces = {}
    for name, config in configs.items():
        model = tiny_model(config)
        model.load_state_dict(state)
        spaces[name] = model.space
    assert len(set(spaces.values())) == len(configs)
    assert len({space.weights_hash for space in spaces.values()}) == 1


def test_what_matters_only_in_training_is_no_part_of_the_space() -> None:
    plain, dropping = tiny_model(tiny_config()), tiny_model(tiny_config(dropout=0.5))
    dropping.load_state_dict(plain.state_dict())
    assert plain.space == dropping.space


def test_defaults_are_left_out_of_the_fingerprint() -> None:
    """An option that is added later with its default leaves the spaces of old models alone."""
    found = settings_that_count(tiny_config())
    assert "projection" not in found
    assert "projection" in {field.name for field in fields(DualConfig)}
    assert found["text"]["transformer"]["norm"] == "post"
    assert "norm" not in found["vision"]["transformer"]
    with pytest.raises(TypeError, match="expected a configuration"):
        settings_that_count({"a": 1})


def test_sizes_out_of_range_are_refused() -> None:
    from costream.config import check_config

    for broken in (
        ImagePreprocess(size_px=0),
        ImagePreprocess(size_px=8, crop_share=1.5),
        TextPreprocess(max_tokens=0),
        replace(tiny_config(), dim=0),
    ):
        with pytest.raises(CostreamError):
            check_config(broken)


def test_png_bytes_in_memory(model: DualEncoder) -> None:
    buffer = io.BytesIO()
    PICTURES[0].save(buffer, format="PNG")
    assert close(model.encode_images([buffer.getvalue()]), model.encode_images(PICTURES[:1]))


def test_a_whole_number_where_a_fraction_may_be_is_the_same_setting(tmp_path: Path) -> None:
    """Read again it is a fraction; were it another setting, a saved model could not be loaded."""
    config = tiny_config()
    whole = replace(config, image_preprocess=replace(config.image_preprocess, std=(1, 1, 1)))
    parts = replace(config.image_preprocess, std=(1.0, 1.0, 1.0))
    fraction = replace(config, image_preprocess=parts)
    assert settings_hash(whole) == settings_hash(fraction) != settings_hash(config)
    saved = save_model(tiny_model(whole), tmp_path / "model")
    assert load(saved).space.preprocessing_hash == settings_hash(fraction)
