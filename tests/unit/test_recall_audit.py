"""Law: the audit says what share of the true results is found, no more and no less."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.scoring.audit import (
    BackgroundAudit,
    RecallAudit,
    deepen_if_needed,
    estimate_recall,
)
from costream.scoring.kernels import ExactKernel, Found, Rows

DIM = 16


class Forgetful:
    """The exact kernel, but every second row is found only after it was told to look deeper."""

    name = "forgetful"
    exact = False
    memory_bytes = 0

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self.whole = ExactKernel(vectors)
        self.depth = 1

    @property
    def rows(self) -> Rows:
        return self.whole.rows

    def __len__(self) -> int:
        return len(self.whole)

    def top(
        self,
        queries_QD: NDArray[np.float32],
        top: int,
        allowed_N: NDArray[np.bool_] | None = None,
        *,
        order_N: NDArray[np.int64] | None = None,
    ) -> Found:
        seen = np.ones(len(self), bool) if allowed_N is None else allowed_N.copy()
        if self.depth == 1:
            seen[::2] = False
        return self.whole.top(queries_QD, top, seen, order_N=order_N)

    def grow(self, vectors_ND: NDArray[np.float16]) -> None:
        self.whole.grow(vectors_ND)

    def remove(self, rows: NDArray[np.int64]) -> None:
        self.whole.remove(rows)

    def deepen(self) -> None:
        self.depth *= 2


def vectors_of(seed: int, rows: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float16)


def queries_of(seed: int, rows: int) -> NDArray[np.float32]:
    return vectors_of(seed, rows).astype(np.float32)


def true_recall(kernel: Forgetful, queries: NDArray[np.float32], top: int) -> float:
    found, _ = kernel.top(queries, top)
    want, _ = kernel.whole.top(queries, top)
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(want, found, strict=True)]))


def test_the_estimate_is_the_recall_of_the_queries_that_were_asked() -> None:
    kernel, queries = Forgetful(vectors_of(0, 2000)), queries_of(1, 100)
    audit = RecallAudit(size=100)
    assert audit.estimate() is None
    audit.note(queries, 10)
    assert audit.estimate() is None
    assert audit.run(kernel, budget_s=60) == 100
    estimate = audit.estimate()
    assert estimate is not None
    assert estimate.recall == pytest.approx(true_recall(kernel, queries, 10))
    assert estimate.low < estimate.recall < estimate.high
    assert estimate.num_queries == 100


def test_an_equally_good_row_counts_as_found() -> None:
    kernel = Forgetful(np.repeat(vectors_of(0, 50), 2, axis=0))
    audit = RecallAudit()
    audit.note(queries_of(1, 20), 1)
    audit.run(kernel, budget_s=60)
    estimate = audit.estimate()
    assert estimate is not None
    assert estimate.recall == 1.0


def test_queries_are_audited_under_the_conditions_they_were_asked_under() -> None:
    kernel = Forgetful(vectors_of(0, 1000))
    asked: list[Hashable] = []

    def allowed_of(where: Hashable) -> NDArray[np.bool_] | None:
        asked.append(where)
        return None if where is None else np.arange(1000) % 2 == (where == "odd")

    audit = RecallAudit()
    audit.note(queries_of(1, 10), 5, where="odd")
    audit.run(kernel, budget_s=60, allowed_of=allowed_of)
    assert asked == ["odd"]
    estimate = audit.estimate()
    assert estimate is not None
    assert estimate.recall == 1.0
    audit.note(queries_of(2, 10), 5, where="even")
    assert audit.run(kernel, budget_s=60, allowed_of=allowed_of) == 10  # only the new ones
    estimate = audit.estimate()
    assert estimate is not None
    assert estimate.recall == 0.5
    audit.note(queries_of(3, 4), 5, where="nothing matches")
    audit.run(kernel, budget_s=60, allowed_of=lambda where: np.zeros(1000, bool))
    assert audit.estimate() == estimate


def test_a_budget_that_is_spent_stops_the_run() -> None:
    kernel = Forgetful(vectors_of(0, 500))
    audit = RecallAudit()
    audit.note(queries_of(1, 100), 5)
    assert audit.run(kernel, budget_s=0) == 0
    assert audit.run(kernel, budget_s=1e-9) <= 32


def test_what_is_kept_is_bounded_and_recent() -> None:
    audit = RecallAudit(size=16)
    for number in range(2000):
        audit.note(np.full((1, DIM), number + 1, np.float32), 1)
    ages = [2000 - kept.query_D[0] for kept in audit._kept]
    assert len(ages) == 16
    assert np.median(ages) < 500  # places are taken over after about 128 queries
    assert max(ages) > 16  # but it is not simply the last ones


def test_answers_of_different_states_are_not_compared() -> None:
    vectors = vectors_of(0, 600)

    class Growing(Forgetful):
        def top(self, *arguments: object, **named: object) -> Found:  # type: ignore[override]
            answer = super().top(*arguments, **named)  # type: ignore[arg-type]
            self.grow(vectors[: len(self) + 1])
            return answer

    audit = RecallAudit()
    audit.note(queries_of(1, 5), 3)
    assert audit.run(Growing(vectors[:500]), budget_s=60) == 0
    assert audit.estimate() is None


@pytest.mark.parametrize(("recall", "spread"), [(0.99, 0.0), (0.95, 0.0), (0.95, 0.3), (0.8, 0.2)])
def test_the_interval_holds_the_truth_19_times_in_20(recall: float, spread: float) -> None:
    """Also when misses come together: some queries lose many results and most lose none."""
    rng = np.random.default_rng(0)
    holds, trials = 0, 600
    for _ in range(trials):
        share = np.full(200, recall)
        if spread:
            share = rng.beta(recall / spread, (1 - recall) / spread, 200)
        hits = rng.binomial(10, share)
        estimate = estimate_recall([(int(hit), 10) for hit in hits])
        holds += estimate.low <= recall <= estimate.high
    assert 0.91 <= holds / trials <= 0.995


def test_nothing_missed_is_no_proof_of_perfection() -> None:
    few, many = (estimate_recall([(10, 10)] * number) for number in (3, 300))
    assert few.low < 0.95
    assert 0.995 < many.low < 1.0
    assert min(few.high, many.high) == pytest.approx(1.0)


def test_a_kernel_that_misses_too_much_is_made_to_look_deeper() -> None:
    kernel = Forgetful(vectors_of(0, 2000))
    audit = RecallAudit()
    assert not deepen_if_needed(kernel, audit, 0.99)
    audit.note(queries_of(1, 60), 10)
    audit.run(kernel, budget_s=60)
    assert deepen_if_needed(kernel, audit, 0.99)
    assert audit.estimate() is None
    audit.run(kernel, budget_s=60)
    assert not deepen_if_needed(kernel, audit, 0.99)
    estimate = audit.estimate()
    assert estimate is not None
    assert estimate.recall == 1.0


def test_in_the_background_while_queries_come() -> None:
    kernel = Forgetful(vectors_of(0, 2000))
    audit = RecallAudit()
    background = BackgroundAudit(audit, lambda: kernel, pause_s=0.01, share=0.9)
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            audit.note(queries_of(int(time.monotonic_ns() % 1000), 5), 10)
            estimate = audit.estimate()
            if kernel.depth > 1 and estimate is not None and estimate.recall == 1.0:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the kernel was not deepened within a minute")
    finally:
        background.close()
    assert "recall-audit" not in {thread.name for thread in threading.enumerate()}
