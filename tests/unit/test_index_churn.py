"""Law: whatever comes and goes, size stays bounded and each kernel still finds what is there."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.index import Index, Item
from costream.records import Space
from costream.scoring.kernels import installed

DIM = 64
# What the log of a small index may take besides.
LOG_BYTES = 2**21
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=DIM)


def unit(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    # Vectors in clusters, as those of pictures are; noise alone has no neighbours.
    centres = np.random.default_rng(9).standard_normal((50, DIM))
    values = centres[rng.integers(50, size=rows)] + rng.standard_normal((rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def files_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def recall(index: Index, exact: Index, queries: NDArray[np.float32]) -> float:
    """Share of the ten true best that are found."""
    found, want = index.search(queries, SPACE, 10), exact.search(queries, SPACE, 10)
    pairs = zip(found.ids, want.ids, strict=True)
    return float(np.mean([len(set(mine) & set(true)) / len(true) for mine, true in pairs]))


def churn(directory: Path, kernel: str, *, live: int, changes: int) -> None:
    """Half of the items go and as many come, again and again."""
    rng = np.random.default_rng(0)
    ids: deque[str] = deque()
    made = 0

    def add(index: Index, count: int) -> None:
        nonlocal made
        items = [Item(id=f"{made + n:09d}", content_hash=f"{made + n:x}") for n in range(count)]
        index.add(items, unit(rng, count), SPACE)
        ids.extend(item.id for item in items)
        made += count

    with Index.open(directory, create=True, kernel=kernel) as index:
        add(index, live)
        index.load()
        at_first = files_bytes(directory)
        while made < changes:
            # The oldest go, so that in the end nothing of the beginning is left.
            index.remove([ids.popleft() for _ in range(live // 2)])
            add(index, live // 2)
            index.search(unit(rng, 4), SPACE, 10)
            assert files_bytes(directory) <= 2 * at_first + LOG_BYTES
        with Index.open(directory, kernel="exact") as exact:
            assert sorted(exact.ids()) == sorted(ids)
            assert recall(index, exact, unit(rng, 200)) >= 0.99
        assert index.check() == ()


KERNELS = sorted(installed())


@pytest.mark.parametrize("kernel", KERNELS)
def test_ten_times_what_is_held_comes_and_goes(kernel: str, tmp_path: Path) -> None:
    churn(tmp_path / "index", kernel, live=1500, changes=15_000)


@pytest.mark.soak
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_million_come_and_go(kernel: str, tmp_path: Path) -> None:
    churn(tmp_path / "index", kernel, live=40_000, changes=1_000_000)
