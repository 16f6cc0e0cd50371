"""Checks and words that the metrics share."""

from __future__ import annotations

from costream.errors import ConfigError, DataError
from costream.evaluate.ranks import Ranks, TieRule

TIE_SENTENCES: dict[TieRule, str] = {
    "expected": "Tied items stand in random order; the value is the expected one.",
    "optimistic": "Relevant items stand first among tied ones.",
    "pessimistic": "Relevant items stand last among tied ones.",
}


def check_cutoff(k: int) -> int:
    """Return `k`, a number of best items.

    Args:
        k: At least 1.

    Returns:
        The same number.

    Raises:
        ConfigError: When it is not a whole number of at least 1.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k is {k!r}, expected a whole number of at least 1", hint="try k=10")
    return k


def check_queries(ranks: Ranks) -> None:
    """Refuse the mean over nothing.

    Args:
        ranks: Ranks of at least one query.

    Raises:
        DataError: When there is no query.
    """
    if ranks.num_queries == 0:
        raise DataError("got the ranks of 0 queries, expected at least 1", hint="give queries")
