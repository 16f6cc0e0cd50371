"""What a score means: how sure it is that an item is more than the best of chance.

A cosine says nothing by itself: what one query's best wrong picture gets is more than another
query's right one gets. Here a query is first compared with its background (`background.py`), which
gives the mean and the spread of what chance gives it, and by the normal distribution the best of n
draws: mean + spread * b(n). The odds that a score is more than that are logistic; their constants
were learned from questions whose picture was in a collection or had been taken out of it, for each
kind of question: whether it adds words only or pictures too, and whether it subtracts. A composed
question is compared as the one vector that it is asked with.

For a model that was measured (`MEASURED`), the constants weigh the score itself, the spread, and
the best of chance, and the prior shipped with the model is a background for collections of one item
and more. For other models the only thing known is how many spreads a score is above the best of
chance (`ANY_MODEL`), which tells much less, and nothing in collections too small to have a spread.

Nothing is known, either, of what was never measured: questions that only subtract, and terms that
are multiplied. Then there is no relevance, and the answer says why.

`benchmarks/relevance.py` learns the constants and measures what they are worth.

Shape letters: N vectors of the sample, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from costream.search.background import FEWEST, Background, background_of, best_of, read_prior
from costream.search.query import Query, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from costream.records import Space

Kind = Literal["words", "words less", "pictures", "pictures less"]
"""What a question adds (pictures as soon as one is among it), and whether it subtracts."""

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
# picture of half B, on which it reports, was used. A threshold refuses one question in ten of A
# whose picture is there, in collections of 60 to 250 pictures.
MEASURED: Final[Mapping[str, Mapping[Kind, Constants]]] = {
    # cots-mini
    "4a0c399ab14d5dc9": {
        "words": Constants(offset=-5.724, score=13.881, spread=8.916, best=-7.913, threshold=0.282),
        "words less": Constants(
            offset=-3.213, score=13.397, spread=0.459, best=-7.899, threshold=0.297
        ),
        "pictures": Constants(
            offset=-4.754, score=11.867, spread=3.792, best=-7.221, threshold=0.285
        ),
        "pictures less": Constants(
            offset=-3.478, score=11.296, spread=1.194, best=-7.029, threshold=0.291
        ),
    },
}
"""Constants by the hash of a model's weights."""

ANY_MODEL: Final = RelativeConstants(offset=-0.692, weight=1.523, threshold=0.311)


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
class Unknown:
    """Scores of one query of which nothing is known.

    Attributes:
        why: For people; a clause.
    """

    why: str


def kind_of(query: Query) -> Kind | Unknown:
    """Which of the kinds that were measured a question is.

    Args:
        query: Of any terms.

    Example:
        >>> kind_of(Query(terms=(Words("a dog"), Words("snow", weight=-0.5))))
        'words less'
    """
    if query.product:
        return Unknown(why="of terms that are multiplied it was never measured")
    added = [term for term in query.terms if term.weight > 0]
    if not added:
        return Unknown(why="a question that only subtracts says what not to find")
    less = len(added) < len(query.terms)
    if all(isinstance(term, Words) for term in added):
        return "words less" if less else "words"
    return "pictures less" if less else "pictures"


def judge_of(
    asked_D: NDArray[np.float32],
    sample_ND: NDArray[np.float32],
    num_items: int,
    *,
    space: Space,
    kind: Kind,
) -> Judge | Unknown:
    """Find out what the scores of a query mean.

    Args:
        asked_D: The query, float32 (D,) of length 1.
        sample_ND: Vectors of the collection, float32 (N, D).
        num_items: Items that are searched.
        space: Where the query lives.
        kind: Of the question.

    Returns:
        `Unknown` where nothing can be said.
    """
    constants, prior = MEASURED.get(space.weights_hash), read_prior(space.weights_hash)
    if prior is not None and prior.mean_D.shape != asked_D.shape:
        # Shortened vectors score otherwise.
        constants, prior = None, None
    background = background_of(asked_D, sample_ND, num_items, prior)
    if background is None:
        return Unknown(why=_why_none(len(sample_ND), num_items))
    if constants is not None:
        return measured_judge(background, constants[kind])
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


def _why_none(num_vectors: int, num_items: int) -> str:
    if not num_items:
        return "there is no item to judge"
    if num_vectors < FEWEST:
        return f"for this model it takes a collection of at least {FEWEST} items"
    return "the question gives all items of the collection the same score"
