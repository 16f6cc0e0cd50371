"""Methods that go together by their slots train together, two steps."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from every_method import METHODS, every_slot, own_tests, small_method

from costream.card import find_method
from costream.errors import ConfigError
from costream.parts import compose
from costream.system import load_system
from costream.train import train
from tiny_world import tiny_model

ALONE = ("scorer", "index", "generator")


def compatible(one: str, other: str) -> bool:
    """Whether the cards say that two methods can be trained together."""
    trains = any("objective" in find_method(name).slots for name in (one, other))
    return trains and not clash(one, other)


def clash(one: str, other: str) -> bool:
    """Whether both bring a part of which there can be one."""
    both = set(find_method(one).slots) & set(find_method(other).slots)
    return any(slot in both for slot in ALONE)


def in_order(pair: tuple[str, str]) -> tuple[str, str]:
    """The one first whose test file says that it must be."""
    one, other = pair
    return (other, one) if vars(own_tests(other)).get("FIRST") else pair


PAIRS = [in_order(pair) for pair in combinations(METHODS, 2) if compatible(*pair)]
CLASHES = [
    pair
    for pair in combinations(METHODS, 2)
    if any(
        slot in set(find_method(pair[0]).slots) & set(find_method(pair[1]).slots) for slot in ALONE
    )
]


def settings_of(names: tuple[str, ...]) -> dict[str, str]:
    from costream.config import settings_as_text

    return {
        f"{name}.{key}": text
        for name in names
        for key, text in settings_as_text(small_method(name).config).items()
    }


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_compatible_pair_trains_two_steps(pair: tuple[str, str], tmp_path: Path) -> None:
    from costream.encoders.storage import save_model

    start = save_model(tiny_model(), tmp_path / "start")
    loop = {"start": str(start), "steps": "2", "batch_size": "6", "warmup_steps": "1"}
    model = train(",".join(pair), every_slot(), tmp_path / "run", loop | settings_of(pair))
    system = load_system(model)
    stay = [name for name in pair if any(w.split()[0] == name for w in system.model.config.methods)]
    assert [words.split()[0] for words in system.model.config.methods] == stay
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines


@pytest.mark.parametrize("pair", CLASHES, ids="+".join)
def test_two_that_bring_the_same_single_part_are_refused(pair: tuple[str, str]) -> None:
    from costream.parts import Base

    parts = []
    for name in pair:
        method = small_method(name)
        parts.append(method.module.parts(method.config, Base(model=tiny_model())))
    with pytest.raises(ConfigError, match=f"{pair[0]} and {pair[1]} both bring"):
        compose(parts, pair)
