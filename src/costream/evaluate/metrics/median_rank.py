"""Median rank: how far down does a typical user have to look?"""

from __future__ import annotations

import numpy as np

from costream.evaluate.metrics.common import TIE_SENTENCES, check_queries
from costream.evaluate.ranks import Ranks, TieRule

# Far below the weight of one query, far above the rounding of a mean of probabilities.
_ROUNDING = 1e-10


def define_median_rank(tie_rule: TieRule = "expected") -> str:
    """Sentence that defines the number.

    Args:
        tie_rule: How equal scores are ranked.

    Returns:
        The definition.

    Example:
        >>> define_median_rank().split(",")[0]
        'Median over queries of the rank of the first relevant item'
    """
    return (
        "Median over queries of the rank of the first relevant item, 1 is best: the least k with "
        "hit@k >= 50, or the mean of it and of the least k with hit@k > 50 where these differ. "
        "Some papers report the median of all relevant items, or round down. "
        f"{TIE_SENTENCES[tie_rule]}"
    )


def median_rank(ranks: Ranks) -> float:
    """Median over queries of the rank of the first relevant item.

    With ties a query's rank is not one number but a distribution, and the median is that of the
    mixture of all queries' distributions: the mean of the lower median (least k with hit@k >= 50 %)
    and of the upper median (least k with hit@k > 50 %). Without ties this is the usual median.

    Args:
        ranks: Where the relevant items stand.

    Returns:
        Rank, at least 1; a multiple of one half.

    Raises:
        DataError: When there is no query.

    Example:
        >>> import numpy as np
        >>> from costream.evaluate import Truth, rank_of_truth
        >>> truth = Truth(relevant=[np.array([1])], num_items=3)
        >>> median_rank(rank_of_truth([[0.9, 0.5, 0.1]], truth))
        2.0
    """
    check_queries(ranks)
    lower = _least_k(ranks, 0.5 - _ROUNDING)
    upper = _least_k(ranks, 0.5 + _ROUNDING)
    return (lower + upper) / 2


def _least_k(ranks: Ranks, share: float) -> int:
    """Least k with which the share of hits is at least `share`, by bisection."""
    low, high = 1, int(np.max(ranks.num_ranked))
    while low < high:
        middle = (low + high) // 2
        if float(ranks.first_within(middle).mean()) >= share:
            high = middle
        else:
            low = middle + 1
    return low
