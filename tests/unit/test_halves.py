"""Law: rounding to float16 gives, bit by bit, what numpy gives."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.scoring.halves import narrow

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = HALVES[np.isfinite(HALVES)].astype(np.float32)


def between() -> NDArray[np.float32]:
    """Middles of neighbouring halves, and the float32 numbers next to them."""
    ordered = np.sort(FINITE)
    middles = ((ordered[1:].astype(np.float64) + ordered[:-1]) / 2).astype(np.float32)
    return np.concatenate([np.nextafter(middles, np.float32(x)) for x in (-np.inf, np.inf)])


def any_bits() -> NDArray[np.float32]:
    """Numbers of random bits."""
    bits = np.random.default_rng(0).integers(0, 2**32, 2_000_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    return np.asarray(numbers[np.abs(numbers) <= 65504])


def middles() -> NDArray[np.float32]:
    """Numbers that are as near to one half as to the next."""
    ordered = np.unique(FINITE)
    return np.asarray((ordered[1:].astype(np.float64) + ordered[:-1]) / 2, dtype=np.float32)


@pytest.mark.parametrize("numbers", [FINITE, middles(), between(), any_bits()])
def test_rounding_is_that_of_numpy(numbers: NDArray[np.float32]) -> None:
    got = narrow(numbers)
    np.testing.assert_array_equal(got.view(np.uint16), numbers.astype("<f2").view(np.uint16))


def test_the_shape_is_kept_and_the_input_too() -> None:
    wide = np.random.default_rng(0).standard_normal((7, 6, 5)).astype(np.float32)[:, ::2]
    before = wide.copy()
    np.testing.assert_array_equal(narrow(wide), wide.astype(np.float16))
    np.testing.assert_array_equal(wide, before)
    assert narrow(np.empty((0, 3), np.float32)).shape == (0, 3)
