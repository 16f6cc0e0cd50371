"""A model that asks in another one's space: indexes answer it and take nothing of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from costream.encoders.dual import DualEncoder
from costream.encoders.storage import load, save_model
from costream.errors import ConfigError
from costream.index import Item, open_index, update_index
from costream.index.reembedding import migrate_index
from costream.method import apply_methods
from costream.system import load_system
from tiny_world import tiny_config, tiny_model


def asking() -> tuple[DualEncoder, DualEncoder]:
    """An old model, and a new one that says its vectors are questions to the old one's."""
    old = tiny_model(tiny_config(name="old"), seed=1)
    fitted = replace(tiny_config(), query_space=old.space, in_query_space=True)
    return old, tiny_model(fitted)


def test_its_space_is_the_other_ones_and_it_stays_itself() -> None:
    old, new = asking()
    assert new.space == old.space != new.own_space
    assert new.own_space.encoder == "tiny"
    assert new.is_query_only
    assert not old.is_query_only
    assert old.space == old.own_space


def test_a_saved_model_keeps_whose_index_it_asks(tmp_path: Path) -> None:
    _, new = asking()
    again = load(save_model(new, tmp_path / "model"))
    assert again.space == new.space
    assert again.own_space == new.own_space
    assert load_system(tmp_path / "model").model.is_query_only


def test_an_index_answers_it_and_takes_nothing_of_it(tmp_path: Path) -> None:
    old, new = asking()
    Image.new("RGB", (24, 24), "red").save(tmp_path / "red.png")
    refusal = r"tiny only asks indexes of 'old'.*embed items with 'old'"
    with open_index(tmp_path / "index", create=True) as index:
        with pytest.raises(ConfigError, match=refusal):
            update_index(index, new, tmp_path)
        index.add([Item(id="a")], old.encode_texts(["a"]), old.space)
        assert index.search(new.encode_texts(["b"]), new.space, 1).ids[0] == ("a",)
        with pytest.raises(ConfigError, match=refusal):
            update_index(index, new, tmp_path)
    with open_index(tmp_path / "other", create=True) as index:
        third = tiny_model(tiny_config(name="third"), seed=2)
        index.add([Item(id="a")], third.encode_texts(["a"]), third.space)
        with pytest.raises(ConfigError, match=refusal):
            migrate_index(index, new)
        assert [entry.space for entry in index.spaces()] == [third.space]


def test_a_change_of_the_model_leaves_the_space(tmp_path: Path) -> None:
    """Of its towers, here by longer texts: its vectors are no questions to the old index then."""
    from costream.method import read_method

    _, new = asking()
    changed = apply_methods(new, [read_method("long_clip keep=4 stretch=2")]).model
    assert changed.space == changed.own_space
    again = load(save_model(changed, tmp_path / "model"))
    assert again.space == again.own_space
    assert np.array_equal(again.encode_texts(["a"]).shape, (1, 8))
