"""A whole model, each tower loaded when it is first used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray

from costream.encoders.light.text import TextEncoder, load_text_encoder
from costream.encoders.light.vision import ImageEncoder, load_image_encoder
from costream.encoders.locate import DEFAULT_MODEL

if TYPE_CHECKING:
    from costream.data.picture import PictureSource
    from costream.records import Space


class LightEncoder:
    """What a search by words, by pictures, or by both needs of a model, and no more of it.

    Args:
        name_or_dir: As for `costream.load`.

    Example:
        >>> LightEncoder("cots-mini").encode_texts(["a dog on a beach"]).shape
        (1, 256)
    """

    def __init__(self, name_or_dir: str | Path = DEFAULT_MODEL) -> None:
        self._name = name_or_dir
        self._reader: TextEncoder | None = None
        self._viewer: ImageEncoder | None = None

    @property
    def space(self) -> Space:
        """The space of the vectors; loads the smaller tower when none is loaded.

        Raises:
            WeightsError: As of `load_text_encoder`.
        """
        return self._read().space if self._viewer is None else self._viewer.space

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Strings to unit vectors.

        Args:
            texts: Any number of strings.

        Returns:
            float32 (N, D).

        Raises:
            WeightsError: As of `load_text_encoder`.
            DataError: When an item is not a string, or one string is given instead of a list.
        """
        return self._read().encode_texts(texts)

    def encode_images(self, images: Sequence[PictureSource]) -> NDArray[np.float32]:
        """Pictures to unit vectors.

        Args:
            images: Paths, encoded bytes, PIL images or pictures stored in an archive.

        Returns:
            float32 (N, D).

        Raises:
            WeightsError: As of `load_image_encoder`.
            DataError: When a picture is absent or broken, or one is given instead of a list.
        """
        if self._viewer is None:
            reader = self._reader
            # A model without light towers was loaded whole already.
            self._viewer = reader if _sees(reader) else load_image_encoder(self._name)
        return self._viewer.encode_images(images)

    def _read(self) -> TextEncoder:
        if self._reader is None:
            viewer = self._viewer
            self._reader = viewer if _reads(viewer) else load_text_encoder(self._name)
        return self._reader


def _sees(encoder: TextEncoder | None) -> TypeGuard[ImageEncoder]:
    return hasattr(encoder, "encode_images")


def _reads(encoder: ImageEncoder | None) -> TypeGuard[TextEncoder]:
    return hasattr(encoder, "encode_texts")
