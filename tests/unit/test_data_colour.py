"""Law: a picture looks the same to a model whatever colour space its numbers are in.

Profiles are written here by hand from the ICC specification, and pictures are brought into their
colour spaces in numpy, so that nothing is judged by the library that it is done with.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from costream.cli.demo import GALLERY
from costream.data import open_image
from costream.encoders.locate import shipped_models

# Primaries in XYZ under D50, as profiles hold them: one row a primary.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
D50 = (0.96420, 1.0, 0.82491)

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
ADOBE_GAMMA = 563 / 256

Pixels = NDArray[np.float64]


# --- profiles ---


def fixed(values: Sequence[float]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(shape: float | Sequence[float]) -> bytes:
    if isinstance(shape, float):
        return b"curv" + bytes(4) + struct.pack(">IHH", 1, round(shape * 256), 0)
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(shape)


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 4 (2 for tables)."""
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(D50)} | tags
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    version = 0x02100000 if b"A2B0" in tags else 0x04200000
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(
        ">I4sI4s4s4s12s4s", 0, bytes(4), version, kind, space, pcs, bytes(12), b"acsp"
    )
    head = head.ljust(68, b"\0") + fixed(D50)
    whole = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def rgb_profile(primaries: Sequence[Sequence[float]], shape: float | Sequence[float]) -> bytes:
    tags = {
        name: b"XYZ " + bytes(4) + fixed(primary)
        for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    }
    return profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(shape)))


def ink_profile() -> bytes:
    """Inks of an odd printer: paper is white, cyan prints red, all others print black."""
    ramp = bytes(range(256))
    lab = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): (53, 80, 67)}
    corners = [
        lab.get((c, m, y, k), (0, 0, 0))
        for c in (0, 1)
        for m in (0, 1)
        for y in (0, 1)
        for k in (0, 1)
    ]
    grid = b"".join(bytes((round(L * 2.55), a + 128, b + 128)) for L, a, b in corners)
    identity = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + fixed(identity) + ramp * 4 + grid + ramp * 3
    return profile(b"CMYK", {b"A2B0": table}, pcs=b"Lab ")


P3 = rgb_profile(DISPLAY_P3, SRGB_CURVE)
ADOBE = rgb_profile(ADOBE_RGB, ADOBE_GAMMA)
GRAY_1 = profile(b"GRAY", {b"kTRC": curve(1.0)})


# --- colours, in numpy ---


def to_linear(levels: Pixels) -> Pixels:
    x = levels / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def from_linear(linear: Pixels) -> Pixels:
    x = np.clip(linear, 0, 1)
    return 255 * np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)


def in_space(srgb_HW3: Pixels, primaries: Any, gamma: float | None) -> NDArray[np.uint8]:
    """sRGB levels as those of another space."""
    linear = to_linear(srgb_HW3) @ np.array(SRGB) @ np.linalg.inv(np.array(primaries))
    levels = from_linear(linear) if gamma is None else 255 * np.clip(linear, 0, 1) ** (1 / gamma)
    return np.rint(levels).astype(np.uint8)


def colours() -> Pixels:
    """Colours of every kind: (12, 16, 3) levels, none at the ends where spaces cut differently."""
    return np.random.default_rng(0).integers(20, 236, (12, 16, 3)).astype(np.float64)


def stored(pixels: NDArray[np.uint8], mode: str, icc: bytes | None, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    options: dict[str, Any] = {} if icc is None else {"icc_profile": icc}
    if form in ("WEBP", "AVIF"):
        options |= (
            {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": "4:4:4"}
        )
    image = (
        Image.fromarray(pixels)
        if mode != "CMYK"
        else Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes())
    )
    image.save(stream, form, **options)
    return stream.getvalue()


def seen(encoded: bytes) -> Pixels:
    return np.asarray(open_image(encoded)).astype(np.float64)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("icc", "primaries", "gamma"), [(P3, DISPLAY_P3, None), (ADOBE, ADOBE_RGB, ADOBE_GAMMA)]
)
def test_another_space_becomes_srgb(
    icc: bytes, primaries: Any, gamma: float | None, form: str
) -> None:
    pixels = in_space(colours(), primaries, gamma)
    error = np.abs(seen(stored(pixels, "RGB", icc, form)) - colours())
    # A level of the wider space is several of sRGB where that ends.
    assert (error.mean() < 0.5, error.max() <= 6) == (True, True)
    ignored = np.abs(seen(stored(pixels, "RGB", None, form)) - colours())
    assert ignored.max() > 20


def test_transparency_stays_and_is_laid_on_white() -> None:
    pixels = in_space(colours(), DISPLAY_P3, None)
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    alpha[:6] = 0
    got = seen(stored(np.concatenate([pixels, alpha], axis=2), "RGBA", P3))
    assert (got[:6] == 255).all()
    assert np.abs(got[6:] - colours()[6:]).max() <= 3


def test_a_palette_has_its_profile_obeyed() -> None:
    stream = io.BytesIO()
    few = in_space(np.full((4, 4, 3), (200.0, 60.0, 40.0)), DISPLAY_P3, None)
    Image.fromarray(few).quantize(4).save(stream, "PNG", icc_profile=P3)
    assert np.abs(seen(stream.getvalue()) - (200, 60, 40)).max() <= 3


def test_linear_gray_becomes_that_of_srgb() -> None:
    levels = np.arange(0, 256, 16).astype(np.uint8).reshape(4, 4)
    got = seen(stored(levels, "L", GRAY_1))
    assert np.abs(got[..., 0] - from_linear(levels / 255)).max() <= 2
    assert (got[..., 0] == got[..., 2]).all()


def test_inks_are_what_their_printer_makes_of_them() -> None:
    cyan = np.zeros((8, 8, 4), np.uint8)
    cyan[..., 0] = 255
    plain = seen(stored(cyan, "CMYK", None, "TIFF"))[0, 0]
    printed = seen(stored(cyan, "CMYK", ink_profile(), "TIFF"))[0, 0]
    assert plain.tolist() == [0, 255, 255]
    assert printed[0] > 230 and printed[1:].max() < 60, printed
    paper = seen(stored(np.zeros((8, 8, 4), np.uint8), "CMYK", ink_profile(), "TIFF"))
    assert paper.min() >= 253


def test_profiles_of_srgb_itself_change_no_bit() -> None:
    pixels = colours().astype(np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (own, rgb_profile(SRGB, SRGB_CURVE)):
        assert (seen(stored(pixels, "RGB", icc)) == pixels).all()


def damaged_profiles() -> dict[str, bytes]:
    flipped = bytearray(P3)
    flipped[36:40] = b"nope"
    far = bytearray(P3)
    far[148:152] = b"\xff\xff\xff\x00"  # where the second tag, a primary, is
    return {
        "no profile": b"this is no profile",
        "empty": b"\0",
        "cut off": P3[:200],
        "magic": bytes(flipped),
        "tag outside": bytes(far),
        "of gray": GRAY_1,
        "of inks": ink_profile(),
        "no tags": profile(b"RGB ", {}),
    }


@pytest.mark.parametrize("kind", list(damaged_profiles()))
def test_a_broken_or_foreign_profile_is_no_reason_to_lose_the_picture(kind: str) -> None:
    pixels = colours().astype(np.uint8)
    for form in ("PNG", "TIFF"):
        got = seen(stored(pixels, "RGB", damaged_profiles()[kind], form))
        assert (got == pixels).all()


def test_flipped_bytes_of_a_profile_give_a_picture() -> None:
    pixels = colours().astype(np.uint8)
    random = np.random.default_rng(1)
    for _ in range(100):
        icc = bytearray(P3)
        for position in random.integers(0, len(icc), 3):
            icc[position] = random.integers(0, 256)
        assert seen(stored(pixels, "RGB", bytes(icc))).shape == pixels.shape


def test_the_result_carries_no_profile_that_would_be_obeyed_again() -> None:
    once = open_image(stored(in_space(colours(), DISPLAY_P3, None), "RGB", P3))
    assert "icc_profile" not in once.info
    assert (np.asarray(open_image(once)) == np.asarray(once)).all()


@pytest.mark.skipif(not shipped_models(), reason="the default model is not in this checkout")
def test_a_phones_picture_gets_the_vector_of_the_same_picture_in_srgb() -> None:
    import costream

    photo = np.asarray(open_image(GALLERY / "red_car.jpg")).astype(np.float64)
    wide = in_space(photo, DISPLAY_P3, None)
    files = [
        stored(photo.astype(np.uint8), "RGB", None),
        stored(wide, "RGB", P3),
        stored(wide, "RGB", None),
    ]
    plain, converted, ignored = costream.load("cots-mini").encode_images(files)
    assert plain @ converted > 0.999
    assert plain @ converted > plain @ ignored
