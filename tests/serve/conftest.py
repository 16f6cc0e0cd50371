"""What tests of the service share: an index of three pictures, and a service of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import GALLERY, PICTURES, serving

import costream
from costream.encoders.dual import DualEncoder
from costream.encoders.storage import load
from costream.index import Index, update_index

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 200)}


def make_index(folder: Path, model: DualEncoder) -> Path:
    """Pictures red, green and blue below `folder / "pictures"`, and an index of them."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    random = np.random.default_rng(7)
    for day, (name, colour) in enumerate(COLOURS.items()):
        noisy = np.array(colour) + random.integers(-30, 30, (480, 640, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            pictures / f"{name}.png", compress_level=1
        )
        # The time of a file this fresh would not be believed.
        os.utime(pictures / f"{name}.png", (1_700_000_000 + 86_400 * day,) * 2)
    with Index.open(folder / "index", create=True) as index:
        update_index(index, model, [pictures])
    return folder / "index"


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> DualEncoder:
    """The model of the indexes."""
    return load(tiny_model_dir)


@pytest.fixture
def index_dir(tmp_path: Path, tiny_model: DualEncoder) -> Path:
    """An index that a test may change."""
    return make_index(tmp_path, tiny_model)


@pytest.fixture(scope="session")
def shared_index_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model: DualEncoder) -> Path:
    """An index that tests only read."""
    return make_index(tmp_path_factory.mktemp("served"), tiny_model)


@pytest.fixture(scope="session")
def client(shared_index_dir: Path, tiny_model_dir: Path) -> Iterator[httpx.Client]:
    """A client of a service on the loopback address, without keys."""
    with serving(shared_index_dir, tiny_model_dir) as made:
        yield made


@pytest.fixture(scope="session")
def items(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """What the service says about its items, by name."""
    return {item["name"]: item for item in client.get("items").json()["items"]}


@pytest.fixture(scope="session")
def gallery_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of some pictures of the gallery, by the shipped model."""
    directory = tmp_path_factory.mktemp("gallery") / "index"
    files = [GALLERY / f"{name}.jpg" for name in PICTURES]
    with Index.open(directory, create=True) as index:
        update_index(index, costream.load("cots-mini"), files)
    return directory


@pytest.fixture(scope="session")
def service(gallery_dir: Path) -> Iterator[httpx.Client]:
    """A client of a service of the gallery."""
    with serving(gallery_dir, Path("cots-mini")) as client:
        client.get("ready")
        yield client
