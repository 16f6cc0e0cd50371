"""The text tower in numpy is the text tower in torch, and is used for nothing else."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from costream.encoders.blocks import TransformerConfig
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.light.layers import erf
from costream.encoders.light.text import LightTextEncoder, load_text_encoder
from costream.encoders.storage import load, save_model
from costream.errors import DataError, WeightsError
from tiny_world import tiny_config, tiny_model

TEXTS = [
    "a red disc",
    "a blue cross at the top left, and there is a green box in the centre",
    "",
    "x",
    "zwei Hunde laufen; 两只狗在跑; كلبان يركضان; два пса 🐶🐶",
    "a white triangle " * 50,
    "half a surrogate \udcff pair",
]


def test_the_error_function_is_close_enough() -> None:
    x = np.linspace(-6, 6, 4001, dtype=np.float32)
    expected = [math.erf(value) for value in x.astype(np.float64)]
    assert np.abs(erf(x) - expected).max() < 5e-7


def bert(seed: int) -> DualConfig:
    """A random form of the kind that is implemented."""
    rng = np.random.default_rng(seed)
    heads = int(rng.choice([1, 2, 3, 4]))
    width = heads * int(rng.choice([4, 8]))
    base = tiny_config(dim=int(rng.choice([5, 8])))
    layers = TransformerConfig(
        width=width,
        depth=int(rng.integers(0, 4)),
        heads=heads,
        mlp_width=int(rng.integers(3, 40)),
        norm=("post", "pre")[seed // 2 % 2],  # type: ignore[arg-type] # one of two
        norm_eps=float(rng.choice([1e-12, 1e-5])),
        dropout=0.1,
    )
    text = replace(
        base.text,
        transformer=layers,
        context=30,
        pooling=("mean", "first")[seed % 2],  # type: ignore[arg-type] # one of two
    )
    preprocess = replace(
        base.text_preprocess, max_tokens=int(rng.integers(6, 30)), pad_to_max=bool(seed % 3 == 0)
    )
    return replace(
        base, text=text, text_preprocess=preprocess, projection_bias=bool(rng.integers(2))
    )


@torch.no_grad()
def livened(model: DualEncoder, seed: int) -> DualEncoder:
    """Random norms and biases too, which start as ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("seed", range(8))
def test_numpy_and_torch_give_the_same_vectors(seed: int, tmp_path: Path) -> None:
    save_model(livened(tiny_model(bert(seed), seed=seed), seed), tmp_path)
    light, full = load_text_encoder(tmp_path), load(tmp_path)
    assert isinstance(light, LightTextEncoder)
    expected = full.encode_texts(TEXTS)
    found = light.encode_texts(TEXTS)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert light.space == full.space


def test_texts_together_get_the_vectors_that_each_gets_alone(tmp_path: Path) -> None:
    save_model(livened(tiny_model(bert(3), seed=3), 3), tmp_path)
    light = load_text_encoder(tmp_path)
    many = [f"{text} {number}" for number in range(6) for text in TEXTS]
    alone = np.concatenate([light.encode_texts([text]) for text in many])
    assert np.abs(light.encode_texts(many) - alone).max() < 1e-6


def test_no_texts_and_not_a_list(tmp_path: Path) -> None:
    light = load_text_encoder(save_model(tiny_model(), tmp_path))
    assert light.encode_texts([]).shape == (0, 8)
    with pytest.raises(DataError, match="got one str, expected a list"):
        light.encode_texts("a red disc")
    with pytest.raises(DataError, match="text 0 is a int"):
        light.encode_texts([3])  # type: ignore[list-item] # on purpose


def changed(**options: Any) -> Callable[[DualConfig], DualConfig]:
    def change(config: DualConfig) -> DualConfig:
        layers = {k: v for k, v in options.items() if k in ("norm", "activation", "layer_scale")}
        text = {k: v for k, v in options.items() if k not in layers}
        transformer = replace(config.text.transformer, **layers)
        return replace(config, text=replace(config.text, transformer=transformer, **text))

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(activation="gelu_tanh"),
        changed(activation="quick_gelu"),
        changed(layer_scale=True),
        changed(causal=True),
        changed(embedding_norm=False),
        changed(final_norm=True),
        changed(pooling="first_dense"),
        changed(pooling="eot", eot_id=3),
        changed(pooling="last"),
    ],
)
def test_other_kinds_are_left_to_the_full_tower(
    change: Callable[[DualConfig], DualConfig], tmp_path: Path
) -> None:
    save_model(livened(tiny_model(change(tiny_config())), 0), tmp_path)
    encoder = load_text_encoder(tmp_path)
    assert isinstance(encoder, DualEncoder)
    assert np.array_equal(encoder.encode_texts(TEXTS), load(tmp_path).encode_texts(TEXTS))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def test_what_an_option_means_that_is_not_known_here_is_not_guessed(tmp_path: Path) -> None:
    """The full implementation is asked, and refuses it."""
    save_model(tiny_model(), tmp_path)
    edit(tmp_path, lambda d: d["config"]["text"].update(rotary=True))
    with pytest.raises(WeightsError, match="rotary"):
        load_text_encoder(tmp_path)


def flip_a_text_weight(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["text.token_embedding.weight"][3, 1] += 0.5
    save_file(state, folder / "model.safetensors")


def drop_a_text_weight(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["text.position_embedding"]
    save_file(state, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"disc"', '"disk"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_text_weight, "text weights .* do not match the checksum"),
        (drop_a_text_weight, "do not match the checksum"),
        (truncate, "cannot read"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot read"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot read"),
        (another_tokenizer, "tokenizer.json does not match the checksum"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "cannot read"),
        (lambda f: (f / "config.json").write_text("[1]"), "holds a list"),
        (lambda f: edit(f, lambda d: d.update(weights_hash="0")), "contradict each other"),
        (lambda f: edit(f, lambda d: d.pop("text_digest")), "no 'text_digest'"),
        (lambda f: edit(f, lambda d: d.update(image_digest=3)), "a int as 'image_digest'"),
        (lambda f: edit(f, lambda d: d.pop("config")), "no 'config'"),
        (lambda f: edit(f, lambda d: d["config"].pop("text")), "text has no value"),
        (lambda f: edit(f, lambda d: d.update(format="costream-model-9")), "'costream-model-9'"),
    ],
)
def test_damaged_models_are_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    save_model(tiny_model(), tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=message):
        load_text_encoder(tmp_path)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    program = (
        "import sys\n"
        "from costream.encoders.light.text import load_text_encoder\n"
        f"load_text_encoder({str(tmp_path)!r}).encode_texts(['a red disc'])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
