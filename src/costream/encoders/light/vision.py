"""The vision tower in numpy: EfficientNet-Lite, then transformer layers on its map.

Shape letters: T tokens, D width, H rows, W columns, C channels, N pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from costream.encoders.light.layers import (
    LAYERS,
    Array,
    Weights,
    linear,
    normalise,
    transform,
    unit,
)
from costream.encoders.light.model_files import (
    Choices,
    covers,
    is_known,
    read_options,
    read_weights,
    space_of,
)
from costream.encoders.light.stem import STEM, LightStem
from costream.encoders.locate import DEFAULT_MODEL, field_of, locate_model, read_description
from costream.encoders.preprocess import ImagePreprocess, check_list
from costream.records import Space

if TYPE_CHECKING:
    from costream.data.picture import PictureSource

_TOWER: Final[Choices] = {
    "image_px": None,
    "patch_px": (32,),
    "transformer": None,
    "stem": ("conv",),
    "conv": None,
    "patch_bias": None,
    "class_token": (True,),
    "pre_norm": (False,),
    "final_norm": ("tokens",),
    "pooling": ("first", "mean"),
    "stem_residual": (True, False),
}


class ImageEncoder(Protocol):
    """What a search by example needs of a model."""

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        ...

    def encode_images(self, images: Sequence[PictureSource]) -> Array:
        """Pictures to unit vectors float32 (N, D)."""
        ...


class LightImageEncoder:
    """A vision tower that needs numpy only.

    Args:
        description: The decoded `config.json` of a model.
        settings: What happens to a picture first.
        weights: Image weights by name, float32.
    """

    def __init__(
        self, description: Mapping[str, Any], settings: ImagePreprocess, weights: Weights
    ) -> None:
        self.space = space_of(description)
        self._tower: Mapping[str, Any] = description["config"]["vision"]
        self._settings = settings
        self._weights = weights
        self._stem = LightStem(weights, "vision.stem", self._tower["conv"])

    def encode_images(self, images: Sequence[PictureSource]) -> Array:
        """Pictures to unit vectors.

        Args:
            images: Any number of paths, encoded bytes, PIL images or pictures in an archive.

        Returns:
            float32 (N, D), equal to the full model's to about 1e-5.

        Raises:
            DataError: When a picture is absent or broken (names it), or one picture is given
                instead of a list.
        """
        rows = [self._encode(image) for image in check_list(images, "pictures")]
        return np.stack(rows) if rows else np.zeros((0, self.space.dim), dtype=np.float32)

    def _encode(self, image: PictureSource) -> Array:
        weights, layers = self._weights, self._tower["transformer"]
        stem_map = self._stem(self._normalised(image))
        seen = stem_map.reshape(-1, stem_map.shape[-1])
        patches = linear(seen, weights, "vision.project")
        x = np.concatenate([weights["vision.class_token"][0], patches])
        x = transform(
            x + weights["vision.position_embedding"], weights, "vision.transformer", layers
        )
        x = normalise(x, weights, "vision.final_norm", float(layers["norm_eps"]))
        pooled = x[1:].mean(axis=0) if self._tower["pooling"] == "mean" else x[0]
        if self._tower["stem_residual"]:
            pooled = pooled + linear(seen.mean(axis=0), weights, "vision.residual")
        return unit(linear(pooled, weights, "image_projection"))

    def _normalised(self, image: PictureSource) -> Array:
        """Pixels float32 (H, W, 3), as the tower was trained on them."""
        pixels = self._settings.read(image).transpose(1, 2, 0)
        mean = np.array(self._settings.mean, dtype=np.float32)
        std = np.array(self._settings.std, dtype=np.float32)
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def _is_light(description: Mapping[str, Any], source: Path) -> bool:
    """Whether the vision tower of a model is of the kind that is implemented here."""
    if not is_known(description, source):
        return False
    tower = field_of(description["config"], "vision", source, dict)
    return (
        covers(_TOWER, tower)
        and covers(LAYERS, field_of(tower, "transformer", source, dict))
        and covers(STEM, field_of(tower, "conv", source, dict))
    )


def load_image_encoder(name_or_dir: str | Path = DEFAULT_MODEL) -> ImageEncoder:
    """Load what a search by example needs, without torch where the model allows it.

    Args:
        name_or_dir: As for `costream.load`.

    Returns:
        An object with `space` and `encode_images`.

    Raises:
        WeightsError: When there is no such model, or what a search by example reads of it is
            damaged.

    Example:
        >>> from PIL import Image
        >>> load_image_encoder("cots-mini").encode_images([Image.new("RGB", (300, 200))]).shape
        (1, 256)
    """
    directory = locate_model(name_or_dir)
    description = read_description(directory, ours=False)
    source = directory / "config.json"
    if not _is_light(description, source):
        return _full(directory)
    settings = read_options(ImagePreprocess, description, "image_preprocess", source)
    if settings.size_px != description["config"]["vision"]["image_px"]:
        return _full(directory)  # positions would have to be interpolated
    stored = read_weights(directory, description, "image")
    weights = {name: values.astype(np.float32) for name, values in stored.items()}
    return LightImageEncoder(description, settings, weights)


def _full(directory: Path) -> ImageEncoder:
    from costream.encoders.storage import load

    return load(directory)
