"""Law: rows come back as they were added, however they came and wherever they lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.index import held
from costream.index.held import Held

DIM = 3
SIZES = [1, 4, 2, 9, 3, 3, 16, 5, 1]


def rows(start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    places = np.arange(start, start + count)
    return places, (places[:, None] + np.arange(DIM)).astype(np.float16)


def same(kept: Held, wanted: NDArray[np.float16]) -> None:
    vectors = kept.vectors
    assert vectors.shape == wanted.shape
    assert (vectors[:] == wanted).all()
    total = len(wanted)
    for part in (slice(0, 0), slice(2, total - 3), slice(1, total, 5), slice(-4, None)):
        assert (vectors[part] == wanted[part]).all()
    some = np.random.default_rng(total).integers(0, total, 40)
    assert (vectors[some] == wanted[some]).all()
    assert (kept.places == wanted[:, 0]).all()


def look(kept: Held) -> None:
    assert len(kept.vectors) == kept.num_rows


@pytest.mark.parametrize("between", [lambda kept: None, look, Held.fetch], ids=["-", "look", "one"])
def test_rows_of_any_number_come_back(
    between: Callable[[Held], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "SPARE_ROWS", 4)  # so that some of these are many
    kept, total = Held(DIM), 0
    for size in SIZES:
        kept.append(*rows(total, size))
        total += size
        between(kept)
    places, vectors = kept.add_room(6)
    places[:], vectors[:] = rows(total, 6)
    kept.append(*rows(total + 6, 7))
    wanted = rows(0, total + 13)[1]
    same(kept, wanted)
    kept.fetch()
    assert isinstance(kept.vectors, np.ndarray)
    same(kept, wanted)
    chosen = np.arange(0, len(wanted), 3)
    kept.keep(chosen)
    same(kept, wanted[chosen])


def test_much_that_is_added_is_not_copied() -> None:
    kept = Held(DIM)
    places, vectors = rows(0, 2 * held.SPARE_ROWS)
    for start in (0, held.SPARE_ROWS):
        part = slice(start, start + held.SPARE_ROWS)
        kept.append(places[part], vectors[part])
    assert np.shares_memory(kept.vectors[5:9], vectors)
    assert np.shares_memory(kept.vectors[held.SPARE_ROWS :], vectors)
