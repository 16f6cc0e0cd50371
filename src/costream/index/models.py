"""What an index needs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from costream.records import Space


class ImageEncoder(Protocol):
    """What turns pictures into vectors; `DualEncoder` is one."""

    @property
    def space(self) -> Space:
        """Where its vectors live."""

    def encode_images(self, images: Sequence[Any], *, batch_size: int) -> NDArray[np.float32]:
        """Turn N pictures into float32 (N, D), row i for picture i."""


@runtime_checkable
class PreparingEncoder(Protocol):
    """An encoder whose work on single pictures can be done in other threads, beforehand."""

    def prepare_image(self, image: Image) -> Any:
        """Scale and cut one picture."""

    def encode_prepared(self, prepared: Sequence[Any], *, batch_size: int) -> NDArray[np.float32]:
        """What `encode_images` gives for the pictures that were prepared."""


@runtime_checkable
class AskingEncoder(Protocol):
    """An encoder that may be there only to ask what another model has embedded."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def is_query_only(self) -> bool:
        """Whether its vectors are questions to items of its space, and none themselves."""


@runtime_checkable
class SoundEncoder(Protocol):
    """An encoder that has a tower for sounds, too."""

    @property
    def rate_hz(self) -> int:
        """Samples a second that it wants."""

    @property
    def window_s(self) -> float:
        """Seconds that one vector stands for."""

    def encode_sounds(self, sounds: Sequence[Any], *, batch_size: int) -> NDArray[np.float32]:
        """Turn N arrays of samples, float32, of at most a window, into float32 (N, D)."""
