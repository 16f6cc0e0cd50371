"""Say in words what a file is by its first bytes, for errors that help."""

from __future__ import annotations

HEAD_BYTES = 4096

HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"GIF87a", "a GIF picture"),
    (b"GIF89a", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"BM", "a BMP picture"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"OggS", "an Ogg sound"),
    (b"fLaC", "a FLAC sound"),
    (b"ID3", "an MP3 sound"),
)


def brand(head: bytes) -> bytes:
    """Main brand of an ISO media file (HEIC, AVIF, MP4), empty for every other file.

    Args:
        head: At least the first 12 bytes of the file.

    Returns:
        Four bytes such as `b"heic"`, or none.
    """
    return head[8:12] if head[4:8] == b"ftyp" else b""


def is_picture(head: bytes) -> bool:
    """Whether a file begins like one of the picture formats that costream decodes.

    Args:
        head: The first bytes of the file, `HEAD_BYTES` or fewer.

    Returns:
        True for JPEG, PNG, GIF, TIFF, BMP, WebP, HEIC and AVIF.
    """
    return describe(head).endswith("picture")


def describe(head: bytes) -> str:
    """Name what a file is, with an article, for use after "is".

    Args:
        head: The first bytes of the file, `HEAD_BYTES` or fewer.

    Returns:
        A phrase such as "a PNG picture", "an SVG drawing" or "text beginning 'hello'".

    Example:
        >>> describe(b"hello world, I am no picture")
        "text beginning 'hello world, I am no pic'"
    """
    if not head:
        return "empty (0 bytes)"
    return _by_magic(head) or _by_text(head) or f"data of an unknown kind (0x{head[:8].hex()}...)"


def _by_magic(head: bytes) -> str:
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return words
    if head[:4] == b"RIFF" and len(head) >= 12:
        kinds = {b"WEBP": "a WebP picture", b"WAVE": "a WAV sound", b"AVI ": "an AVI video"}
        return kinds.get(head[8:12], "")
    if (main := brand(head)) in HEIC_BRANDS:
        return "a HEIC picture"
    if main in AVIF_BRANDS:
        return "an AVIF picture"
    if main:
        return "an MP4 video"
    return "a tar archive" if head[257:262] == b"ustar" else ""


def _by_text(head: bytes) -> str:
    lower = head[:1024].lower()
    if b"<svg" in lower:
        return "an SVG drawing"
    if b"<!doctype html" in lower or b"<html" in lower:
        return "a web page (HTML)"
    # The head may end inside a letter of several bytes: an error in the last three is no evidence.
    text = head.decode("utf-8", "replace")
    if "\ufffd" in text[:-3] or any(ord(c) < 32 and c not in "\t\r\n\f\ufeff" for c in text):
        return ""
    return f"text beginning {text.strip()[:24]!r}"
