"""Law: whatever is done to an index, its size on disk stays near what it holds, by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.index import Index, Item
from costream.records import Space

DIM = 512
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=DIM)
NUM_ITEMS = 2000


def unit(rows: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def item(number: int, version: int) -> Item:
    return Item(
        id=f"/pictures/{number:05d}.jpg",
        path=f"/pictures/{number:05d}.jpg",
        content_hash=f"{version:08x}" * 8,
        caption=f"version {version} of picture {number}",
        tags=(f"tag{number % 7}",),
    )


def opened(directory: Path) -> Index:
    """An index that does not wait for the disk, on which its size does not depend."""
    index = Index.open(directory, create=True)
    index._session.connection().execute("PRAGMA synchronous = OFF")
    return index


def files_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def fill(directory: Path, numbers: range) -> int:
    """Fill an index in one step; its size when it is closed."""
    with opened(directory) as index:
        index.add([item(number, 0) for number in numbers], unit(len(numbers)), SPACE)
        index.load()
    return files_bytes(directory)


def update_one_by_one(tmp_path: Path, times: int) -> None:
    live = fill(tmp_path / "index", range(NUM_ITEMS))
    chosen = np.random.default_rng(1).integers(0, NUM_ITEMS, times).tolist()
    vectors = unit(100, seed=2)
    with opened(tmp_path / "index") as index:
        for version, number in enumerate(chosen):
            index.add([item(number, version)], vectors[version % 100][None], SPACE)
            if version % 500 == 0:
                index.load()
                assert files_bytes(tmp_path / "index") <= 2 * live
        index.load()
        assert files_bytes(tmp_path / "index") <= 2 * live  # the log counts, too
    assert files_bytes(tmp_path / "index") <= 2 * live
    with Index.open(tmp_path / "index") as index:
        assert len(index) == NUM_ITEMS
        assert index.check() == ()


def test_single_updates_leave_at_most_twice_the_size(tmp_path: Path) -> None:
    update_one_by_one(tmp_path, 1500)


@pytest.mark.soak
def test_ten_thousand_single_updates_leave_at_most_twice_the_size(tmp_path: Path) -> None:
    update_one_by_one(tmp_path, 10_000)


def test_an_emptied_index_is_small_again(tmp_path: Path) -> None:
    few = fill(tmp_path / "few", range(20))
    fill(tmp_path / "index", range(NUM_ITEMS))
    with opened(tmp_path / "index") as index:
        for start in range(20, NUM_ITEMS, 90):
            index.remove(i.id for i in (item(n, 0) for n in range(start, start + 90)))
        index.load()
    assert len(list((tmp_path / "index").rglob("*.f16"))) <= 1
    assert files_bytes(tmp_path / "index") < few + 64 * 16384
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 20
        assert index.check() == ()


def test_removing_half_and_adding_again_many_times_leaves_at_most_twice_the_size(
    tmp_path: Path,
) -> None:
    live = fill(tmp_path / "index", range(NUM_ITEMS))
    rng = np.random.default_rng(3)
    with opened(tmp_path / "index") as index:
        for version in range(12):
            half = rng.permutation(NUM_ITEMS)[: NUM_ITEMS // 2].tolist()
            index.remove(item(number, 0).id for number in half)
            index.add([item(number, version) for number in half], unit(len(half)), SPACE)
            index.load()
            assert files_bytes(tmp_path / "index") <= 2 * live
    assert files_bytes(tmp_path / "index") <= 2 * live
