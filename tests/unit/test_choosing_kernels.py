"""Law: the kernel goes by what was measured and what is installed, and can be named."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from costream.errors import ConfigError
from costream.scoring.kernels import build, choose, choosing, installed

EVERYTHING = ("exact", "four_bit", "graph")


def test_exact_while_nobody_would_notice_and_codes_above() -> None:
    assert choose(0, 0, EVERYTHING) == "exact"
    assert choose(100_000, 256, EVERYTHING) == "exact"
    assert choose(1_000_000, 512, EVERYTHING) == "four_bit"
    assert choose(10_000_000, 512, EVERYTHING) == "four_bit"


def test_more_of_the_same_never_goes_back() -> None:
    names = [choose(number, 512, EVERYTHING) for number in np.logspace(2, 9, 50).astype(int)]
    assert names == sorted(names)


def test_without_the_package_the_answer_is_exact() -> None:
    assert choose(10_000_000, 512, ["exact", "graph"]) == "exact"
    assert "exact" in installed()


def test_size_decides_unless_a_name_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float16)
    assert build(vectors).name == "exact"
    if "four_bit" in installed():
        assert build(vectors, kernel="four_bit").name == "four_bit"
        monkeypatch.setattr(choosing, "EXACT_UP_TO", 4000)
        assert build(vectors).name == "four_bit"
        assert build(vectors, kernel="exact").name == "exact"


def test_unknown_and_uninstalled_kernels_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.ones((3, 8), np.float16)
    with pytest.raises(ConfigError, match=r"kernel='fast', expected one of exact, four_bit, graph"):
        build(vectors, kernel="fast")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        choosing, "find_spec", lambda name: None if name == "turbovec" else find(name)
    )
    with pytest.raises(ConfigError, match=r"needs turbovec.*pip install 'costream\[fast\]'"):
        build(vectors, kernel="four_bit")
    assert "four_bit" not in installed()
