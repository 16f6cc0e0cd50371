"""The contract of every kernel: true scores in the right order, and no more missed than it says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError
from costream.scoring.kernels import Kernel, Metric, RowBuffer, build, exact, installed

Vectors = NDArray[np.float16]
DIM = 64


@dataclass(frozen=True)
class Made:
    """A kernel by name; `exact-int8` is the exact one with its pass for large collections."""

    name: str

    def __call__(self, vectors: Vectors, metric: Metric = "dot") -> Kernel:
        kernel = build(vectors, kernel=self.name.removesuffix("-int8"), metric=metric)
        if self.name == "exact-int8":
            # The pass is made from the second search on.
            kernel.top(np.ones((1, vectors.shape[1]), np.float32), 1)
        return kernel


@pytest.fixture(params=["exact-int8", *sorted(installed())])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Made:
    if request.param == "exact-int8":
        from costream.scoring.kernels import int8

        monkeypatch.setattr(exact, "LARGE", 0)
        # On a machine without instructions for it it is right as well, only slow.
        monkeypatch.setattr(int8, "pays", lambda dim: True)
        monkeypatch.setattr(int8, "BLOCK_ROWS", 2**8)
        monkeypatch.setattr(int8, "LAST_ROWS", 2**6)
    elif request.param == "graph":
        from costream.scoring.kernels import graph

        monkeypatch.setattr(graph, "FEW_ROWS", 200)
        monkeypatch.setattr(graph, "LOOKED_AT_ADDING", 48)  # builds in a third of the time
    elif request.param == "four_bit":
        from costream.scoring.kernels import four_bit

        monkeypatch.setattr(four_bit, "FEW", 100)
        monkeypatch.setattr(four_bit, "CODED_ROWS", 700)
    return Made(request.param)


def unit(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def world(
    rows: int, queries: int, seed: int = 0, dim: int = DIM
) -> tuple[Vectors, NDArray[np.float32]]:
    """Clustered pictures, and noisy texts in another cone, each about one of the pictures."""
    rng = np.random.default_rng(seed)
    topics = unit(rng.standard_normal((40, dim)))
    of_pictures, of_texts = unit(rng.standard_normal((2, dim)))
    spread = dim**-0.5 * rng.standard_normal((rows, dim))
    meant = topics[rng.integers(40, size=rows)] + 0.6 * spread
    about = meant[rng.integers(rows, size=queries)]
    noise = dim**-0.5 * rng.standard_normal((queries, dim))
    pictures = unit(meant + 0.8 * of_pictures).astype(np.float16)
    return pictures, unit(about + 0.8 * of_texts + 0.5 * noise)


def true_scores(
    vectors: Vectors, query: NDArray[np.float32], metric: Metric = "dot"
) -> NDArray[np.float32]:
    """float32(sum_d float64(x_d) float64(q_d)) [/ (|x| |q|)]"""
    wide, query64 = vectors.astype(np.float64), query.astype(np.float64)
    scores = (wide * query64).sum(axis=1)
    if metric == "cosine":
        scores /= np.sqrt((wide**2).sum(axis=1)) * np.sqrt((query64**2).sum())
    return scores.astype(np.float32)


def best_rows(
    scores: NDArray[np.float32], top: int, allowed: NDArray[np.bool_] | None = None
) -> list[int]:
    """In the order of (-score, row)."""
    rows = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    return rows[np.lexsort((rows, -scores[rows]))][:top].tolist()


def check(
    kernel: Kernel,
    vectors: Vectors,
    queries: NDArray[np.float32],
    top: int,
    allowed: NDArray[np.bool_] | None = None,
    metric: Metric = "dot",
    recall: float = 0.99,
) -> None:
    """Exact kernels answer as brute force does; others with true scores, in order, and most."""
    found, scores = kernel.top(queries, top, allowed)
    assert len(found) == len(scores) == len(queries)
    hits = total = 0
    for query, got_rows, got_scores in zip(queries, found, scores, strict=True):
        true = true_scores(vectors, query, metric)
        want_rows = best_rows(true, top, allowed)
        assert (got_rows.dtype, got_scores.dtype) == (np.int64, np.float32)
        assert got_scores.tolist() == true[got_rows].tolist()
        if kernel.exact:
            assert got_rows.tolist() == want_rows
        assert len(got_rows) == len(want_rows) == len(set(got_rows.tolist()))
        assert sorted(got_rows, key=lambda row: (-true[row], row)) == got_rows.tolist()
        if allowed is not None:
            assert allowed[got_rows].all()
        hits += len(set(got_rows.tolist()) & set(want_rows))
        total += len(want_rows)
    assert hits >= recall * total


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize(("rows", "top"), [(1, 1), (33, 5), (700, 10), (5000, 10), (5000, 700)])
def test_finds_the_best_with_their_true_scores(
    make: Made, metric: Metric, rows: int, top: int
) -> None:
    vectors, queries = world(rows, 25)
    check(make(vectors, metric), vectors, queries, top, metric=metric)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_vectors_of_many_lengths(make: Made, metric: Metric) -> None:
    vectors, queries = world(3000, 20)
    lengths = np.random.default_rng(1).uniform(0.5, 20, (3000, 1))
    vectors = (vectors * lengths).astype(np.float16)
    # In another order by dot product than by cosine.
    by_dot, by_cosine = (true_scores(vectors, queries[0], kind) for kind in ("dot", "cosine"))
    assert best_rows(by_dot, 10) != best_rows(by_cosine, 10)
    check(make(vectors, metric), vectors, queries * np.float32(7), 10, metric=metric)


def test_one_vector_much_longer_than_all_others(make: Made) -> None:
    vectors, queries = world(3000, 10)
    vectors[1234] *= np.float16(20_000)
    if make.name == "graph":
        with pytest.raises(ConfigError, match="length 2e\\+04"):
            make(vectors)
    else:
        check(make(vectors), vectors, queries, 10)


def test_more_wanted_than_there_are(make: Made) -> None:
    vectors, queries = world(50, 3)
    check(make(vectors), vectors, queries, 1000, recall=1.0)


def test_nothing_to_search_and_nothing_asked(make: Made) -> None:
    kernel = make(np.empty((0, DIM), np.float16))
    rows, scores = kernel.top(np.ones((2, DIM), np.float32), 3)
    assert [len(found) for found in (*rows, *scores)] == [0, 0, 0, 0]
    assert make(world(20, 1)[0]).top(np.empty((0, DIM), np.float32), 3) == ([], [])


def test_equal_scores_come_in_row_order_or_in_the_order_asked_for(make: Made) -> None:
    vectors, queries = world(2000, 4)
    vectors[500:540] = vectors[7]
    query = vectors[7:8].astype(np.float32)
    kernel = make(vectors)
    (rows,), (scores,) = kernel.top(query, 20)
    assert len(set(scores.tolist())) == 1
    assert rows.tolist() == sorted(rows.tolist())
    if kernel.exact:
        assert rows.tolist() == [7, *range(500, 519)]
        order = -np.arange(2000)
        (rows,), _ = kernel.top(query, 20, order_N=order)
        assert rows.tolist() == [*range(539, 519, -1)]
    check(kernel, vectors, queries, 10)


def test_all_vectors_the_same(make: Made) -> None:
    vectors = np.tile(world(1, 1)[0], (3000, 1))
    (rows,), (scores,) = make(vectors).top(world(1, 1)[1], 12)
    assert len(rows) == 12
    assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001, 0.0])
def test_filters_give_what_matches_and_nothing_else(make: Made, share: float) -> None:
    vectors, queries = world(8000, 12)
    allowed = np.random.default_rng(2).random(8000) < share
    check(make(vectors), vectors, queries, 10, allowed)


def test_a_filter_that_is_far_from_the_query(make: Made) -> None:
    """Matches that all score badly: approximate search after the fact would find none."""
    vectors, queries = world(6000, 8)
    allowed = np.zeros(6000, dtype=bool)
    scores = vectors.astype(np.float32) @ queries[0]
    allowed[np.argsort(scores)[:300]] = True
    check(make(vectors), vectors, queries, 10, allowed)


def test_rows_added_later_are_found(make: Made) -> None:
    vectors, queries = world(4000, 15)
    buffer = RowBuffer(DIM)
    kernel = make(buffer.append(vectors[:100]))
    for start, stop in ((100, 101), (101, 2500), (2500, 2500), (2500, 4000)):
        kernel.grow(buffer.append(vectors[start:stop]))
        assert len(kernel) == stop
        check(kernel, vectors[:stop], queries, 10)


def test_removed_rows_are_never_found_and_others_keep_their_numbers(make: Made) -> None:
    vectors, queries = world(3000, 15)
    kernel = make(vectors[:2000])
    gone = np.random.default_rng(3).permutation(2000)[:900]
    kernel.remove(gone[:500])
    kernel.grow(vectors)
    kernel.remove(gone)
    alive = np.ones(3000, dtype=bool)
    alive[gone] = False
    assert (len(kernel), kernel.rows.num_removed) == (3000, 900)
    check_alive(kernel, vectors, queries, alive)
    kernel.remove(np.arange(3000))
    rows, _ = kernel.top(queries, 10)
    assert [len(found) for found in rows] == [0] * 15


def check_alive(
    kernel: Kernel, vectors: Vectors, queries: NDArray[np.float32], alive: NDArray[np.bool_]
) -> None:
    check_some(kernel, vectors, queries, alive, None)
    check_some(kernel, vectors, queries, alive, np.random.default_rng(4).random(len(vectors)) < 0.3)


def check_some(
    kernel: Kernel,
    vectors: Vectors,
    queries: NDArray[np.float32],
    alive: NDArray[np.bool_],
    allowed: NDArray[np.bool_] | None,
) -> None:
    findable = alive if allowed is None else alive & allowed
    rows, scores = kernel.top(queries, 10, allowed)
    hits = 0
    for query, got_rows, got_scores in zip(queries, rows, scores, strict=True):
        true = true_scores(vectors, query)
        want_rows = best_rows(true, 10, findable)
        assert findable[got_rows].all()
        assert len(got_rows) == 10
        hits += len(set(got_rows.tolist()) & set(want_rows))
        if kernel.exact:
            assert got_rows.tolist() == want_rows
        assert got_scores.tolist() == true[got_rows].tolist()
    assert hits >= 0.99 * 10 * len(queries)


def test_what_was_prepared_before_rows_came_stays_valid(make: Made) -> None:
    vectors, queries = world(900, 3)
    kernel = make(vectors)
    allowed = np.ones(600, dtype=bool)
    whole = np.arange(900) < 600
    for rows in (kernel.top(queries, 10, allowed)[0], kernel.top(queries, 10, whole)[0]):
        assert all((found < 600).all() for found in rows)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda q: np.full_like(q, np.nan), NumericalError, "not finite"),
        (lambda q: np.where(q > 0.3, np.inf, q), NumericalError, "not finite"),
        (lambda q: q * 0, NumericalError, "length 0"),
        (lambda q: q[:, :-8], DataError, f"{DIM - 8} dimensions, expected {DIM}"),
        (lambda q: q[0], DataError, "shape"),
        (lambda q: q.astype(int), DataError, "int64"),
    ],
)
def test_queries_without_meaning_are_refused(
    make: Made,
    spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    error: type[Exception],
    message: str,
) -> None:
    vectors, _ = world(100, 1)
    queries = np.eye(DIM, dtype=np.float32)[:2]
    with pytest.raises(error, match=message):
        make(vectors).top(spoil(queries), 3)


def test_wrong_arguments_are_refused(make: Made) -> None:
    vectors, queries = world(100, 1)
    kernel = make(vectors)
    with pytest.raises(ConfigError, match="top=0"):
        kernel.top(queries, 0)
    with pytest.raises(DataError, match="expected bool"):
        kernel.top(queries, 1, np.ones(100, np.int64))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="101"):
        kernel.top(queries, 1, np.ones(101, bool))
    with pytest.raises(DataError, match="row"):
        kernel.remove(np.array([100]))
    with pytest.raises(DataError, match="old rows first"):
        kernel.grow(vectors[:50])
    with pytest.raises(DataError, match="float16"):
        make(vectors.astype(np.float32))  # type: ignore[arg-type]


def test_many_threads_get_the_answers_of_one_while_rows_come_and_go(make: Made) -> None:
    vectors, queries = world(3000, 8)
    buffer = RowBuffer(DIM)
    kernel = make(buffer.append(vectors[:1500]))
    settled = np.arange(1000) >= 200  # of rows that are there all the time
    before = [rows.tolist() for rows in kernel.top(queries, 10, settled)[0]]
    problems: list[str] = []
    stop = threading.Event()

    def search(number: int) -> None:
        while not stop.is_set():
            query = queries[number : number + 1]
            (rows,), (scores,) = kernel.top(query, 10, settled)
            if kernel.exact and rows.tolist() != before[number]:
                problems.append(f"{rows} instead of {before[number]}")
            if len(rows) != 10 or not settled[rows].all():
                problems.append(f"got {rows}")
            if scores.tolist() != sorted(scores.tolist(), reverse=True):
                problems.append(f"scores {scores}")

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for start in range(1500, 3000, 100):
        kernel.grow(buffer.append(vectors[start : start + 100]))
        kernel.remove(np.arange(start, start + 50))
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    alive = np.ones(3000, dtype=bool)
    for start in range(1500, 3000, 100):
        alive[start : start + 50] = False
    check_alive(kernel, vectors, queries, alive)


def test_a_query_alone_is_answered_as_in_any_batch(make: Made) -> None:
    vectors, queries = world(4000, 150)
    kernel = make(vectors)
    rows, scores = kernel.top(queries, 7)
    for number in (0, 1, 63, 64, 149):
        (alone_rows,), (alone_scores,) = kernel.top(queries[number : number + 1], 7)
        if kernel.exact:
            assert alone_rows.tolist() == rows[number].tolist()
            assert alone_scores.tobytes() == scores[number].tobytes()


def test_the_truth_is_never_written_to(make: Made) -> None:
    vectors, queries = world(2000, 3)
    vectors.flags.writeable = False
    kernel = make(vectors, "cosine")
    kernel.top(queries, 5)
    kernel.remove(np.array([3]))
    check(kernel, vectors, queries, 5, np.arange(2000) != 3, metric="cosine")


def test_looking_deeper_keeps_the_contract(make: Made) -> None:
    vectors, queries = world(3000, 15)
    kernel = make(vectors)
    kernel.deepen()
    check(kernel, vectors, queries, 10, recall=0.995)
