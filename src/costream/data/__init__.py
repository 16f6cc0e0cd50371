"""Readers, decoders and procedural scenes: everything that turns files into samples.

Names are imported when first used: the program needs two of these modules for most of what it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.data.dataset import DataSet, data_hash
    from costream.data.decode import MAX_PIXELS, open_image
    from costream.data.detect import read_data
    from costream.data.failures import Failure, printable
    from costream.data.picture import PictureSource, StoredPicture, picture_digest, picture_name
    from costream.data.scenes import SceneObject, make_scenes
    from costream.data.walk import IMAGE_SUFFIXES, find_images

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "DataSet",
    "Failure",
    "PictureSource",
    "SceneObject",
    "StoredPicture",
    "data_hash",
    "find_images",
    "make_scenes",
    "open_image",
    "picture_digest",
    "picture_name",
    "printable",
    "read_data",
]

_HOMES = {
    "IMAGE_SUFFIXES": "walk",
    "MAX_PIXELS": "decode",
    "DataSet": "dataset",
    "Failure": "failures",
    "PictureSource": "picture",
    "SceneObject": "scenes",
    "StoredPicture": "picture",
    "data_hash": "dataset",
    "find_images": "walk",
    "make_scenes": "scenes",
    "open_image": "decode",
    "picture_digest": "picture",
    "picture_name": "picture",
    "printable": "failures",
    "read_data": "detect",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
