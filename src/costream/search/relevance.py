"""What a score means: how sure it is that an item is more than the best of chance.

A cosine says nothing by itself: what one query's best wrong picture gets is more than another
query's right one gets. Here a query is first compared with a sample of the collection, which gives
the mean and the spread of what chance gives it, and by extreme value theory the best of n draws:
mean + spread * b(n). The odds that a score is more than that are logistic; their constants were
learned from captions of pictures that were in a collection or had been taken out of it.

For questions in words to a model that was measured (`MEASURED`), the constants weigh the score
itself, the spread, and the best of chance. For other models and for pictures the only thing known
is how many spreads a score is above the best of chance (`ANY_MODEL`), which tells much less.

`benchmarks/relevance.py` learns the constants and measures what they are worth.

Shape letters: N vectors of the sample, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from costream.records import Space

SAMPLE: Final = 1024
"""Vectors of a collection that are enough to know what chance gives."""

FEWEST: Final = 20
"""Of fewer vectors no spread can be told."""

MOST: Final = 250
"""Items from which on a collection counts as this large where constants were measured: among more
pictures than that, those that match a caption by chance are no longer rare, and are no mistake."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """Log odds of relevance of one model: offset + score + spread * (its weight + best * b(n)).

    Attributes:
        offset: Log odds at a score and a spread of 0.
        score: Weight of the score.
        spread: Weight of the spread of the query's scores.
        best: Weight of the spread times b(n).
        threshold: Relevance below which a best result counts as chance.
    """

    offset: float
    score: float
    spread: float
    best: float
    threshold: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeConstants:
    """Log odds of relevance of any model: offset + weight * ((score - mean) / spread - b(n)).

    Attributes:
        offset: Log odds of a score that is just the best of chance.
        weight: Of one spread.
        threshold: Relevance below which a best result counts as chance.
    """

    offset: float
    weight: float
    threshold: float


# Learned on half A (520 pictures) of Flickr8k's dev split, by `benchmarks/relevance.py --fit`; no
# picture of half B, on which it reports, was used. A threshold refuses one query in ten of A whose
# picture is there.
MEASURED: Final[Mapping[str, Constants]] = {
    # cots-mini
    "4a0c399ab14d5dc9": Constants(
        offset=-5.696, score=9.445, spread=18.136, best=-5.908, threshold=0.331
    ),
}
"""Constants by the hash of a model's weights."""

ANY_MODEL: Final = RelativeConstants(offset=-0.518, weight=1.111, threshold=0.365)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """What scores of one query mean.

    Attributes:
        slope: Of the log odds of relevance, in units of the score.
        offset: Log odds at a score of 0.
        threshold: Relevance below which a best result counts as chance.
    """

    slope: float
    offset: float
    threshold: float

    def relevance(self, score: float) -> float:
        """How sure it is that a score is more than the best of chance, 0 to 1.

        Args:
            score: Cosine of the query and an item.

        Example:
            >>> Judge(slope=10.0, offset=-5.0, threshold=0.3).relevance(0.5)
            0.5
        """
        # Beyond this the exponential would overflow.
        log_odds = min(max(self.offset + self.slope * score, -500.0), 500.0)
        return 1.0 / (1.0 + math.exp(-log_odds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """What chance gives a query.

    Attributes:
        mean: Of the scores of the sample.
        spread: Their standard deviation.
        num_items: Items that are searched.
    """

    mean: float
    spread: float
    num_items: int


def background_of(
    asked_D: NDArray[np.float32], sample_ND: NDArray[np.float32], num_items: int
) -> Background | None:
    """Compare a query with a sample of the collection.

    Args:
        asked_D: The query, float32 (D,) of length 1.
        sample_ND: Vectors of the collection, float32 (N, D).
        num_items: Items that are searched.

    Returns:
        None where there are too few vectors, or all are the same.

    Example:
        >>> sample = np.float32([[0.3, 0], [0.1, 0]] * 10)
        >>> background = background_of(np.float32([1, 0]), sample, 20)
        >>> round(background.mean, 3), round(background.spread, 3)
        (0.2, 0.1)
    """
    if len(sample_ND) < FEWEST or num_items < 1:
        return None
    scores_N = sample_ND @ asked_D
    spread = float(scores_N.std())
    if not spread > 0:
        return None
    return Background(mean=float(scores_N.mean()), spread=spread, num_items=num_items)


def best_of(count: int) -> float:
    """The best of many draws from a normal distribution, in standard deviations (median).

    Args:
        count: Draws; at least 2 count.

    Returns:
        The median of the Gumbel distribution that the maximum tends to (Fisher and Tippett 1928,
        with the normal distribution's constants); 0.04 too large at 20 draws, less at more.

    Example:
        >>> round(best_of(20), 2), round(best_of(1000), 2), round(best_of(10**6), 2)
        (1.86, 3.22, 4.84)
    """
    log_n = math.log(max(count, 2))
    root = math.sqrt(2 * log_n)
    location = root - (math.log(log_n) + math.log(4 * math.pi)) / (2 * root)
    return location - math.log(math.log(2)) / root


def judge_of(
    asked_D: NDArray[np.float32],
    sample_ND: NDArray[np.float32],
    num_items: int,
    *,
    space: Space,
    is_text: bool,
) -> Judge | None:
    """Find out what the scores of a query mean.

    Args:
        asked_D: The query, float32 (D,) of length 1.
        sample_ND: Vectors of the collection, float32 (N, D).
        num_items: Items that are searched.
        space: Where the query lives.
        is_text: Whether it is words only.

    Returns:
        None where the collection is too small to say.
    """
    background = background_of(asked_D, sample_ND, num_items)
    if background is None:
        return None
    constants = MEASURED.get(space.weights_hash) if is_text else None
    if constants is not None:
        return measured_judge(background, constants)
    return relative_judge(background, ANY_MODEL)


def measured_judge(background: Background, constants: Constants) -> Judge:
    """What scores mean where the model was measured.

    Args:
        background: What chance gives the query.
        constants: Of the model.
    """
    best = best_of(min(background.num_items, MOST))
    return Judge(
        slope=constants.score,
        offset=constants.offset + background.spread * (constants.spread + constants.best * best),
        threshold=constants.threshold,
    )


def relative_judge(background: Background, constants: RelativeConstants) -> Judge:
    """What scores mean where only chance is known.

    Args:
        background: What chance gives the query.
        constants: Of any model.
    """
    slope = constants.weight / background.spread
    chance = background.mean / background.spread + best_of(background.num_items)
    return Judge(
        slope=slope,
        offset=constants.offset - constants.weight * chance,
        threshold=constants.threshold,
    )
