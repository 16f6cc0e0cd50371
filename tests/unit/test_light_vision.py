"""The vision tower in numpy is the vision tower in torch, and is used for nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import costream
from costream.cli.demo import GALLERY
from costream.data.picture import PictureSource
from costream.encoders.blocks import TransformerConfig
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.efficientnet import EfficientNetConfig
from costream.encoders.light.vision import LightImageEncoder, load_image_encoder
from costream.encoders.preprocess import ImagePreprocess
from costream.encoders.storage import load, save_model
from costream.encoders.vision import VisionConfig
from costream.errors import DataError, WeightsError
from tiny_world import tiny_config, tiny_model

Change = Callable[[DualConfig], DualConfig]


def noise(*shape: int) -> Image.Image:
    values = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values)


PICTURES: list[PictureSource] = [
    noise(40, 60, 3),
    noise(61, 33, 3),
    noise(30, 30),
    Image.new("RGB", (1, 1), "red"),
    Image.new("RGB", (300, 2), "blue"),
]


def conv_config(seed: int = 0) -> DualConfig:
    """A random form of the kind that is implemented, small."""
    rng = np.random.default_rng(seed)
    heads = int(rng.choice([1, 2, 3, 4]))
    layers = TransformerConfig(
        width=heads * int(rng.choice([4, 8])),
        depth=int(rng.integers(0, 4)),
        heads=heads,
        mlp_width=int(rng.integers(3, 40)),
        norm=("pre", "post")[seed % 2],  # type: ignore[arg-type] # one of two
        norm_eps=float(rng.choice([1e-12, 1e-5])),
    )
    # Odd and even maps at every depth: each is padded in its own way.
    size_px = (32, 33, 50, 64, 71, 96)[seed % 6]
    conv = EfficientNetConfig(
        width_factor=0.3,
        depth_factor=float(rng.choice([0.5, 1.2])),
        num_frozen_stages=int(rng.integers(0, 8)),
    )
    vision = VisionConfig(
        image_px=size_px,
        patch_px=32,
        stem="conv",
        conv=conv,
        transformer=layers,
        pooling=("first", "mean")[seed // 2 % 2],  # type: ignore[arg-type] # one of two
        # Without layers the first token sees nothing of the picture.
        stem_residual=layers.depth == 0 or bool(rng.integers(2)),
    )
    return replace(
        tiny_config(dim=int(rng.choice([5, 8]))),
        vision=vision,
        image_preprocess=ImagePreprocess(
            size_px=size_px, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 1.0)
        ),
        projection_bias=bool(rng.integers(2)),
    )


@torch.no_grad()
def livened(model: DualEncoder, seed: int = 0) -> DualEncoder:
    """Random norms and biases too, which start as ones and zeros; filters that fade nothing out."""
    generator = torch.Generator().manual_seed(seed)
    for name, values in model.vision.state_dict().items():
        noise = torch.randn(values.shape, generator=generator)
        if values.ndim == 4:
            values.copy_(noise * (2 / values[0].numel()) ** 0.5)
        else:
            values.add_(noise * 0.1)
        if name.endswith("variance"):
            values.abs_()
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(livened(tiny_model(conv_config())), tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_numpy_and_torch_give_the_same_vectors(seed: int, tmp_path: Path) -> None:
    save_model(livened(tiny_model(conv_config(seed), seed=seed), seed), tmp_path)
    light, full = load_image_encoder(tmp_path), load(tmp_path, device="cpu")
    assert isinstance(light, LightImageEncoder)
    expected = full.encode_images(PICTURES)
    found = light.encode_images(PICTURES)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-3  # else it proves nothing
    assert light.space == full.space


def test_the_default_model_sees_real_pictures_as_the_full_one_does(tmp_path: Path) -> None:
    real = Image.open(GALLERY / "zebra.jpg")
    real.convert("L").save(tmp_path / "grey.png")
    real.convert("RGBA").resize((31, 201)).save(tmp_path / "odd.webp")
    real.convert("CMYK").resize((2001, 999)).save(tmp_path / "large.jpg")
    Image.new("RGB", (1, 1), (250, 120, 3)).save(tmp_path / "one.png")
    pictures = [*sorted(GALLERY.glob("*.jpg"))[::50], *sorted(tmp_path.iterdir())]
    light, full = load_image_encoder("cots-mini"), costream.load("cots-mini", device="cpu")
    assert isinstance(light, LightImageEncoder)
    gaps = np.abs(light.encode_images(pictures) - full.encode_images(pictures)).max(axis=1)
    assert gaps.max() < 1e-4, dict(zip(pictures, gaps, strict=True))
    assert light.space == full.space


def test_no_pictures_not_a_list_and_no_picture(folder: Path) -> None:
    light = load_image_encoder(folder)
    assert light.encode_images([]).shape == (0, light.space.dim)
    with pytest.raises(DataError, match="got one str, expected a list of pictures"):
        light.encode_images("zebra.jpg")
    with pytest.raises(DataError, match="got one Image"):
        light.encode_images(noise(3, 3, 3))  # type: ignore[arg-type] # on purpose
    with pytest.raises(DataError, match=r"config.json: is text"):
        light.encode_images([folder / "config.json"])


def vision(**changes: Any) -> Change:
    return lambda config: replace(config, vision=replace(config.vision, **changes))


def layers(**changes: Any) -> Change:
    def change(config: DualConfig) -> DualConfig:
        return vision(transformer=replace(config.vision.transformer, **changes))(config)

    return change


@pytest.mark.parametrize(
    "change",
    [
        layers(activation="gelu_tanh"),
        layers(activation="quick_gelu"),
        layers(layer_scale=True),
        vision(stem="patch", conv=None),
        vision(patch_px=16),
        vision(class_token=False),
        vision(pre_norm=True),
        vision(final_norm="pooled"),
        vision(final_norm="none"),
        vision(pooling="attention"),
        vision(image_px=96),
        lambda config: replace(config, projection="text", dim=config.vision.transformer.width),
    ],
)
def test_other_kinds_are_left_to_the_full_tower(change: Change, tmp_path: Path) -> None:
    save_model(livened(tiny_model(change(conv_config()))), tmp_path)
    encoder = load_image_encoder(tmp_path)
    assert isinstance(encoder, DualEncoder)
    full = load(tmp_path)
    assert np.array_equal(encoder.encode_images(PICTURES), full.encode_images(PICTURES))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "part", ["", "vision", "vision.conv", "vision.transformer", "image_preprocess"]
)
def test_what_an_option_means_that_is_not_known_here_is_not_guessed(
    part: str, folder: Path
) -> None:
    def add_one(description: dict[str, Any]) -> None:
        options = description["config"]
        for name in filter(None, part.split(".")):
            options = options[name]
        options["rotary"] = True

    edit(folder, add_one)
    with pytest.raises(WeightsError, match="rotary"):
        load_image_encoder(folder)


def flip_an_image_weight(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["vision.stem.head.shift"][3] += 0.5
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_an_image_weight, "image weights .* do not match the checksum"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot read"),
        (lambda f: edit(f, lambda d: d.update(weights_hash="0")), "contradict each other"),
        (lambda f: edit(f, lambda d: d["config"].pop("vision")), "vision has no value"),
        (lambda f: edit(f, lambda d: d["config"].update(vision=3)), "a int as 'vision'"),
        (lambda f: edit(f, lambda d: d["config"]["vision"].update(conv=None)), "as 'conv'"),
    ],
)
def test_damaged_models_are_refused(
    damage: Callable[[Path], object], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(WeightsError, match=message):
        load_image_encoder(folder)


def test_torch_and_the_tokenizer_are_not_imported(folder: Path) -> None:
    program = (
        "import sys\n"
        "from PIL import Image\n"
        "from costream.encoders.light.vision import load_image_encoder\n"
        f"load_image_encoder({str(folder)!r}).encode_images([Image.new('RGB', (3, 4))])\n"
        "assert not {'torch', 'tokenizers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
