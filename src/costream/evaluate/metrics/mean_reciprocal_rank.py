"""Mean reciprocal rank: like hit@k, with a gain that falls with every place."""

from __future__ import annotations

import numpy as np

from costream.evaluate.metrics.common import TIE_SENTENCES, check_queries
from costream.evaluate.ranks import Ranks, TieRule


def define_mean_reciprocal_rank(tie_rule: TieRule = "expected") -> str:
    """Sentence that defines the number.

    Args:
        tie_rule: How equal scores are ranked.

    Returns:
        The definition.

    Example:
        >>> define_mean_reciprocal_rank().split(",")[0]
        'Mean over queries of 1 / rank of the first relevant item'
    """
    return (
        "Mean over queries of 1 / rank of the first relevant item, in percent, over the whole "
        "gallery. Many toolkits cut it at rank 10 (MRR@10) and write it as a fraction. "
        f"{TIE_SENTENCES[tie_rule]}"
    )


def mean_reciprocal_rank(ranks: Ranks) -> float:
    """Mean over queries of 1 / rank of the first relevant item.

    Args:
        ranks: Where the relevant items stand.

    Returns:
        Percent, above 0 to 100.

    Raises:
        DataError: When there is no query.

    Example:
        >>> import numpy as np
        >>> from costream.evaluate import Truth, rank_of_truth
        >>> truth = Truth(relevant=[np.array([1])], num_items=3)
        >>> mean_reciprocal_rank(rank_of_truth([[0.9, 0.5, 0.1]], truth))
        50.0
    """
    check_queries(ranks)
    # Heavy ties make many queries alike: each kind is summed once.
    kinds, count = np.unique(np.stack(ranks.first(), axis=1), axis=0, return_counts=True)
    values = np.array([_expected_reciprocal(*(int(part) for part in kind)) for kind in kinds])
    return 100.0 * float(values @ count / ranks.num_queries)


def _expected_reciprocal(above: int, tied: int, relevant: int) -> float:
    """Mean of 1 / rank of the first of `relevant` among `tied` items in random order."""
    place = np.arange(1, tied - relevant + 2)
    # P(first > p) / P(first > p - 1) = (irrelevant ones left) / (items left).
    beyond = np.cumprod((tied - relevant - place + 1) / (tied - place + 1))
    here = np.concatenate([[1.0], beyond[:-1]]) - beyond
    return float(here @ (1.0 / (above + place)))
