"""Readers, decoders and procedural scenes: everything that turns files into samples.

Names are imported when first used: the program needs two of these modules for most of what it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.data.audio import Window, read_sound, sound_windows
    from costream.data.clip import ClipLimits
    from costream.data.dataset import DataSet, data_hash
    from costream.data.decode import MAX_PIXELS, open_image
    from costream.data.detect import read_data
    from costream.data.failures import Failure, printable
    from costream.data.picture import PictureSource, StoredPicture, picture_digest, picture_name
    from costream.data.scenes import SceneObject, make_scenes
    from costream.data.video import Frame, Sampling, frame_at, sample_frames
    from costream.data.walk import IMAGE_SUFFIXES, find_images, find_media

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ClipLimits",
    "DataSet",
    "Failure",
    "Frame",
    "PictureSource",
    "Sampling",
    "SceneObject",
    "StoredPicture",
    "Window",
    "data_hash",
    "find_images",
    "find_media",
    "frame_at",
    "make_scenes",
    "open_image",
    "picture_digest",
    "picture_name",
    "printable",
    "read_data",
    "read_sound",
    "sample_frames",
    "sound_windows",
]

_HOMES = {
    "IMAGE_SUFFIXES": "walk",
    "MAX_PIXELS": "decode",
    "ClipLimits": "clip",
    "DataSet": "dataset",
    "Failure": "failures",
    "Frame": "video",
    "PictureSource": "picture",
    "Sampling": "video",
    "SceneObject": "scenes",
    "StoredPicture": "picture",
    "Window": "audio",
    "data_hash": "dataset",
    "find_images": "walk",
    "find_media": "walk",
    "frame_at": "video",
    "make_scenes": "scenes",
    "open_image": "decode",
    "picture_digest": "picture",
    "picture_name": "picture",
    "printable": "failures",
    "read_data": "detect",
    "read_sound": "audio",
    "sample_frames": "video",
    "sound_windows": "audio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
