"""Colour profiles: the numbers of another colour space become those of sRGB, which models know."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product

from PIL import Image, ImageChops, ImageCms, features

# A profile that moves no colour by more than this many of 255 levels is sRGB under another name:
# of the many that cameras and programs write, most are off by one level somewhere.
_SAME_LEVELS = 2
_STEPS = (0, 32, 64, 96, 128, 160, 192, 224, 255)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours of a picture with an embedded profile, as sRGB.

    Args:
        image: Of mode RGB, L or CMYK, without transparency.
        profile: ICC profile as the file holds it.

    Returns:
        A new RGB picture. With a profile that is sRGB already, is broken, or is of another kind of
        colour than the picture, this is Pillow's plain conversion.

    Example:
        >>> to_srgb(Image.new("L", (1, 1), 7), b"no profile").getpixel((0, 0))
        (7, 7, 7)
    """
    transform = _transform(profile, image.mode)
    return image.convert("RGB") if transform is None else transform.apply(image)


# A folder of pictures has few profiles, and to make a transform takes longer than to use it.
@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """How colours of a profile become sRGB; None when they are, or when nothing is known."""
    if not features.check("littlecms2"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, target, mode, "RGB")
    except (OSError, ValueError, TypeError):
        return None  # damaged, or of other colours: the pixels are fine, and shown as they are
    return None if _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    if mode == "L":
        colours = bytes(range(256))
    else:
        colours = bytes(level for colour in product(_STEPS, repeat=3) for level in colour)
    seen = Image.frombytes(mode, (len(colours) // len(mode), 1), colours)
    moved = ImageChops.difference(transform.apply(seen), seen.convert("RGB")).getextrema()
    return all(high <= _SAME_LEVELS for _, high in moved)  # type: ignore[misc]
