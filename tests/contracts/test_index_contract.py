"""The contract of every exact index: it answers as a brute-force scan over what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError, SpaceMismatch
from costream.index import Index, Item
from costream.records import Space

IMPLEMENTATIONS = [Index]
SPACE = Space(encoder="toy", weights_hash="w0", preprocessing_hash="p0", dim=24)
OTHER = Space(encoder="toy", weights_hash="w1", preprocessing_hash="p0", dim=24)


@pytest.fixture(params=IMPLEMENTATIONS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    with request.param.open(tmp_path / "index", create=True) as opened:
        yield opened


def unit(seed: int, rows: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, SPACE.dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def items(rows: int, prefix: str = "item") -> list[Item]:
    # Not in the order in which they sort: "item10" comes before "item9".
    return [Item(id=f"{prefix}{row}") for row in range(rows)]


def brute_force(
    stored: dict[str, NDArray[np.float32]], query: NDArray[np.float32], top: int
) -> list[tuple[str, float]]:
    """score = float32(sum_d float64(float16(x_d)) * float64(q_d)); order by (-score, id)."""
    scores = {
        name: float(
            np.float32((vector.astype(np.float16).astype(np.float64) * query).sum(dtype=np.float64))
        )
        for name, vector in stored.items()
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:top]


def answers(index: Index, queries: NDArray[np.float32], top: int) -> list[list[tuple[str, float]]]:
    ranking = index.search(queries, SPACE, top)
    assert all(scores.dtype == np.float32 for scores in ranking.scores)
    return [
        list(zip(ids, scores.tolist(), strict=True))
        for ids, scores in zip(ranking.ids, ranking.scores, strict=True)
    ]


def test_equals_brute_force_through_add_replace_remove_and_reopen(index: Index) -> None:
    rng = np.random.default_rng(0)
    stored: dict[str, NDArray[np.float32]] = {}
    queries = unit(99, 6)
    for step in range(8):
        batch = [Item(id=f"item{number}") for number in rng.permutation(120)[:40]]
        vectors = unit(step, 40)
        vectors[::7] = vectors[0]  # duplicates: the same vector under several ids
        index.add(batch, vectors, SPACE)
        stored.update(zip((item.id for item in batch), vectors, strict=True))
        gone = sorted(stored)[:: 5 + step]
        assert index.remove(gone) == len(gone)
        for name in gone:
            del stored[name]
        want = [brute_force(stored, query.astype(np.float64), 12) for query in queries]
        assert answers(index, queries, 12) == want
        assert index.ids() == sorted(stored)
        assert len(index) == len(stored)
    index.close()
    with Index.open(index.directory) as again:
        assert answers(again, queries, 12) == want
        names = sorted(stored)
        rounded = np.stack([stored[name] for name in names]).astype(np.float16).astype(np.float32)
        assert again.vectors(names).tobytes() == rounded.tobytes()


def test_equal_scores_are_ranked_by_id(index: Index) -> None:
    index.add(items(50), np.tile(unit(1, 1), (50, 1)), SPACE)
    (found,) = index.search(unit(2, 1), SPACE, 50).ids
    assert list(found) == sorted(f"item{row}" for row in range(50))


def test_more_wanted_than_stored_gives_what_there_is(index: Index) -> None:
    index.add(items(3), unit(1, 3), SPACE)
    ranking = index.search(unit(2, 2), SPACE, 1000)
    assert [len(found) for found in ranking.ids] == [3, 3]
    assert [len(scores) for scores in ranking.scores] == [3, 3]


def test_an_empty_index_answers_nothing(index: Index) -> None:
    assert [list(found) for found in index.search(unit(2, 2), SPACE, 5).ids] == [[], []]
    assert index.space is None
    assert len(index) == 0
    index.add(items(1), unit(1, 1), SPACE)
    index.remove(["item0"])
    assert [list(found) for found in index.search(unit(2, 1), SPACE, 5).ids] == [[]]


def test_no_query_gives_no_ranking(index: Index) -> None:
    index.add(items(3), unit(1, 3), SPACE)
    ranking = index.search(np.empty((0, SPACE.dim), np.float32), SPACE, 5)
    assert (list(ranking.ids), list(ranking.scores)) == ([], [])


def test_removed_ids_are_never_found(index: Index) -> None:
    index.add(items(20), unit(1, 20), SPACE)
    index.search(unit(2, 1), SPACE, 5)
    assert index.remove(["item3", "item3", "never there"]) == 1
    (found,) = index.search(unit(2, 1), SPACE, 20).ids
    assert "item3" not in found
    assert len(found) == 19
    with pytest.raises(DataError, match="no item 'item3'"):
        index.get(["item3"])


def test_a_foreign_space_raises_and_names_both(index: Index) -> None:
    index.add(items(2), unit(1, 2), SPACE)
    with pytest.raises(SpaceMismatch, match=r"weights w0.*weights w1"):
        index.search(unit(2, 1), OTHER, 1)
    with pytest.raises(SpaceMismatch, match=r"weights w0.*weights w1"):
        index.add([Item(id="new")], unit(3, 1), OTHER)
    assert index.ids() == ["item0", "item1"]
    assert index.space == SPACE


def test_an_emptied_index_takes_another_space(index: Index) -> None:
    index.add(items(2), unit(1, 2), SPACE)
    index.remove(index.ids())
    index.add(items(2), unit(1, 2), OTHER)
    assert index.space == OTHER


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (np.nan, "'item1'.* not finite"),
        (np.inf, "'item1'.* not finite"),
        (1e5, "'item1'.* above 65,504"),
        (3.0, "'item1'.* another length than 1"),
        (0.0, "'item1'.* zero"),
        (1e-9, "'item1'.* zero in float16"),
    ],
)
def test_a_vector_without_meaning_is_refused_and_nothing_of_its_batch_stored(
    index: Index, spoil: float, message: str
) -> None:
    vectors = unit(1, 3)
    vectors[1] = spoil if spoil < 3 or not np.isfinite(spoil) else vectors[1] * spoil * 10
    with pytest.raises(NumericalError, match=message):
        index.add(items(3), vectors, SPACE)
    assert len(index) == 0


def test_wrong_shapes_are_refused(index: Index) -> None:
    with pytest.raises(SpaceMismatch, match=r"23 dimensions.*'item0'.*expected 24"):
        index.add(items(2), unit(1, 2)[:, :23], SPACE)
    with pytest.raises(DataError, match=r"shape \(3, 24\) for 2 items"):
        index.add(items(2), unit(1, 3), SPACE)
    with pytest.raises(DataError, match="int64"):
        index.add(items(2), np.ones((2, 24), np.int64), SPACE)
    with pytest.raises(DataError, match="'a' twice"):
        index.add([Item(id="a"), Item(id="a")], unit(1, 2), SPACE)
    with pytest.raises(ConfigError, match="top=0"):
        index.search(unit(1, 1), SPACE, 0)
    assert len(index) == 0


def test_a_changed_index_is_seen_by_another_opening(index: Index) -> None:
    index.add(items(5), unit(1, 5), SPACE)
    with Index.open(index.directory) as other:
        assert answers(other, unit(2, 1), 9) == answers(index, unit(2, 1), 9)
        index.add(items(5, "late"), unit(3, 5), SPACE)
        index.remove(["item0"])
        assert answers(other, unit(2, 1), 9) == answers(index, unit(2, 1), 9)
        assert len(other) == 9
