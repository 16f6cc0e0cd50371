"""Law: decoding gives what a person sees, upright RGB, whatever the file's form."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from costream.data import open_image
from costream.errors import ConfigError

# Orientation value -> what must be done to the stored pixels (H, W) to see the picture upright,
# from the definition of tag 0x0112: which side of the picture stored row 0 and column 0 are.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def stored_pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_orientation_is_obeyed(orientation: int, form: str) -> None:
    pixels = stored_pixels()
    options: dict[str, object] = {"exif": exif_with(orientation)}
    options |= {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    options |= {"lossless": True} if form == "WEBP" else {}
    seen = open_image(encoded(Image.fromarray(pixels), form, **options))
    expected = UPRIGHT[orientation](pixels)
    error = np.abs(np.asarray(seen).astype(int) - expected.astype(int))
    assert seen.size == (expected.shape[1], expected.shape[0])
    assert error.mean() <= (4 if form == "JPEG" else 0)


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_modern_phone_formats_are_upright_where_the_codec_is_there(
    form: str, orientation: int
) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("this Pillow has no AVIF codec")
    pixels = stored_pixels()
    image = Image.fromarray(pixels)
    seen = open_image(encoded(image, form, quality=95, exif=exif_with(orientation).tobytes()))
    expected = UPRIGHT[orientation](pixels)
    assert seen.size == (expected.shape[1], expected.shape[0])
    assert np.abs(np.asarray(seen).astype(int) - expected.astype(int)).mean() < 12


def test_the_result_is_not_turned_twice() -> None:
    image = Image.fromarray(stored_pixels())
    once = open_image(encoded(image, "PNG", exif=exif_with(6)))
    assert np.array_equal(np.asarray(open_image(once)), np.asarray(once))
    assert open_image(encoded(once, "PNG")).size == once.size


def test_a_given_pil_image_is_left_as_it_was() -> None:
    image = Image.open(io.BytesIO(encoded(Image.fromarray(stored_pixels()), "JPEG")))
    seen = open_image(image, smallest_side=1)
    assert image.size == (48, 32)
    assert seen.size == (48, 32)
    flat = Image.new("RGB", (2, 2), "red")
    open_image(flat).putpixel((0, 0), (0, 0, 0))
    assert flat.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(form: str) -> None:
    values = np.array([[0, 128, 129, 257, 4660, 32768, 65278, 65535]], dtype=np.uint16)
    seen = np.asarray(open_image(encoded(Image.fromarray(values), form)))
    expected = np.rint(values.astype(np.float64) * 255 / 65535)
    assert np.array_equal(seen[..., 0], expected)
    assert np.array_equal(seen[..., 0], seen[..., 2])


def test_sixteen_bit_pgm_and_big_endian_tiff() -> None:
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    pgm = b"P5 3 1 65535\n" + values.astype(">u2").tobytes()
    big_endian = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    for source in (pgm, big_endian):
        assert np.asarray(open_image(source))[0, :, 1].tolist() == [0, 1, 255]


def test_wide_gray_is_scaled_by_its_own_range() -> None:
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    wide = Image.fromarray(np.array([[-100.0, 0.0, 300.0]], dtype=np.float32))
    whole = Image.fromarray(np.array([[0, 1 << 20]], dtype=np.int32))
    assert np.asarray(open_image(encoded(unit, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    assert np.asarray(open_image(encoded(wide, "TIFF")))[0, :, 0].tolist() == [0, 64, 255]
    assert np.asarray(open_image(encoded(whole, "TIFF")))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(form: str) -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 100, 51]]], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    seen = np.asarray(open_image(encoded(Image.fromarray(pixels), form, **options))).astype(float)
    alpha = pixels[..., 3:].astype(np.float64) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(seen - expected).max() <= 1


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    for form in ("PNG", "GIF"):
        seen = open_image(encoded(image, form, transparency=1))
        assert [seen.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_gray_with_a_transparent_level() -> None:
    eight = Image.fromarray(np.array([[0, 7]], dtype=np.uint8))
    sixteen = Image.fromarray(np.array([[0, 700]], dtype=np.uint16))
    for image, level in ((eight, 7), (sixteen, 700)):
        seen = np.asarray(open_image(encoded(image, "PNG", transparency=level)))
        assert seen[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    seen = open_image(Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode))
    assert (seen.mode, seen.size) == ("RGB", (5, 3))
    assert np.asarray(seen).min() >= 254


def test_cmyk_jpeg_has_the_right_colours() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    red, green, blue = open_image(encoded(cmyk, "JPEG", quality=95)).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    seen = np.array(open_image(data).getpixel((4, 4)))
    assert np.abs(seen - [255, 0, 0]).max() <= (8 if form == "AVIF" else 0)


def test_the_first_of_two_pictures_in_a_camera_file() -> None:
    frames = [Image.new("RGB", (80, 60), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    red, _, blue = open_image(data, smallest_side=30).getpixel((4, 4))
    assert red > 240
    assert blue < 15


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_thin_pictures_are_pictures(size: tuple[int, int], form: str) -> None:
    assert open_image(encoded(Image.new("RGB", size, "white"), form)).size == size


@pytest.mark.parametrize("size", [(1000, 700), (701, 1003), (64, 4000), (30, 30)])
@pytest.mark.parametrize("smallest_side", [1, 29, 100, 224, 5000])
def test_draft_mode_is_never_smaller_than_asked(size: tuple[int, int], smallest_side: int) -> None:
    data = encoded(Image.new("RGB", size, "white"), "JPEG")
    seen = open_image(data, smallest_side=smallest_side)
    assert min(seen.size) >= min(smallest_side, *size)
    scale = min(size) // smallest_side  # the strongest of 8, 4, 2, 1 that is allowed
    expected = next((s for s in (8, 4, 2, 1) if scale >= s), 1)
    assert seen.size == tuple(-(-side // expected) for side in size)


def test_draft_mode_and_orientation_go_together() -> None:
    image = Image.new("RGB", (800, 400), "red")
    seen = open_image(encoded(image, "JPEG", exif=exif_with(6)), smallest_side=100)
    assert seen.size == (100, 200)


def test_paths_strings_bytes_and_images_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(stored_pixels()).save(file)
    seen = [open_image(s) for s in (file, str(file), file.read_bytes(), Image.open(file))]
    assert all(np.array_equal(np.asarray(one), stored_pixels()) for one in seen)


@pytest.mark.parametrize("options", [{"max_pixels": 0}, {"smallest_side": 0}])
def test_limits_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        open_image(Image.new("RGB", (1, 1)), **options)
