"""What tests of 4-bit codes in an index share: unit vectors, items, and codes of small indexes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.index import Item, resident
from costream.records import Space

# Not installed everywhere: tests that use this are left out then.
four_bit = pytest.importorskip("costream.scoring.kernels.four_bit")

DIM = 16
NUM_ITEMS = 1500
SPACE = Space(encoder="toy", weights_hash="w", preprocessing_hash="p", dim=DIM)


def unit(rows: int, seed: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


QUERIES = unit(8, 99)


def named(*numbers: int) -> list[Item]:
    return [Item(id=f"{number:05d}") for number in numbers]


def code_and_keep_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is left to large indexes done in small ones."""
    monkeypatch.setattr(four_bit, "FEW", 20)
    monkeypatch.setattr(resident, "WORTH_A_FILE_BYTES", 1)
