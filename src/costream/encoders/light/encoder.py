"""Both towers of a model, each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from costream.encoders.light.layers import Array
from costream.records import Space

if TYPE_CHECKING:
    from costream.data.picture import PictureSource
    from costream.encoders.light.text import TextEncoder
    from costream.encoders.light.vision import ImageEncoder


class LightEncoder:
    """A model for few queries: a question in words loads no vision tower, and the other way round.

    Args:
        name: Name or folder of a model.

    Example:
        >>> LightEncoder("cots-mini").encode_texts(["a dog"]).shape
        (1, 256)
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        loaded = vars(self).get("_viewer", None) or self._reader
        space: Space = loaded.space
        return space

    def encode_texts(self, texts: Sequence[str]) -> Array:
        """Strings to unit vectors float32 (N, D)."""
        return self._reader.encode_texts(texts)

    def encode_images(self, images: Sequence[PictureSource]) -> Array:
        """Pictures to unit vectors float32 (N, D)."""
        return self._viewer.encode_images(images)

    @cached_property
    def _reader(self) -> TextEncoder:
        from costream.encoders.light.text import load_text_encoder

        return load_text_encoder(self.name)

    @cached_property
    def _viewer(self) -> ImageEncoder:
        from costream.encoders.light.vision import load_image_encoder

        return load_image_encoder(self.name)
