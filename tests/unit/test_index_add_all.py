"""Laws: adding in bulk ends as adding one by one does; an error belongs to its batch; what was told
is stored; and the next batch is made while one is stored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import CostreamError, DataError, NumericalError, SpaceMismatch
from costream.index import Addition, Index, Item, vector_rows
from costream.overlap import store_while_making
from costream.records import Space

DIM = 16
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=DIM)


def unit(rows: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, DIM))
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / lengths, dtype=np.float32)


def addition(*numbers: int, caption: str = "") -> Addition:
    items = [
        Item(id=f"item{n}", meta={"n": n}, caption=caption and f"{caption}{n}") for n in numbers
    ]
    return Addition(items=items, vectors=unit(len(items), seed=numbers[0]))


def with_moments() -> Addition:
    return Addition(
        items=[Item(id="clip", modality="video"), Item(id="picture", path="/a/b.jpg")],
        vectors=unit(3),
        parents=np.array([0, 1, 0]),
        spans=np.array([[0, 1], [np.nan, np.nan], [1, 2]]),
    )


BATCHES = [
    addition(*range(20)),
    addition(3, 50, 7, 51, caption="word"),
    with_moments(),
    addition(*range(15, 40), caption="other"),
    addition(50),
]


def test_adding_in_bulk_ends_as_adding_one_by_one_does(tmp_path: Path) -> None:
    told: list[int] = []
    with (
        Index.open(tmp_path / "bulk", create=True) as bulk,
        Index.open(tmp_path / "single", create=True) as single,
    ):
        assert bulk.add_all(iter(BATCHES), SPACE, progress=told.append) == 52
        for one in BATCHES:
            if one.parents is None or one.spans is None:
                single.add(one.items, one.vectors, SPACE)
            else:
                single.add_moments(one.items, one.vectors, one.parents, one.spans, SPACE)
        assert told == [20, 4, 2, 25, 1]
        assert bulk.items() == single.items()
        assert bulk.moments(bulk.ids()) == single.moments(single.ids())
        assert (bulk.all_vectors(bulk.ids()) == single.all_vectors(single.ids())).all()
        found = [index.search(unit(4), SPACE, 60).ids for index in (bulk, single)]
        words = [index.search_text("word51 other20", 9).ids for index in (bulk, single)]
        assert found[0] == found[1]
        assert words[0] == words[1] == (("item20", "item51"),)
        assert bulk.check() == single.check() == ()


def test_many_rows_go_in_with_few_statements_and_are_the_same(tmp_path: Path) -> None:
    items = [Item(id=f"item{n}", caption=f"word{n}", tags=("a", "b")) for n in range(4321)]
    statements: list[str] = []
    with Index.open(tmp_path, create=True) as index:
        index._session.connection().set_trace_callback(statements.append)
        index.add(items, unit(4321), SPACE)
        index._session.connection().set_trace_callback(None)
        assert sum("INTO items" in statement for statement in statements) < 2000
        assert sorted(index.items(), key=lambda item: int(item.id[4:])) == items
        assert index.check() == ()


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Addition(items=[Item(id="x")], vectors=np.zeros((1, DIM), np.float32)), NumericalError),
        (Addition(items=[Item(id="x")], vectors=np.ones((1, 3), np.float32)), SpaceMismatch),
        (Addition(items=[Item(id="x"), Item(id="x")], vectors=unit(2)), DataError),
        (Addition(items=[Item(id="")], vectors=unit(1)), DataError),
        (Addition(items=[Item(id="x")], vectors=unit(1), spans=np.zeros((1, 2))), DataError),
    ],
)
def test_an_error_belongs_to_its_batch(
    tmp_path: Path, bad: Addition, error: type[CostreamError]
) -> None:
    told: list[int] = []
    with Index.open(tmp_path, create=True) as index:
        with pytest.raises(error):
            index.add_all(
                [addition(1), addition(2, 3), bad, addition(4)], SPACE, progress=told.append
            )
        assert told == [1, 2]
        assert index.ids() == ["item1", "item2", "item3"]
        index.add_all([addition(4)], SPACE)  # and it can be used as before
        assert len(index) == 4
        assert index.check() == ()


def test_an_error_of_writing_stops_before_the_next_batch(tmp_path: Path) -> None:
    made: list[int] = []

    def batches() -> Iterator[Addition]:
        for number in range(9):
            made.append(number)
            yield addition(number)

    with Index.open(tmp_path, create=True) as index, Index.open(tmp_path) as other:
        other.add([Item(id="foreign")], unit(1), SPACE)
        wrong = Space(encoder="other", weights_hash="w", preprocessing_hash="p", dim=DIM)
        with pytest.raises(SpaceMismatch):
            index.add_all(batches(), wrong)
        assert made == [0, 1]
        assert index.ids() == ["foreign"]


def test_an_error_of_the_iterable_keeps_what_came_before(tmp_path: Path) -> None:
    def batches() -> Iterator[Addition]:
        yield addition(1)
        yield addition(2)
        raise KeyboardInterrupt

    told: list[int] = []
    with Index.open(tmp_path, create=True) as index:
        with pytest.raises(KeyboardInterrupt):
            index.add_all(batches(), SPACE, progress=told.append)
        assert told == [1, 1]
        assert index.ids() == ["item1", "item2"]


def test_who_stops_at_a_batch_has_stored_no_later_one(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with Index.open(tmp_path, create=True) as index:
        with pytest.raises(KeyboardInterrupt):
            index.add_all([addition(1), addition(2), addition(3)], SPACE, progress=stop)
        assert index.ids() == ["item1"]


def test_nothing_to_add_is_no_error(tmp_path: Path) -> None:
    nothing = Addition(items=[], vectors=np.empty((0, DIM), np.float32))
    with Index.open(tmp_path, create=True) as index:
        assert index.add_all([], SPACE) == 0
        assert index.add_all([nothing, addition(1), nothing], SPACE) == 1


def test_two_bulk_writers_lose_nothing(tmp_path: Path) -> None:
    def fill(start: int) -> None:
        with Index.open(tmp_path) as index:
            index.add_all((addition(*range(n, n + 5)) for n in range(start, start + 100, 5)), SPACE)

    with Index.open(tmp_path, create=True) as index:
        writers = [threading.Thread(target=fill, args=[start]) for start in (0, 1000)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(index) == 200
        assert index.check() == ()
        assert set(index.search(unit(1), SPACE, 200).ids[0]) == set(index.ids())


def test_the_next_batch_is_made_while_one_is_stored() -> None:
    made = threading.Semaphore(0)
    stored: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(4):
            made.release()
            yield number

    def store(number: int, under_way: object) -> int:
        assert callable(under_way)
        made.acquire()  # of itself
        under_way()
        if number < 3:
            assert made.acquire(timeout=30), "the next one was not made meanwhile"
            made.release()
        stored.append(number)
        return 1

    assert store_while_making(batches(), store, None) == 4
    assert stored == [0, 1, 2, 3]


@pytest.mark.parametrize("dim", [1, 7, 512])
def test_checksums_made_before_the_places_are_known_are_those_of_the_places(dim: int) -> None:
    random = np.random.default_rng(dim)
    vectors = random.standard_normal((200, dim)).astype("<f2")
    places = np.concatenate([random.integers(0, 2**63 - 1, 198), [0, 2**63 - 1]])
    sums = vector_rows._sums(vectors) ^ vector_rows._moved(places % vector_rows._PRIME, 2 * dim)
    for place, vector, crc in zip(places.tolist(), vectors, sums.tolist(), strict=True):
        assert vector_rows.checksum(place, None, None, vector.tobytes()) == crc
