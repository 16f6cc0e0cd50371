"""Readers, decoders and procedural scenes: everything that turns files into samples."""

from __future__ import annotations

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
