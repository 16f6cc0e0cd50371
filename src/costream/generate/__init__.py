"""Texts from pictures: what a generator is.

Shape letters: B pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from costream.data.picture import PictureSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A text that was made.

    Attributes:
        text: Without special tokens.
        score: Its generator's own, more is better; comparable for the same picture only.
    """

    text: str
    score: float


class Generator(Protocol):
    """Makes texts of pictures."""

    def generate(
        self, images: Sequence[PictureSource], count: int, rng: np.random.Generator | None = None
    ) -> list[list[Candidate]]:
        """Texts of B pictures.

        Args:
            images: Paths, encoded bytes, PIL images or pictures stored in an archive.
            count: How many a picture, at most; at least 1.
            rng: Of what is drawn; without it the most probable is taken, the same every time.

        Returns:
            B lists of 1 to `count` candidates, best first.
        """
