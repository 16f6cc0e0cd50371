"""Laws of an index whose answers come from a kernel: filters, changes, and what answers say."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import ConfigError
from costream.index import Filter, Index, Item, open_index, watch
from costream.records import Ranking, Space
from costream.scoring import audit
from costream.scoring.kernels import Found, choosing, exactly, installed

DIM = 32
NUM_ITEMS = 12_000
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=DIM)
SHARES = {"half": 0.5, "tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001, "none": 0.0}


def unit(rows: int, seed: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


VECTORS = unit(NUM_ITEMS, 0)
QUERIES = unit(20, 1)


def items(*numbers: int) -> list[Item]:
    found = []
    for number in numbers:
        share = number * 7919 % NUM_ITEMS / NUM_ITEMS
        kinds = tuple(name for name, limit in SHARES.items() if share < limit)
        found.append(Item(id=f"{number:06d}", tags=kinds))
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that no test changes."""
    place = tmp_path_factory.mktemp("index")
    with Index.open(place, create=True) as index:
        index.add(items(*range(NUM_ITEMS)), VECTORS, SPACE)
        index.load()
    return place


@pytest.fixture(params=["exact", "four_bit", "graph"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every kernel, with so few rows for which it passes over all that it does its work here."""
    name: str = request.param
    if name not in installed():
        pytest.skip(f"{name} is not installed")
    if name == "four_bit":
        from costream.scoring.kernels import four_bit

        monkeypatch.setattr(four_bit, "FEW", 50)
    if name == "graph":
        from costream.scoring.kernels import graph

        monkeypatch.setattr(graph, "FEW_ROWS", 200)
        monkeypatch.setattr(graph, "FEW", 12)
        monkeypatch.setattr(graph, "LOOKED_AT_ADDING", 48)  # builds in a third of the time
    return name


@pytest.fixture
def changing(tmp_path: Path, kernel: str) -> Iterator[Index]:
    """An index of the first 5,000 items that has answered once."""
    with Index.open(tmp_path, create=True, kernel=kernel) as index:
        index.add(items(*range(5000)), VECTORS[:5000], SPACE)
        index.search(QUERIES, SPACE, 10)
        yield index


def true_best(vectors: dict[str, NDArray[np.float32]], top: int) -> list[set[str]]:
    names = list(vectors)
    stored = np.stack([vectors[name] for name in names]).astype(np.float16).astype(np.float64)
    best = np.argsort(-(QUERIES.astype(np.float64) @ stored.T), axis=1, kind="stable")[:, :top]
    return [{names[row] for row in rows} for rows in best]


def recall(found: Ranking, true: list[set[str]]) -> float:
    hits = sum(len(set(ids) & best) for ids, best in zip(found.ids, true, strict=True))
    return hits / max(sum(map(len, true)), 1)


def test_filters_of_every_selectivity_give_all_they_can_on_every_kernel(
    directory: Path, kernel: str
) -> None:
    vectors = {item.id: VECTORS[row] for row, item in enumerate(items(*range(NUM_ITEMS)))}
    with Index.open(directory, kernel=kernel) as index:
        for name, share in SHARES.items():
            found = index.search(QUERIES, SPACE, 10, where=Filter(tags=(name,)))
            assert (found.kernel, found.exact) == (kernel, kernel == "exact")
            matching = index.matches(Filter(tags=(name,)))
            assert len(matching) == NUM_ITEMS * share
            for ids in found.ids:
                assert len(ids) == len(set(ids)) == min(10, len(matching))
                assert matching.issuperset(ids)
            if matching:
                true = true_best({one: vectors[one] for one in sorted(matching)}, 10)
                assert recall(found, true) >= 0.99


def test_what_is_added_replaced_and_removed_counts_at_once(changing: Index) -> None:
    vectors = {item.id: VECTORS[row] for row, item in enumerate(items(*range(5000)))}
    for step in range(12):
        new = items(*range(5000 + 100 * step, 5100 + 100 * step), *range(40 * step, 40 * step + 9))
        some = unit(len(new), 10 + step)
        changing.add(new, some, SPACE)
        vectors |= {item.id: vector for item, vector in zip(new, some, strict=True)}
        # The best of all are removed, so that a row that stays behind would be found.
        gone = {found[0] for found in changing.search(QUERIES, SPACE, 1).ids}
        changing.remove(gone)
        for one in gone:
            del vectors[one]
        found = changing.search(QUERIES, SPACE, 10)
        assert not gone & {one for ids in found.ids for one in ids}
        assert recall(found, true_best(vectors, 10)) >= 0.99
        scores = [
            vectors[ids[0]].astype(np.float16) @ q
            for ids, q in zip(found.ids, QUERIES, strict=True)
        ]
        assert np.allclose([got[0] for got in found.scores], scores, atol=1e-6)


def test_most_items_may_be_removed(changing: Index) -> None:
    """Far more than those for which rows are only marked as void."""
    changing.remove(item.id for item in items(*range(40, 5000)))
    vectors = {item.id: VECTORS[row] for row, item in enumerate(items(*range(40)))}
    found = changing.search(QUERIES, SPACE, 50)
    assert [len(ids) for ids in found.ids] == [40] * len(QUERIES)
    assert recall(changing.search(QUERIES, SPACE, 10), true_best(vectors, 10)) == 1.0


def test_searches_go_on_while_items_come_and_go(changing: Index) -> None:
    """Items 0 to 4,999 stay: every answer holds ten of what there was, and those that stay."""
    stop = threading.Event()
    failures: list[BaseException] = []
    count = 0

    def ask() -> None:
        nonlocal count
        try:
            while not stop.is_set():
                found = changing.search(QUERIES[:2], SPACE, 10)
                assert [len(ids) for ids in found.ids] == [10, 10]
                count += 1
        except BaseException as error:  # told to the test's own thread
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for step in range(20):
        new = items(*range(5000 + 50 * step, 5050 + 50 * step))
        changing.add(new, unit(50, 40 + step), SPACE)
        changing.remove(item.id for item in new[::2])
    stop.set()
    asking.join()
    assert not failures
    assert count > 0
    gone = {item.id for item in items(*range(5000, 6000))[::2]}
    assert not gone & {one for ids in changing.search(QUERIES, SPACE, 50).ids for one in ids}


# --- which kernel ---


@pytest.mark.skipif("four_bit" not in installed(), reason="turbovec is not installed")
def test_a_collection_that_grows_or_shrinks_past_the_measured_size_changes_its_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "EXACT_UP_TO", 1000 * DIM)
    with Index.open(tmp_path, create=True) as index:
        said = []
        for start in range(0, 1500, 500):
            index.add(items(*range(start, start + 500)), VECTORS[start : start + 500], SPACE)
            found = index.search(QUERIES, SPACE, 5)
            said.append((found.kernel, found.exact))
        assert said == [("exact", True), ("exact", True), ("four_bit", False)]
        index.remove(item.id for item in items(*range(700, 1500)))
        assert index.search(QUERIES, SPACE, 5).kernel == "exact"


def test_without_the_package_large_collections_are_searched_exactly(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(choosing, "find_spec", lambda name: None if name == "turbovec" else name)
    with Index.open(directory) as index:
        assert index.search(QUERIES, SPACE, 5).kernel == "exact"
    with pytest.raises(ConfigError, match="turbovec") as error:
        Index.open(directory, kernel="four_bit")
    assert "costream[fast]" in str(error.value)


def test_a_kernel_that_there_is_not_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of exact, four_bit, graph"):
        open_index(tmp_path / "none", kernel="magic")
    with pytest.raises(ConfigError, match="kernel='exact' for a database"):
        open_index("postgresql://nowhere/none", kernel="exact")


# --- what answers say ---


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PAUSE_S", 0.01)


@pytest.mark.usefixtures("_soon")
def test_answers_carry_the_recall_that_was_measured_on_the_queries_asked(
    directory: Path, kernel: str
) -> None:
    with Index.open(directory, kernel=kernel) as index:
        first = index.search(QUERIES, SPACE, 10)
        assert first.recall is None
        if kernel == "exact":
            return
        deadline = time.monotonic() + 20
        found = first
        while found.recall is None and time.monotonic() < deadline:
            time.sleep(0.02)
            found = index.search(QUERIES[:1], SPACE, 10, where=Filter(tags=("half",)))
        assert found.recall is not None
        true = true_best(
            {i.id: v for i, v in zip(items(*range(NUM_ITEMS)), VECTORS, strict=True)}, 10
        )
        assert found.recall == pytest.approx(recall(first, true), abs=0.02)


@pytest.mark.usefixtures("_soon")
def test_an_audit_that_takes_long_holds_up_neither_searches_nor_closing(
    directory: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stuck(*arguments: object) -> Found:
        begun.set()
        go_on.wait(30)
        return exactly(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(audit, "exactly", stuck)
    monkeypatch.setattr(audit, "PATIENCE_S", 0.01)
    index = Index.open(directory, kernel=kernel)
    want = index.search(QUERIES, SPACE, 10).ids
    if kernel != "exact":
        assert begun.wait(20)
        assert index.search(QUERIES, SPACE, 10).ids == want
    index.close()
    go_on.set()


@pytest.mark.usefixtures("_soon")
def test_when_rows_get_other_numbers_the_audit_starts_anew(tmp_path: Path, kernel: str) -> None:
    """Masks of before would fit other rows and make recall look bad, or good."""
    where = Filter(tags=("half",))
    with Index.open(tmp_path, create=True, kernel=kernel) as index:
        index.add(items(*range(5000)), VECTORS[:5000], SPACE)
        for query in QUERIES:
            index.search(query[None], SPACE, 10, where=where)
        index.remove(item.id for item in items(*range(2000)))
        deadline = time.monotonic() + 20
        found = index.search(QUERIES, SPACE, 10, where=where)
        while kernel != "exact" and found.recall is None and time.monotonic() < deadline:
            time.sleep(0.02)
            found = index.search(QUERIES, SPACE, 10, where=where)
        assert found.recall is None if kernel == "exact" else found.recall is not None
        assert found.recall is None or found.recall >= 0.95


@pytest.mark.usefixtures("_soon")
def test_an_index_that_was_only_let_go_of_leaves_no_thread(directory: Path, kernel: str) -> None:
    Index.open(directory, kernel=kernel).search(QUERIES, SPACE, 10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        gc.collect()
        if "recall-audit" not in {thread.name for thread in threading.enumerate()}:
            return
        time.sleep(0.02)
    raise AssertionError("the thread goes on")
