"""The sample gallery: small real pictures, each with a credit and a free licence."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from costream.cli.demo import GALLERY
from costream.data import find_images, open_image

FREE = re.compile(r"CC0-1\.0|CC-BY(-SA)?-\d\.\d|public domain|L?GPL-\d\.\d-(only|or-later)")


@pytest.fixture(scope="module")
def credits_of() -> list[dict[str, str]]:
    with (GALLERY / "CREDITS.tsv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_every_picture_has_one_credit_and_every_credit_a_picture(
    credits_of: list[dict[str, str]],
) -> None:
    pictures = sorted(path.name for path in GALLERY.glob("*.jpg"))
    assert sorted(row["file"] for row in credits_of) == pictures
    assert {path.name for path in GALLERY.iterdir()} == {*pictures, "CREDITS.tsv"}


def test_every_credit_names_title_author_licence_and_source(
    credits_of: list[dict[str, str]],
) -> None:
    for row in credits_of:
        assert all(row[field] for field in ("title", "author", "package", "source")), row
        assert FREE.fullmatch(row["licence"]), row


def test_the_gallery_is_small_but_not_tiny() -> None:
    sizes = [path.stat().st_size for path in GALLERY.iterdir()]
    assert sum(sizes) <= 8_000_000
    assert len(sizes) - 1 >= 200


def test_every_picture_opens_and_no_two_are_the_same() -> None:
    paths, failures = find_images(GALLERY)
    assert not failures
    seen: dict[bytes, Path] = {}
    for path in paths:
        picture = open_image(path)
        assert 128 <= max(picture.size) <= 384, path
        assert min(picture.size) >= 48, path
        assert path == seen.setdefault(picture.tobytes(), path)
