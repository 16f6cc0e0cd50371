"""Law: one picture has one vector, in whatever form it is stored.

The reference is the picture as 8-bit RGB without loss. Forms that lose something may differ by what
they lose.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, features

import costream
from costream.cli.demo import GALLERY
from costream.data import open_image
from costream.encoders.locate import shipped_models

pytestmark = pytest.mark.skipif(
    "cots-mini" not in shipped_models(), reason="the default model is not in this checkout"
)

LOSSLESS, LOSSY = 0.9995, 0.97


@pytest.fixture(scope="module")
def model() -> Any:
    return costream.load("cots-mini", device="cpu")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return open_image(GALLERY / "red_car.jpg")


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(image: Image.Image) -> bytes:
    """Stored on its side, with a note of how to hold it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return saved(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def transparent(image: Image.Image) -> bytes:
    whole = image.copy()
    whole.putalpha(255)
    return saved(whole, "PNG")


def paged(image: Image.Image, form: str, **options: Any) -> bytes:
    other = Image.new("RGB", image.size, "lime")
    return saved(image, form, save_all=True, append_images=[other], **options)


def as_heif(image: Image.Image) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    heif.from_pillow(image).save(stream, format="HEIF", quality=90)
    return stream.getvalue()


def as_avif(image: Image.Image) -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF codec")
    return saved(image, "AVIF", quality=90)


FORMS: dict[str, tuple[Callable[[Image.Image], bytes], float]] = {
    "png": (lambda image: saved(image, "PNG"), LOSSLESS),
    "bmp": (lambda image: saved(image, "BMP"), LOSSLESS),
    "ppm": (lambda image: saved(image, "PPM"), LOSSLESS),
    "webp": (lambda image: saved(image, "WEBP", lossless=True), LOSSLESS),
    "tiff": (lambda image: saved(image, "TIFF", compression="tiff_lzw"), LOSSLESS),
    "inks": (lambda image: saved(image.convert("CMYK"), "TIFF"), LOSSLESS),
    "turned": (turned, LOSSLESS),
    "transparent": (transparent, LOSSLESS),
    "pages": (lambda image: paged(image, "TIFF"), LOSSLESS),
    "frames": (lambda image: paged(image, "WEBP", lossless=True), LOSSLESS),
    "moving gif": (lambda image: paged(image, "GIF"), LOSSY),
    "palette": (lambda image: saved(image.quantize(256), "PNG"), LOSSY),
    "jpeg": (lambda image: saved(image, "JPEG", quality=90), LOSSY),
    "jpeg of inks": (lambda image: saved(image.convert("CMYK"), "JPEG", quality=90), LOSSY),
    "avif": (as_avif, LOSSY),
    "heic": (as_heif, LOSSY),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_vector_of_the_picture(
    form: str, model: Any, photo: Image.Image, tmp_path: Path
) -> None:
    make, least = FORMS[form]
    file = tmp_path / "the suffix says nothing.jpg"
    file.write_bytes(make(photo))
    plain, other = model.encode_images([photo, file])
    assert plain @ other > least


def test_sixteen_bit_gray_has_the_vector_of_eight_bit_gray(model: Any, photo: Image.Image) -> None:
    gray = np.asarray(photo.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    plain, *others = model.encode_images(
        [saved(Image.fromarray(gray), "PNG"), saved(deep, "PNG"), saved(deep, "TIFF")]
    )
    assert min(plain @ other for other in others) > LOSSLESS


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_the_thinnest_pictures_have_a_vector(size: tuple[int, int], model: Any) -> None:
    (vector,) = model.encode_images([saved(Image.new("RGB", size, "teal"), "PNG")])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
