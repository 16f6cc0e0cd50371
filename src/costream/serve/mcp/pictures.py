"""Items as small pictures that a model can look at."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from costream.data.decode import open_image
from costream.errors import DataError

if TYPE_CHECKING:
    from costream.index import Item

_QUALITY = 80


def small_jpeg(item: Item, longest_side: int, at_s: float | None = None) -> bytes:
    """An item as a JPEG.

    Args:
        item: Of the index.
        longest_side: In pixels; smaller pictures stay as they are.
        at_s: Of a video, the moment to show.

    Returns:
        Its bytes.

    Raises:
        DataError: The item has no file, its file is gone, or it is nothing to look at.
    """
    if item.path is None:
        raise DataError("has no file: it was added as a vector only")
    if item.modality == "image":
        picture = open_image(item.path, smallest_side=longest_side)
    elif item.modality == "video":
        from costream.data.video import frame_at

        picture = frame_at(item.path, at_s or 0.0, smallest_side=longest_side)
    else:
        raise DataError(f"is {item.modality}, which cannot be looked at")
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
