"""What share of the true results an approximate kernel finds, measured on the queries it gets.

Recall that was measured once, on other data and other queries, says little: text queries on
pictures are harder than pictures on pictures, and filters and growth change the answer. So some of
the queries that are really asked are kept, and now and then asked again, once as always and once
exactly, off the path of any answer.

Shape letters: Q queries, N rows, D dimensions.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.errors import DataError
from costream.scoring.kernels.exact import exactly
from costream.scoring.kernels.protocol import Kernel

# Queries that one exact pass answers, at hardly more than the cost of one.
TOGETHER = 32
# One in so many queries replaces a kept one when all places are taken: with 256 places those kept
# are from about the last two thousand.
REPLACED = 8
# At most one in so many kept queries was asked under a condition, since its mask is kept with it.
CONDITIONED = 8
# Standard deviations of a normal distribution that hold 95 %.
_Z = 1.959964
# How long closing waits.
PATIENCE_S = 2.0
# Gives the mask of rows that a condition allows.
AllowedOf = Callable[[Hashable], NDArray[np.bool_] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallEstimate:
    """What share of the true results is found.

    Attributes:
        recall: Of the audited queries.
        low: Lower end of the 95 % interval.
        high: Upper end.
        num_queries: How many were audited.
    """

    recall: float
    low: float
    high: float
    num_queries: int


@dataclass(slots=True, eq=False)
class _Kept:
    """A query that was asked, and how it fared."""

    query_D: NDArray[np.float32]
    top: int
    where: Hashable
    hits: int = 0
    wanted: int = 0
    turn: int = 0


class RecallAudit:
    """Keeps some of the queries that are asked, and compares their answers with the exact ones.

    `note` may be called from any thread and takes microseconds; `run` takes as long as it is
    allowed to and is called by one thread at a time.

    Args:
        size: How many queries are kept.
        seed: For which ones.

    Example:
        >>> from costream.scoring.kernels import build
        >>> kernel = build(np.eye(4, dtype=np.float16))
        >>> audit = RecallAudit()
        >>> audit.note(np.eye(4, dtype=np.float32)[:2], top=2)
        >>> audit.run(kernel, budget_s=1.0)
        2
        >>> audit.estimate().recall
        1.0
    """

    def __init__(self, size: int = 256, seed: int = 0) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()
        self._turn = 0

    def note(self, queries_QD: NDArray[Any], top: int, where: Hashable = None) -> None:
        """Perhaps keep queries that were just answered.

        Args:
            queries_QD: Floating point (Q, D).
            top: How many results were wanted.
            where: The condition they were asked under, in whatever form `run` can make a mask of;
                None for none.
        """
        with self._lock:
            conditioned = sum(kept.where is not None for kept in self._kept)
            for query_D in queries_QD:
                if len(self._kept) >= self._size and self._random.random() * REPLACED >= 1:
                    continue
                if where is not None and (conditioned + 1) * CONDITIONED > self._size:
                    continue
                conditioned += where is not None
                kept = _Kept(np.array(query_D, dtype=np.float32), top, where)
                if len(self._kept) < self._size:
                    self._kept.append(kept)
                else:
                    self._kept[int(self._random.integers(self._size))] = kept

    def run(
        self, kernel: Kernel, *, budget_s: float, allowed_of: AllowedOf = lambda where: None
    ) -> int:
        """Audit queries that were not audited yet, or else those of longest ago again.

        Args:
            kernel: What answers.
            budget_s: Another pass is not begun after this many seconds.
            allowed_of: Gives the mask of rows for a condition that `note` was given.

        Returns:
            How many queries were audited.
        """
        started, done = time.monotonic(), 0
        waiting = self._waiting()
        while waiting and time.monotonic() - started < budget_s:
            first = waiting[0]
            batch = [
                kept for kept in waiting if (kept.where, kept.top) == (first.where, first.top)
            ][:TOGETHER]
            taken = set(map(id, batch))
            waiting = [kept for kept in waiting if id(kept) not in taken]
            done += self._compare(kernel, batch, allowed_of(first.where))
        return done

    def _waiting(self) -> list[_Kept]:
        """Those to audit: the new ones, or all when there is none."""
        with self._lock:
            new = [kept for kept in self._kept if not kept.turn]
            return new or sorted(self._kept, key=lambda kept: kept.turn)

    def _compare(
        self, kernel: Kernel, batch: Sequence[_Kept], allowed_N: NDArray[np.bool_] | None
    ) -> int:
        rows, top = kernel.rows, batch[0].top
        queries_QD = np.stack([kept.query_D for kept in batch])
        # One by one, so that nobody's query waits for more than one of these.
        found = [kernel.top(query_D[None], top, allowed_N)[0][0] for query_D in queries_QD]
        if kernel.rows is not rows:  # rows came or went: the two answers cannot be compared
            return 0
        self._turn += 1
        _, true_scores = exactly(rows, queries_QD, top, allowed_N)
        for kept, found_K, query_D, scores_K in zip(
            batch, found, queries_QD, true_scores, strict=True
        ):
            # By score, so that one of several equally good rows is as good as another.
            got_K = rows.scores(query_D, found_K)
            kept.hits = int(np.count_nonzero(got_K >= scores_K.min(initial=np.inf)))
            kept.wanted, kept.turn = len(scores_K), self._turn
        return len(batch)

    def estimate(self) -> RecallEstimate | None:
        """What is known so far; None before any query was audited."""
        with self._lock:
            audited = [(kept.hits, kept.wanted) for kept in self._kept if kept.wanted]
        return estimate_recall(audited) if audited else None

    def forget(self, *, conditions_too: bool = False) -> None:
        """Audit all queries again, as after the kernel has changed.

        Args:
            conditions_too: Whether queries under a condition are dropped, since it fits no more.
        """
        with self._lock:
            if conditions_too:
                self._kept = [kept for kept in self._kept if kept.where is None]
            for kept in self._kept:
                kept.hits = kept.wanted = kept.turn = 0


def estimate_recall(audited: Sequence[tuple[int, int]]) -> RecallEstimate:
    """Recall and its 95 % interval, by Wilson's formula.

    Misses of one query often have one cause, so results of a query are not independent. The
    number of results is therefore divided by how much more the hits of queries vary than
    independent ones would (the design effect).

    Args:
        audited: Per query the results found and those wanted, at least one.

    Returns:
        The estimate.

    Example:
        >>> estimate = estimate_recall([(10, 10)] * 99 + [(9, 10)])
        >>> round(estimate.recall, 4), round(estimate.low, 3), round(estimate.high, 4)
        (0.999, 0.994, 0.9998)
    """
    hits_Q, wanted_Q = np.array(audited, dtype=np.float64).T
    total = wanted_Q.sum()
    recall = hits_Q.sum() / total
    expected = (wanted_Q * recall * (1 - recall)).sum()
    observed = ((hits_Q - wanted_Q * recall) ** 2).sum()
    effect = max(observed / expected, 1.0) if expected > 0 else 1.0
    num = total / effect
    middle = (recall + _Z**2 / (2 * num)) / (1 + _Z**2 / num)
    half = _Z / (1 + _Z**2 / num) * math.sqrt(recall * (1 - recall) / num + (_Z / (2 * num)) ** 2)
    return RecallEstimate(
        recall=float(recall),
        low=float(max(middle - half, 0.0)),
        high=float(min(middle + half, 1.0)),
        num_queries=len(audited),
    )


class BackgroundAudit:
    """Runs an audit in a thread, for a small share of the time, until it is closed.

    Args:
        audit: What to run.
        kernel_of: Gives the kernel that answers at present; None when there is none.
        allowed_of: As of `RecallAudit.run`.
        share: Largest share of the time that is spent.
        target: Recall below which the kernel is told to look at more rows.
        pause_s: Shortest time between two runs.
    """

    def __init__(
        self,
        audit: RecallAudit,
        kernel_of: Callable[[], Kernel | None],
        *,
        allowed_of: AllowedOf = lambda where: None,
        share: float = 0.05,
        target: float = 0.99,
        pause_s: float = 10.0,
    ) -> None:
        self._audit, self._kernel_of, self._allowed_of = audit, kernel_of, allowed_of
        self._share, self._target, self._pause_s = share, target, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recall-audit", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        wait_s = self._pause_s
        while not self._stop.wait(wait_s):
            started = time.monotonic()
            kernel = self._kernel_of()
            if kernel is not None and not kernel.exact:
                try:
                    self._audit.run(kernel, budget_s=self._pause_s, allowed_of=self._allowed_of)
                except DataError:  # rows in a damaged file; who asks for them gets them anew
                    self._audit.forget()
                deepen_if_needed(kernel, self._audit, self._target)
            spent_s = time.monotonic() - started
            wait_s = max(self._pause_s, spent_s * (1 / self._share - 1))

    def stop(self) -> None:
        """Begin no further pass."""
        self._stop.set()

    def close(self) -> None:
        """Stop, after the pass that is under way if that ends soon; what it finds is ignored."""
        self._stop.set()
        self._thread.join(PATIENCE_S)


def deepen_if_needed(kernel: Kernel, audit: RecallAudit, target: float) -> bool:
    """Have the kernel look at more rows when its recall is certainly below a target.

    Args:
        kernel: An approximate kernel.
        audit: What was measured of it; starts anew when the kernel is changed.
        target: The recall wanted, 0 to 1.

    Returns:
        Whether the kernel was changed.
    """
    estimate = audit.estimate()
    if estimate is None or estimate.high >= target:
        return False
    kernel.deepen()
    audit.forget()
    return True
