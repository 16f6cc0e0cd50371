"""recall@k: how much of what is right does a user who looks at k results see?"""

from __future__ import annotations

import numpy as np

from costream.evaluate.metrics.common import TIE_SENTENCES, check_cutoff, check_queries
from costream.evaluate.ranks import Ranks, TieRule


def define_recall_at_k(k: int, tie_rule: TieRule = "expected") -> str:
    """Sentence that defines the number.

    Args:
        k: Number of best items looked at.
        tie_rule: How equal scores are ranked.

    Returns:
        The definition.

    Raises:
        ConfigError: When `k` is not a whole number of at least 1.

    Example:
        >>> define_recall_at_k(5).split(":")[0]
        'Share of the relevant items of a query, in percent, that are among the 5 best'
    """
    return (
        "Share of the relevant items of a query, in percent, that are among the "
        f"{check_cutoff(k)} best: found / all relevant, mean over queries. With more than k "
        "relevant items it cannot reach 100; some toolkits divide by min(k, relevant) instead. "
        f"Many papers write recall@k for what is hit@k here. {TIE_SENTENCES[tie_rule]}"
    )


def recall_at_k(ranks: Ranks, k: int) -> float:
    """Share of a query's relevant items that are among the k best, mean over queries.

    Args:
        ranks: Where the relevant items stand.
        k: Number of best items looked at.

    Returns:
        Percent, 0 to 100.

    Raises:
        ConfigError: When `k` is not a whole number of at least 1.
        DataError: When there is no query.

    Example:
        >>> import numpy as np
        >>> from costream.evaluate import Truth, rank_of_truth
        >>> truth = Truth(relevant=[np.array([1, 2])], num_items=3)
        >>> recall_at_k(rank_of_truth([[0.9, 0.5, 0.1]], truth), 2)
        50.0
    """
    check_queries(ranks)
    found = np.add.reduceat(ranks.each_within(check_cutoff(k)), ranks.offsets[:-1])
    return 100.0 * float((found / ranks.num_relevant).mean())
