"""A whole model, tower by tower: the vectors are those of the towers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from costream.encoders.light.encoder import LightEncoder
from costream.encoders.light.text import load_text_encoder
from costream.encoders.light.vision import load_image_encoder


def test_the_vectors_are_those_of_the_towers_whichever_comes_first() -> None:
    texts, pictures = ["a red car", "two dogs"], [Image.new("RGB", (60, 40), "red")]
    by_text = load_text_encoder("cots-mini").encode_texts(texts)
    by_image = load_image_encoder("cots-mini").encode_images(pictures)
    for first in ("words", "pictures"):
        encoder = LightEncoder("cots-mini")
        if first == "pictures":
            assert np.array_equal(encoder.encode_images(pictures), by_image)
        assert np.array_equal(encoder.encode_texts(texts), by_text)
        assert np.array_equal(encoder.encode_images(pictures), by_image)
        assert encoder.space == load_text_encoder("cots-mini").space


def test_a_model_without_light_towers_is_loaded_once(tmp_path: Path) -> None:
    from costream.encoders.storage import save_model
    from tiny_world import tiny_config, tiny_model

    folder = save_model(tiny_model(tiny_config()), tmp_path / "tiny")
    for order in (("encode_texts", "encode_images"), ("encode_images", "encode_texts")):
        encoder = LightEncoder(folder)
        inputs = {"encode_texts": ["red"], "encode_images": [Image.new("RGB", (24, 24))]}
        for name in order:
            assert getattr(encoder, name)(inputs[name]).shape == (1, 8)
        assert encoder.space.encoder == "tiny"
