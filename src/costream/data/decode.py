"""Decode pictures: upright RGB whatever the file holds, refused before it can do harm."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zlib
from pathlib import Path
from typing import BinaryIO, NoReturn

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from costream.data.picture import PictureSource, StoredPicture, picture_name
from costream.data.sniff import AVIF_BRANDS, HEAD_BYTES, HEIC_BRANDS, brand, describe
from costream.errors import ConfigError, DataError

MAX_PIXELS = 178_956_970 // 2
"""Pictures with more pixels are refused by their header: 89 megapixels are 268 MB as RGB."""

# No document formats (EPS, PDF, FITS): their decoders run programs or expand without bound.
# Importing a plugin registers it; Image.open would import all forty for a name that it lacks.
_PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    GifImagePlugin,
    TiffImagePlugin,
    AvifImagePlugin,
    BmpImagePlugin,
    PpmImagePlugin,
)
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM")

# What Pillow's decoders were seen to raise on damaged files; all mean "this file is broken".
# Warnings come as exceptions where the caller has asked Python for that.
_DECODER_ERRORS = (
    Warning,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_heif_lock = threading.Lock()


def open_image(
    source: PictureSource,
    *,
    max_pixels: int = MAX_PIXELS,
    smallest_side: int | None = None,
) -> Image.Image:
    """Decode one picture to upright RGB.

    EXIF orientation is obeyed (a corrupt EXIF block counts as none), transparency is laid on
    white, of animations and multi-page files the first frame is taken, CMYK, palette and gray
    become RGB, 16-bit gray is scaled (not clipped) to 8 bits, 32-bit and floating-point gray is
    scaled from [0, 65535] or [0, 1] where its values fit, else from its own range. Colours with an
    embedded profile (Display P3, Adobe RGB, printing inks) become sRGB; a broken profile counts as
    none, and 16-bit pictures are taken as they are. JPEG, PNG, GIF, WebP, TIFF, BMP, PPM are always
    decoded, AVIF with Pillow's codec, HEIC with `pip install costream[heif]`.

    Args:
        source: Path, encoded bytes, PIL image (left unchanged) or a picture stored in an archive.
        max_pixels: Most pixels that the header may announce; more is refused before decoding.
        smallest_side: When given, a JPEG may be decoded 2, 4 or 8 times smaller (much faster) as
            long as neither side falls below this many pixels.

    Returns:
        A new RGB image without metadata.

    Raises:
        DataError: The picture is absent, unreadable, empty, truncated, too large, without pixels,
            or no picture at all. The message begins with its name.
        ConfigError: `max_pixels` or `smallest_side` is below 1.

    Example:
        >>> open_image(Image.new("L", (4, 3), 255)).getpixel((0, 0))
        (255, 255, 255)
    """
    if max_pixels < 1 or (smallest_side is not None and smallest_side < 1):
        raise ConfigError(
            f"got max_pixels={max_pixels} and smallest_side={smallest_side}, "
            "expected numbers of at least 1"
        )
    name = picture_name(source)
    if isinstance(source, Image.Image):
        return _to_upright_rgb(source, name, max_pixels)
    with _open_stream(source, name) as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        if not head:
            _refuse(name, "is empty (0 bytes)", "remove it or restore it")
        with _open_header(stream, head, name) as image:
            _check_size(image, name, max_pixels)
            if smallest_side is not None:
                # Pillow picks the strongest reduction that keeps both sides at least this large;
                # other formats than JPEG ignore it.
                image.draft(None, (smallest_side, smallest_side))
            return _to_upright_rgb(image, name, max_pixels)


def _open_stream(source: str | os.PathLike[str] | bytes | StoredPicture, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        return io.BytesIO(source.read())
    try:
        # A pipe would block for ever on open, a device might never end.
        mode = os.stat(source).st_mode  # noqa: PTH116  (a Path of any str subclass costs more)
        if stat.S_ISDIR(mode):
            _refuse(name, "is a folder", "name a picture file")
        if not stat.S_ISREG(mode):
            _refuse(name, "is a pipe, socket or device", "name a picture file")
        return Path(source).open("rb")
    except FileNotFoundError:
        _refuse(name, "is not there", "check the path")
    except PermissionError:
        _refuse(name, "may not be read (permission denied)", f"chmod +r {name}")
    except (OSError, ValueError) as error:
        _refuse(name, f"cannot be opened ({_words(error)})", "check the path")


def _open_header(stream: BinaryIO, head: bytes, name: str) -> Image.Image:
    _prepare_codec(head, name)
    try:
        return Image.open(stream, formats=[*_FORMATS, *(["HEIF"] if "HEIF" in Image.OPEN else [])])
    except Image.DecompressionBombError as error:
        _refuse(name, f"is too large to decode ({_words(error)})", "make it smaller")
    except UnidentifiedImageError:
        kind = describe(head)
        if kind.endswith("picture"):
            _refuse(name, f"begins like {kind} but its header is damaged", "restore it")
        hint = "render it to PNG first" if "SVG" in kind else "convert it or leave it out"
        _refuse(name, f"is {kind}", hint)
    except _DECODER_ERRORS as error:
        _refuse(name, f"has a damaged header ({_words(error)})", "restore it or leave it out")


def _prepare_codec(head: bytes, name: str) -> None:
    main = brand(head)
    if main in HEIC_BRANDS and b"avif" not in head[8:64]:
        with _heif_lock:
            if "HEIF" in Image.OPEN:
                return
            try:
                from pillow_heif import register_heif_opener
            except ImportError:
                _refuse(
                    name,
                    "is a HEIC picture and no codec for it is installed",
                    "pip install costream[heif]",
                )
            register_heif_opener()
    elif main in AVIF_BRANDS and not features.check("avif"):
        _refuse(
            name,
            "is an AVIF picture and this Pillow was built without its codec",
            "pip install --upgrade pillow",
        )


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width_px, height_px = image.size
    if width_px < 1 or height_px < 1:
        _refuse(name, f"has {width_px} x {height_px} pixels", "restore it or leave it out")
    if width_px * height_px > max_pixels:
        raise DataError(
            f"{name}: has {width_px} x {height_px} pixels ({width_px * height_px:,}), "
            f"expected at most {max_pixels:,}",
            hint="make it smaller or pass a larger max_pixels=",
        )


def _to_upright_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    try:
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
    except Image.DecompressionBombError as error:
        _refuse(name, f"is too large to decode ({_words(error)})", "make it smaller")
    except MemoryError:
        _refuse(name, "needs more memory to decode than there is", "make it smaller")
    except _DECODER_ERRORS as error:
        _refuse(name, f"is damaged or cut off ({_words(error)})", "restore it or leave it out")
    if upright is not None:
        rgb = rgb.transpose(upright)
    # Left in place, the orientation would be obeyed again by whoever opens the result.
    rgb.info.clear()
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value)
    except _DECODER_ERRORS:
        return 1  # the pixels are fine; phones and editors write broken EXIF blocks every day


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_to_rgb(image)
    if not image.has_transparency_data:
        return _opaque_to_rgb(image)
    layer = image.convert("RGBA")
    if "icc_profile" in image.info:
        opaque = image.convert("L") if image.mode in ("L", "LA") else layer.convert("RGB")
        alpha, layer = layer.getchannel("A"), _opaque_to_rgb(opaque)
        layer.putalpha(alpha)
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _opaque_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image.convert("RGB")  # a copy, also of what is RGB already
    from costream.data.colour import to_srgb  # most pictures have no profile

    return to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), profile)


def _gray_to_rgb(image: Image.Image) -> Image.Image:
    """Scale gray of more than 8 bits; Pillow's own conversion clips it at 255."""
    import numpy as np  # a process that only decodes starts twice as fast without

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a pixel is not a finite number")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scale = 255.0 / (high - low) if high > low else 0.0
    gray = np.rint((values - low) * scale)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255.0
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def _refuse(name: str, got: str, hint: str) -> NoReturn:
    raise DataError(f"{name}: {got}, expected a picture", hint=hint)


def _words(error: BaseException) -> str:
    """First line of a foreign error, without the object addresses that Pillow prints."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split("\n")[0].split(" object at 0x")[0]
    return text or type(error).__name__
