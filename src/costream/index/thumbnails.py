"""Where the small pictures of indexed files lie, and how those of removed items are deleted.

The service makes them, forgetting deletes them: both ask here. A thumbnail's name begins with the
hash of the content it shows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Set
from pathlib import Path

# Hidden: an index may lie below the folders that it is made of, and these are no pictures of it.
_FOLDER = ".thumbnails"


def cache_of_database(location: str) -> Path:
    """Where what is made of an index in a database is kept, unless told otherwise.

    Args:
        location: As the index names it, without a password.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    digest = hashlib.sha256(location.encode()).hexdigest()[:16]
    return Path(home) / "costream" / f"served-{digest}"


def thumbnail_folder(directory: Path) -> Path:
    """The folder of the thumbnails, in the folder of an index or in its cache."""
    return directory / _FOLDER


def thumbnail_path(
    folder: Path, content_hash: str, side_px: int, moment: float | None = None
) -> Path:
    """The file of a thumbnail.

    Args:
        folder: As `thumbnail_folder` gives it.
        content_hash: sha256 (hex) of the file that it shows.
        side_px: Longest side.
        moment: Of a clip, in seconds.

    Example:
        >>> thumbnail_path(Path("thumbnails"), "ab" * 32, 320).name[:4]
        'abab'
    """
    when = "" if moment is None else f"-{round(1000 * moment)}"
    return folder / content_hash[:2] / f"{content_hash}-{side_px}{when}.jpg"


def remove_other_thumbnails(folder: Path, hashes: Set[str]) -> int:
    """Delete the thumbnails of what is in the index no more, and unfinished ones of it.

    Args:
        folder: As `thumbnail_folder` gives it.
        hashes: Content hashes of every item of the index.

    Returns:
        How many files were deleted.

    Raises:
        OSError: One cannot be deleted.
    """
    removed = 0
    for path in thumbnail_files(folder):
        if path.name.partition("-")[0] not in hashes:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def thumbnail_files(folder: Path) -> Iterator[Path]:
    """Every file of the folder."""
    return folder.glob("??/*")
