"""The one ranking function: where the relevant items of each query stand, ties included.

Every metric of costream is computed from what `rank_of_truth` returns, so that there is one place
where ties, exclusions and values that are not finite are dealt with.

Items with equal scores form a *tie*: the scores do not say in which order they stand. Three rules:

- `expected` (default): every order of the tied items is equally likely, and a metric is its
  expected value over these orders. A scorer that gives every item the same score therefore scores
  chance.
- `optimistic`: the relevant items of a tie come first. A constant scorer scores 100 %: only for
  showing how much a result owes to its ties.
- `pessimistic`: the relevant items of a tie come last.

Shape letters: Q queries, G items of the gallery, P pairs of a query and one of its relevant items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costream.errors import ConfigError, DataError, NumericalError
from costream.evaluate.scores import GivenScores
from costream.evaluate.truth import Truth

TieRule = Literal["expected", "optimistic", "pessimistic"]
Counts = NDArray[np.int64]

# Scores that are held at once: 16 MB in float32, so memory does not grow with queries x items.
_SCORES_AT_ONCE = 2**22


@runtime_checkable
class Scores(Protocol):
    """Anything that can score some of the queries against the whole gallery."""

    @property
    def num_queries(self) -> int:
        """Number of rows."""

    @property
    def num_items(self) -> int:
        """Number of columns."""

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Scores float32 (stop - start, G) of the queries from `start` up to `stop`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranks:
    """Where relevant items stand, one row a pair (query, relevant item).

    The relevant item of a pair lies in a block of `tied` places that begins after `above` better
    items; `tied_relevant` of the items in the block are relevant, in an order that is not known.
    Without ties a block is one place and the item's rank is `above + 1`. The tie rules `optimistic`
    and `pessimistic` are already applied: their blocks hold relevant items only.

    Attributes:
        offsets: int64 (Q + 1,); the pairs of query q are rows offsets[q] to offsets[q + 1].
        above: int64 (P,), items that stand before the block.
        tied: int64 (P,), places of the block, at least 1.
        tied_relevant: int64 (P,), relevant items in the block, at least 1.
        num_ranked: int64 (Q,), items that were ranked: the gallery without the excluded ones.
        tie_rule: How equal scores were ranked.
    """

    offsets: Counts
    above: Counts
    tied: Counts
    tied_relevant: Counts
    num_ranked: Counts
    tie_rule: TieRule = "expected"

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return len(self.num_ranked)

    @property
    def num_relevant(self) -> Counts:
        """Relevant items of each query, int64 (Q,)."""
        return np.diff(self.offsets)

    def first(self) -> tuple[Counts, Counts, Counts]:
        """`above`, `tied` and `tied_relevant`, int64 (Q,) each, of each query's best block."""
        query = np.repeat(np.arange(self.num_queries), self.num_relevant)
        # Stable order by query, then by rank: the first row of each query is its best.
        best = np.lexsort((self.above, query))[self.offsets[:-1]]
        return self.above[best], self.tied[best], self.tied_relevant[best]

    def first_rank(self) -> NDArray[np.float64]:
        """Expected rank of the first relevant item of each query, float64 (Q,), 1 is best.

        The first of r relevant items among t in random order stands at (t + 1) / (r + 1) on
        average.
        """
        above, tied, relevant = self.first()
        return above + (tied + 1) / (relevant + 1)

    def first_within(self, k: int) -> NDArray[np.float64]:
        """Probability that the first relevant item is among the k best, float64 (Q,)."""
        above, tied, relevant = self.first()
        return 1.0 - chance_of_none(tied, relevant, np.clip(k - above, 0, tied))

    def each_within(self, k: int) -> NDArray[np.float64]:
        """Probability that the relevant item of each pair is among the k best, float64 (P,)."""
        # Every place of the block is equally likely for each of its relevant items.
        return np.clip(k - self.above, 0, self.tied) / self.tied


def chance_of_none(tied: Counts, relevant: Counts, drawn: Counts) -> NDArray[np.float64]:
    """Probability that none of the first items of a tie in random order is relevant.

    The hypergeometric C(t - r, j) / C(t, j), as a product of min(r, j) factors below 1: exact to
    rounding, without factorials that overflow.

    Args:
        tied: Items of the tie t, int64 (N,).
        relevant: Relevant ones r among them, 0 <= r <= t, int64 (N,).
        drawn: How many are looked at j, 0 <= j <= t, int64 (N,).

    Returns:
        float64 (N,).

    Example:
        >>> chance_of_none(np.array([4]), np.array([2]), np.array([1]))
        array([0.5])
    """
    fewer, more = np.minimum(relevant, drawn), np.maximum(relevant, drawn)
    chance = np.ones(len(tied), dtype=np.float64)
    for step in range(int(fewer.max(initial=0))):
        live = (step < fewer) & (chance > 0)
        if not live.any():
            break
        chance[live] *= np.maximum(tied - more - step, 0)[live] / (tied - step)[live]
    return chance


def rank_of_truth(
    scores: Scores | ArrayLike,
    truth: Truth,
    *,
    tie_rule: TieRule = "expected",
    query_ids: Sequence[str] | None = None,
    item_ids: Sequence[str] | None = None,
    rows_at_once: int | None = None,
) -> Ranks:
    """Rank every query's relevant items in the whole gallery.

    Args:
        scores: Score matrix (Q, G), or an object with `rows(start, stop)` that computes some of its
            rows, so that the whole need never exist. Higher is better; compared as float32.
        truth: Relevant and excluded items of each query.
        tie_rule: What to assume of items with equal scores.
        query_ids: Names of the queries for messages; numbers where absent.
        item_ids: Names of the items for messages; numbers where absent.
        rows_at_once: Queries scored at once; chosen by memory where absent. The result does not
            depend on it.

    Returns:
        The ranks of all pairs (query, relevant item).

    Raises:
        ConfigError: When the tie rule is unknown or `rows_at_once` is below 1.
        DataError: When scores and truth differ in size.
        NumericalError: When a score is not finite; names the query and the item.

    Example:
        >>> truth = Truth(relevant=[np.array([1]), np.array([0])], num_items=3)
        >>> rank_of_truth([[0.9, 0.5, 0.1], [0.7, 0.7, 0.1]], truth).first_rank()
        array([2. , 1.5])
    """
    table = scores if isinstance(scores, Scores) else GivenScores(scores)
    check_tie_rule(tie_rule)
    if (table.num_queries, table.num_items) != (truth.num_queries, truth.num_items):
        raise DataError(
            f"scores are of {table.num_queries} queries and {table.num_items} items, the truth of "
            f"{truth.num_queries} and {truth.num_items}",
            hint="give both in the same order",
        )
    rows = max(1, _SCORES_AT_ONCE // max(1, truth.num_items))
    if rows_at_once is not None:
        rows = rows_at_once
    if rows < 1:
        raise ConfigError(f"rows_at_once is {rows}, expected at least 1", hint="leave it out")
    pairs: list[tuple[Counts, Counts, Counts]] = []
    for start in range(0, truth.num_queries, rows):
        block = table.rows(start, min(start + rows, truth.num_queries))
        _check_finite(block, start, query_ids, item_ids)
        pairs.extend(_rank_row(row, truth, start + number) for number, row in enumerate(block))
    return _collect(pairs, truth, tie_rule)


def check_tie_rule(tie_rule: str) -> None:
    """Refuse a tie rule that does not exist.

    Args:
        tie_rule: Name of a rule.

    Raises:
        ConfigError: When it is none of `expected`, `optimistic` and `pessimistic`.
    """
    if tie_rule not in get_args(TieRule):
        raise ConfigError(
            f"tie_rule is {tie_rule!r}, expected one of {', '.join(get_args(TieRule))}",
            hint="'expected' is the rule that cannot flatter",
        )


def ranks_by_chance(truth: Truth, *, tie_rule: TieRule = "expected") -> Ranks:
    """Ranks of a scorer that gives every item the same score: the chance level of this truth.

    Args:
        truth: Relevant and excluded items of each query.
        tie_rule: What to assume of items with equal scores.

    Returns:
        The same as `rank_of_truth` with constant scores, without computing any.

    Raises:
        ConfigError: When the tie rule is unknown.

    Example:
        >>> from costream.evaluate.metrics import hit_at_k
        >>> truth = Truth(relevant=[np.array([0])], num_items=8)
        >>> hit_at_k(ranks_by_chance(truth), 1)
        12.5
    """
    check_tie_rule(tie_rule)
    ranked = _num_ranked(truth)
    pairs = [
        (np.zeros_like(items), np.full_like(items, ranked[q]), np.full_like(items, len(items)))
        for q, items in enumerate(truth.relevant)
    ]
    return _collect(pairs, truth, tie_rule)


def _check_finite(
    block: NDArray[np.float32],
    start: int,
    query_ids: Sequence[str] | None,
    item_ids: Sequence[str] | None,
) -> None:
    wrong = ~np.isfinite(block)
    if not wrong.any():
        return
    row, column = (int(each) for each in np.argwhere(wrong)[0])
    query = repr(query_ids[start + row]) if query_ids is not None else f"number {start + row}"
    item = repr(item_ids[column]) if item_ids is not None else f"number {column}"
    raise NumericalError(
        f"the score of query {query} and item {item} is {block[row, column]}, expected a finite "
        f"number ({int(wrong[row].sum())} of {block.shape[1]} scores of this query are not)",
        hint="look at the vectors of both",
    )


def _rank_row(row: NDArray[np.float32], truth: Truth, query: int) -> tuple[Counts, Counts, Counts]:
    """`above`, `tied` and `tied_relevant` of each relevant item of one query."""
    own = row[truth.relevant[query]]
    ranked = row
    if truth.excluded is not None and len(truth.excluded[query]):
        ranked = np.delete(row, truth.excluded[query])
    order = np.sort(ranked)
    low, high = np.searchsorted(order, own, "left"), np.searchsorted(order, own, "right")
    mine = np.sort(own)
    relevant = np.searchsorted(mine, own, "right") - np.searchsorted(mine, own, "left")
    return (len(order) - high).astype(np.int64), (high - low).astype(np.int64), relevant


def _num_ranked(truth: Truth) -> Counts:
    ranked = np.full(truth.num_queries, truth.num_items, dtype=np.int64)
    if truth.excluded is not None:
        ranked -= np.array([len(each) for each in truth.excluded], dtype=np.int64)
    return ranked


def _collect(pairs: list[tuple[Counts, Counts, Counts]], truth: Truth, tie_rule: TieRule) -> Ranks:
    counts = [len(each[0]) for each in pairs]
    empty = np.zeros(0, dtype=np.int64)
    above, tied, relevant = (
        np.concatenate([empty, *(each[part] for each in pairs)]) for part in range(3)
    )
    if tie_rule == "pessimistic":
        above = above + tied - relevant
    if tie_rule != "expected":
        tied = relevant
    return Ranks(
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        above=above,
        tied=tied,
        tied_relevant=relevant,
        num_ranked=_num_ranked(truth),
        tie_rule=tie_rule,
    )
