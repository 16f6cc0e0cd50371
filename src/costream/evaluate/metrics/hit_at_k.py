"""hit@k: does a user who looks at k results see something right?"""

from __future__ import annotations

from costream.evaluate.metrics.common import TIE_SENTENCES, check_cutoff, check_queries
from costream.evaluate.ranks import Ranks, TieRule


def define_hit_at_k(k: int, tie_rule: TieRule = "expected") -> str:
    """Sentence that defines the number.

    Args:
        k: Number of best items looked at.
        tie_rule: How equal scores are ranked.

    Returns:
        The definition.

    Raises:
        ConfigError: When `k` is not a whole number of at least 1.

    Example:
        >>> define_hit_at_k(5).split(" (")[0]
        'Share of queries, in percent, with at least one relevant item among the 5 best'
    """
    return (
        f"Share of queries, in percent, with at least one relevant item among the "
        f"{check_cutoff(k)} best (of several captions of a picture, any one counts). "
        "Many papers call this recall@k; "
        f"here recall@k is the share of relevant items that are found. {TIE_SENTENCES[tie_rule]}"
    )


def hit_at_k(ranks: Ranks, k: int) -> float:
    """Share of queries with at least one relevant item among the k best.

    With t tied items, r of them relevant, that begin after a better ones, the first k - a of them
    are seen, and the query counts 1 - C(t - r, k - a) / C(t, k - a).

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
        >>> hit_at_k(rank_of_truth([[0.9, 0.5, 0.1]], truth), 2)
        100.0
    """
    check_queries(ranks)
    return 100.0 * float(ranks.first_within(check_cutoff(k)).mean())
