"""A fingerprint of what a picture looks like, which survives recompression and resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

HASH_KEY: Final = "perceptual_hash"
"""Under which an item's `meta` holds its hash."""

_SIDE: Final = 8


def difference_hash(picture: Image.Image) -> str:
    """Whether each of 8 x 8 cells is brighter than its left neighbour.

    Args:
        picture: Upright.

    Returns:
        64 bits as 16 hexadecimal letters; those of two versions of a picture differ in few bits.

    Example:
        >>> difference_hash(Image.linear_gradient("L").rotate(90))
        'ffffffffffffffff'
    """
    small = picture.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS)
    brightness = np.asarray(small, dtype=np.int16)
    return np.packbits(brightness[:, 1:] > brightness[:, :-1]).tobytes().hex()


def hash_bits(digest: str) -> NDArray[np.uint8] | None:
    """The bits of a hash, or None when it is none.

    Args:
        digest: As `difference_hash` gives it.

    Returns:
        uint8 (64,) of zeros and ones.

    Example:
        >>> int(hash_bits("00000000000000ff").sum())
        8
    """
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        return None
    return np.unpackbits(np.frombuffer(raw, np.uint8)) if len(raw) == _SIDE else None
