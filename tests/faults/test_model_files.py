"""A model directory is read whole and right, or not at all."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import costream
from costream.data import make_scenes
from costream.encoders.locate import locate_model, shipped_models
from costream.encoders.storage import golden_features, load, save_model
from costream.errors import ConfigError, CostreamError, WeightsError
from tiny_world import state_bytes, tiny_config, tiny_model

FILES = ("model.safetensors", "tokenizer.json", "config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tiny_model(), tmp_path / "model", card="# A model\n")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


# --- round trips ---


def test_a_saved_model_gives_the_same_bits_after_loading(folder: Path, tmp_path: Path) -> None:
    """Weights are those of the saved model in float16; from then on nothing changes any more."""
    original, loaded = tiny_model(), load(folder)
    state = loaded.state_dict()
    for name, value in original.state_dict().items():
        assert torch.equal(state[name], value.half().float()), name
    assert loaded.config == original.config
    assert loaded.space == original.space
    assert not loaded.training
    again = save_model(loaded, tmp_path / "again", card="# A model\n")
    assert state_bytes(folder, FILES) == state_bytes(again, FILES)
    pictures = [sample.slots["image"] for sample in make_scenes(3, size_px=24).samples]
    texts = ["a red disc", "a box"]
    twice = load(again)
    assert np.array_equal(loaded.encode_texts(texts), twice.encode_texts(texts))
    assert np.array_equal(loaded.encode_images(pictures), twice.encode_images(pictures))
    assert (again / "card.md").read_text() == "# A model\n"


def test_saving_and_loading_leave_the_random_state_alone(tmp_path: Path) -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    load(save_model(model, tmp_path))
    assert torch.equal(before, torch.get_rng_state())


def test_saving_in_the_middle_of_training_leaves_the_mode_alone(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(dropout=0.5)).train()
    save_model(model, tmp_path)
    golden_features(model)
    assert model.training


def test_a_model_is_replaced_whole(folder: Path) -> None:
    save_model(tiny_model(seed=1), folder)
    assert load(folder).space == tiny_model(seed=1).space
    assert {path.name for path in folder.iterdir()} == {*FILES, "card.md"}


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model = tiny_model()
    for value in (float("nan"), float("inf"), 1e6):
        with torch.no_grad():
            model.text_projection.weight[0, 0] = value
        with pytest.raises(WeightsError, match=r"text_projection.weight.*not finite in float16"):
            save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_full_disk_leaves_the_older_model_whole(folder: Path) -> None:
    before = state_bytes(folder, FILES)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_model(tiny_model(seed=1), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert state_bytes(folder, FILES) == before
    load(folder)


# --- damage ---


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def empty(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(b"")

    return damage


def with_state(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


def flip(state: dict[str, torch.Tensor]) -> None:
    state["vision.class_token"][0, 0, 0] += 0.25


def widen(state: dict[str, torch.Tensor]) -> None:
    state["image_projection.weight"] = torch.zeros(9, 16, dtype=torch.float16)


def with_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, change)


def swap_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    text = path.read_text().replace('"red"', '"@"').replace('"blue"', '"red"')
    path.write_text(text.replace('"@"', '"blue"'))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights truncated": (truncate("model.safetensors"), "cannot read"),
    "weights empty": (empty("model.safetensors"), "cannot read"),
    "weights gone": (remove("model.safetensors"), "no weights at"),
    "one weight changed": (with_state(flip), "does not match the checksum"),
    "one weight gone": (
        with_state(lambda s: s.pop("vision.class_token")),
        r"missing \['vision.class_token'\]",
    ),
    "one weight more": (
        with_state(lambda s: s.update(more=torch.zeros(1))),
        r"unknown \['more'\]",
    ),
    "one weight of another shape": (with_state(widen), "of another shape"),
    "tokenizer truncated": (truncate("tokenizer.json"), "tokenizer.json does not match"),
    "tokenizer gone": (remove("tokenizer.json"), "no tokenizer"),
    "two words changed places": (swap_words, "tokenizer.json does not match"),
    "config truncated": (truncate("config.json"), "cannot read"),
    "config empty": (empty("config.json"), "cannot read"),
    "config gone": (remove("config.json"), "has no config.json"),
    "config of another version": (
        with_config(lambda d: d.update(format="costream-model-99")),
        "'costream-model-99'",
    ),
    "config without a part": (with_config(lambda d: d["config"].pop("vision")), "vision"),
    "config with a misspelt option": (
        with_config(lambda d: d["config"]["text"].update(poling="mean")),
        "poling",
    ),
    "another activation": (
        with_config(lambda d: d["config"]["text"]["transformer"].update(activation="quick_gelu")),
        "do not match their checksum",
    ),
    "heads that do not divide": (
        with_config(lambda d: d["config"]["text"]["transformer"].update(heads=7)),
        "does not describe a model",
    ),
    "no golden numbers": (with_config(lambda d: d.pop("golden")), "no 'golden'"),
    "golden numbers of one slot": (with_config(lambda d: d["golden"].pop("text")), "text"),
    "too few golden numbers": (with_config(lambda d: d["golden"]["image"].pop()), "8 golden"),
    "golden words": (with_config(lambda d: d["golden"].update(text=["a"] * 8)), "8 golden"),
    "golden not a number": (
        with_config(lambda d: d["golden"].update(text=[float("nan")] * 8)),
        "off by nan",
    ),
    "no checksum": (with_config(lambda d: d.pop("image_digest")), "no 'image_digest'"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_model_is_refused(kind: str, folder: Path) -> None:
    damage, message = DAMAGES[kind]
    damage(folder)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_weights_that_fit_but_mean_something_else_do_not_pass(folder: Path) -> None:
    """Every checksum is right, the activation is not: only the golden vectors can tell."""
    from costream.config import from_dict
    from costream.encoders.dual import DualConfig, settings_hash

    def change(description: dict[str, Any]) -> None:
        config = description["config"]
        config["text"]["transformer"]["activation"] = "quick_gelu"
        config["text"]["transformer"]["norm"] = "pre"
        description["settings_hash"] = settings_hash(from_dict(DualConfig, config))

    edit(folder, change)
    with pytest.raises(WeightsError, match="text vector of the fixed input is off by"):
        load(folder)


def test_every_single_changed_byte_of_the_weights_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            model = load(folder)
        except CostreamError:
            continue
        # Bytes between the header and the tensors, or in their order, may mean nothing.
        path.write_bytes(whole)
        assert model.space == load(folder).space


# --- names ---


def test_a_model_that_is_not_there_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a directory, and the shipped models are"):
        load("no-such-model")
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load(tmp_path)


def test_devices_that_are_not_there_are_refused(folder: Path) -> None:
    assert load(folder, device="cpu").device.type == "cpu"
    for name in ("abacus", "cuda:99"):
        with pytest.raises(ConfigError, match=f"got device '{name}'"):
            load(folder, device=name)


def test_a_folder_of_the_name_of_a_shipped_model_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, home in shipped_models().items():
        (tmp_path / name).mkdir()
        assert locate_model(name) == home
        assert locate_model(f"./{name}") == Path(name)
        assert locate_model(Path(name)) == Path(name)


def test_every_shipped_model_carries_all_its_checksums() -> None:
    for home in shipped_models().values():
        description = json.loads((home / "config.json").read_text())
        assert {"settings_hash", "tokenizer_digest", "text_digest"} <= set(description)
        assert costream.load(home).config.name
