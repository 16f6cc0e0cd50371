"""Where a picture can come from, and the bytes behind it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from PIL import Image

from costream.data.failures import printable
from costream.errors import DataError

_CHUNK_BYTES = 1 << 20


@runtime_checkable
class StoredPicture(Protocol):
    """A picture inside something larger (archive, table), read only when it is needed.

    Attributes:
        name: What messages call it.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    def read(self) -> bytes:
        """Return the encoded bytes of the picture."""


PictureSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | StoredPicture


def picture_name(source: PictureSource) -> str:
    """Name a picture in messages.

    Args:
        source: Path, encoded bytes, PIL image or stored picture.

    Returns:
        The printable path or name, or a description of what has none.

    Example:
        >>> picture_name(b"123")
        'picture of 3 bytes'
    """
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return printable(getattr(source, "filename", "") or "PIL image")
    if isinstance(source, str | os.PathLike):
        return printable(source)
    return printable(source.name)


def picture_digest(source: PictureSource) -> str:
    """Fingerprint the content of a picture, whatever its name.

    Args:
        source: Path, encoded bytes, PIL image or stored picture. Of files and bytes the encoded
            bytes count; of a PIL image its mode, size and pixels.

    Returns:
        sha256 as 64 hexadecimal letters.

    Raises:
        DataError: The file cannot be read.

    Example:
        >>> picture_digest(b"")[:12]
        'e3b0c44298fc'
    """
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        digest.update(source)
    elif isinstance(source, Image.Image):
        digest.update(f"{source.mode} {source.size} ".encode())
        digest.update(source.tobytes())
    elif isinstance(source, str | os.PathLike):
        try:
            with Path(source).open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(
                f"{picture_name(source)}: cannot be read ({reason}), expected a picture",
                hint="check that it is there and that you may read it",
            ) from error
    else:
        digest.update(source.read())
    return digest.hexdigest()
