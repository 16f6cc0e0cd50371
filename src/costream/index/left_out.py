"""What is found below folders but cannot be embedded here, and how to change that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from costream.data.failures import printable
from costream.data.walk import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from costream.errors import DataError
from costream.index.records import LeftOut
from costream.records import Space

_NO_EARS = "the model has no tower for sounds"
_NO_MODEL = (
    "costream has no model with such a tower yet; one of your own needs `encode_sounds`, "
    "see costream.index.SoundEncoder"
)


def leave_out(
    found: Sequence[Path], given: Iterable[str | os.PathLike[str]], *, has_ears: bool
) -> tuple[list[Path], tuple[LeftOut, ...]]:
    """Part the files that can be embedded from those that cannot, by their suffixes.

    A file that was named stays: it then fails by itself, with the reason.

    Args:
        found: Files.
        given: What the caller named.
        has_ears: Whether the model takes sounds.

    Returns:
        The files that stay, in their order, and how many were left out, and why.
    """
    reasons: dict[frozenset[str], tuple[str, str]] = {}
    if find_spec("av") is None:
        hint = "pip install costream[video]"
        reasons[VIDEO_SUFFIXES] = ("videos", f"no decoder for them is installed: {hint}")
    if not has_ears:
        reasons[AUDIO_SUFFIXES] = ("sounds", f"{_NO_EARS}; {_NO_MODEL}")
    elif find_spec("av") is None:
        hint = "pip install costream[audio]"
        reasons[AUDIO_SUFFIXES] = ("sounds", f"no decoder for them is installed: {hint}")
    named = {os.fspath(path) for path in given}
    staying = list(found)
    left_out = []
    for suffixes, (what, reason) in reasons.items():
        gone = {p for p in staying if p.suffix.lower() in suffixes and os.fspath(p) not in named}
        staying = [path for path in staying if path not in gone]
        if gone:
            left_out.append(LeftOut(what=what, count=len(gone), reason=reason))
    return staying, tuple(left_out)


def no_tower_for_sounds(name: str, space: Space) -> DataError:
    """The error of a sound that a model cannot take."""
    return DataError(
        f"{printable(name)}: is a sound, and {space.encoder} has no tower for sounds, expected a "
        "picture or a video",
        hint=f"leave it out; {_NO_MODEL}",
    )
