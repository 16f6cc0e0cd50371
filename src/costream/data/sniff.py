"""Say in words what a file is by its first bytes, for errors that help."""

from __future__ import annotations

HEAD_BYTES = 4096

HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
_SOUND_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B "})
# First boxes of QuickTime files from before brands.
_QUICKTIME_BOXES = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})

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
    (b"FLV\x01", "a Flash video"),
    (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel", "a Windows Media video"),
    (b"\x00\x00\x01\xba", "an MPEG video"),
    (b"fLaC", "a FLAC sound"),
    (b"ID3", "an MP3 sound"),
    (b"\xff\xfb", "an MP3 sound"),
    (b"\xff\xf3", "an MP3 sound"),
    (b"\xff\xf2", "an MP3 sound"),
    (b"\xff\xf1", "an AAC sound"),
    (b"\xff\xf9", "an AAC sound"),
    (b"caff", "a CAF sound"),
    (b"RF64", "a WAV sound"),
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


def modality(head: bytes) -> str:
    r"""What kind of thing a file is by its first bytes, whatever its name ends in.

    A container that may hold pictures counts as a video until it is opened; one may turn out to
    hold sound only.

    Args:
        head: The first bytes of the file, `HEAD_BYTES` or fewer.

    Returns:
        "image", "video", "audio", or "" for anything else.

    Example:
        >>> modality(b"RIFF\x00\x00\x00\x00WAVEfmt ")
        'audio'
    """
    kinds = {"picture": "image", "video": "video", "sound": "audio"}
    return kinds.get(describe(head).rpartition(" ")[2], "")


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
    if main in _SOUND_BRANDS:
        return "an MP4 sound"
    if main:
        return "a QuickTime video" if main == b"qt  " else "an MP4 video"
    if head[4:8] in _QUICKTIME_BOXES:
        return "a QuickTime video"
    if head[:4] == b"OggS":
        return "an Ogg video" if b"theora" in head else "an Ogg sound"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "an AIFF sound"
    if _is_transport_stream(head):
        return "an MPEG transport video"
    return "a tar archive" if head[257:262] == b"ustar" else ""


def _is_transport_stream(head: bytes) -> bool:
    """Whether packets of 188 bytes begin with their sync byte; of 192 bytes, with a time before."""
    return any(
        len(head) > first + 3 * step and all(head[first + n * step] == 0x47 for n in range(4))
        for first, step in ((0, 188), (4, 192))
    )


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
