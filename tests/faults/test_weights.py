"""Model files that are absent, damaged, mixed up or hostile: one kind of error, which says why."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from costream.encoders.pretrained import (
    fetch_from_hub,
    load_pretrained,
    load_text_tower,
    load_vision_tower,
    read_image_preprocess,
)
from costream.errors import WeightsError

WORDS = ["<pad>", "<unk>", "a", "dog", "A", "Dog", "<end>"]
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
PICTURES = {
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
    "size": {"shortest_edge": 20},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def clip_layer(start: str) -> dict[str, tuple[int, ...]]:
    names = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        shapes |= {f"{start}.{name}.weight": (8, 8), f"{start}.{name}.bias": (8,)}
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{start}.{name}.weight": (8,), f"{start}.{name}.bias": (8,)}
    shapes |= {f"{start}.mlp.fc1.weight": (12, 8), f"{start}.mlp.fc1.bias": (12,)}
    return shapes | {f"{start}.mlp.fc2.weight": (8, 12), f"{start}.mlp.fc2.bias": (8,)}


def clip_weights() -> dict[str, torch.Tensor]:
    """Names and shapes as published; nothing here needs the publishing library."""
    text, vision = "text_model", "vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        f"{text}.embeddings.token_embedding.weight": (len(WORDS), 8),
        f"{text}.embeddings.position_embedding.weight": (6, 8),
        f"{text}.final_layer_norm.weight": (8,),
        f"{text}.final_layer_norm.bias": (8,),
        "text_projection.weight": (4, 8),
        "visual_projection.weight": (4, 8),
        f"{vision}.embeddings.class_embedding": (8,),
        f"{vision}.embeddings.patch_embedding.weight": (8, 3, 8, 8),
        f"{vision}.embeddings.position_embedding.weight": (5, 8),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{vision}.{name}.weight": (8,), f"{vision}.{name}.bias": (8,)}
    shapes |= clip_layer(f"{text}.encoder.layers.0") | clip_layer(f"{vision}.encoder.layers.0")
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save_tokenizer(folder: Path, *, small: bool = False) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if small:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", WORDS.index("<end>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A sound directory."""
    folder = tmp_path / "model"
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 6, "eos_token_id": 6, **SIZES}
    vision = {"image_size": 16, "patch_size": 8, **SIZES}
    write_json(
        folder / "config.json",
        {"model_type": "clip", "projection_dim": 4, "text_config": text, "vision_config": vision},
    )
    write_json(folder / "preprocessor_config.json", PICTURES)
    write_json(folder / "tokenizer_config.json", {"pad_token": "<pad>", "model_max_length": 6})
    save_tokenizer(folder)
    save_file(clip_weights(), folder / "model.safetensors")
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(
        {name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors"
    )


# --- a sound directory ---


def test_a_sound_directory_loads(clip: Path) -> None:
    model = load_pretrained(clip)
    assert not model.training
    assert model.encode_texts(["a dog", ""]).shape == (2, 4)
    assert model.config.text_preprocess.max_tokens == 6
    assert model.config.text_preprocess.pad_id == 0
    assert model.config.image_preprocess.crop_share == 16 / 20


def test_loading_leaves_the_callers_random_numbers_alone(clip: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_pretrained(clip)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(clip: Path, dtype: torch.dtype) -> None:
    expected = load_pretrained(clip).encode_texts(["a dog"])
    rewrite(clip, lambda weights: weights.update({n: w.to(dtype) for n, w in weights.items()}))
    model = load_pretrained(clip)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    np.testing.assert_allclose(model.encode_texts(["a dog"]), expected, atol=0.05)


# --- weights ---


def test_all_that_does_not_fit_is_told_at_once(clip: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["surprise"] = torch.zeros(1)
        del weights["text_projection.weight"]
        weights["visual_projection.weight"] = torch.zeros(5, 8)
        weights["text_model.final_layer_norm.bias"][0] = float("nan")
        weights["vision_model.post_layernorm.bias"] = torch.zeros(8, dtype=torch.int8)

    rewrite(clip, change)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(clip)
    message = str(caught.value)
    for part in (
        "missing text_projection.weight",
        "unexpected surprise",
        "visual_projection.weight is (5, 8), config.json says (4, 8)",
        "not finite: text_model.final_layer_norm.bias",
        "vision_model.post_layernorm.bias (holds torch.int8",
    ):
        assert part in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused(clip: Path, value: float) -> None:
    rewrite(clip, lambda weights: weights["text_projection.weight"][0].fill_(value))
    with pytest.raises(WeightsError, match=r"not finite: text_projection\.weight"):
        load_pretrained(clip)


def test_one_part_of_an_attention_of_another_shape_is_refused(clip: Path) -> None:
    name = "text_model.encoder.layers.0.self_attn.k_proj.weight"
    rewrite(clip, lambda weights: weights.update({name: torch.zeros(8, 7)}))
    with pytest.raises(WeightsError, match=r"k_proj\.weight is \(8, 7\)"):
        load_pretrained(clip)


@pytest.mark.parametrize(
    "name", sorted(name for name in clip_weights() if name not in ("logit_scale",))
)
def test_no_weight_may_be_missing(clip: Path, name: str) -> None:
    rewrite(clip, lambda weights: weights.pop(name) is None)
    with pytest.raises(WeightsError, match="missing " + name.replace(".", r"\.")):
        load_pretrained(clip)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5000, -1])
def test_a_truncated_file_is_refused(clip: Path, kept: int) -> None:
    path = clip / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"cannot read .*damaged"):
        load_pretrained(clip)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: dict[str, Any], data: bytes, *, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def lie_about_offsets(header: dict[str, Any]) -> None:
    header["text_projection.weight"]["data_offsets"] = [0, 10**12]


def lie_about_shape(header: dict[str, Any]) -> None:
    header["text_projection.weight"]["shape"] = [40_000, 80_000]


def lie_about_overlap(header: dict[str, Any]) -> None:
    header["text_projection.weight"]["data_offsets"] = [0, 128]


def lie_about_dtype(header: dict[str, Any]) -> None:
    header["text_projection.weight"]["dtype"] = "F63"


@pytest.mark.parametrize(
    "lie", [lie_about_offsets, lie_about_shape, lie_about_overlap, lie_about_dtype]
)
def test_a_lying_header_is_refused(clip: Path, lie: Callable[[dict[str, Any]], None]) -> None:
    path = clip / "model.safetensors"
    header, data = header_of(path.read_bytes())
    lie(header)
    path.write_bytes(with_header(header, data))
    with pytest.raises(WeightsError, match=r"cannot read .*model\.safetensors"):
        load_pretrained(clip)


@pytest.mark.parametrize("length", [2**63, 2**40, 3, 0])
def test_a_header_of_a_lying_length_is_refused(clip: Path, length: int) -> None:
    path = clip / "model.safetensors"
    header, data = header_of(path.read_bytes())
    path.write_bytes(with_header(header, data, length=length))
    with pytest.raises(WeightsError, match=r"cannot read .*model\.safetensors"):
        load_pretrained(clip)


def test_a_picture_or_a_directory_in_place_of_weights_is_refused(clip: Path) -> None:
    path = clip / "model.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 500)
    with pytest.raises(WeightsError, match="cannot read"):
        load_pretrained(clip)
    path.unlink()
    path.mkdir()
    with pytest.raises(WeightsError, match=r"no weights, expected model\.safetensors"):
        load_pretrained(clip)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(clip: Path) -> None:
    (clip / "model.safetensors").chmod(0)
    with pytest.raises(WeightsError, match="cannot read"):
        load_pretrained(clip)


# --- pickles ---


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_never_read(clip: Path, name: str) -> None:
    (clip / "model.safetensors").unlink()
    mark = clip / "it-ran"
    torch.save(Bomb(mark), clip / name)
    with pytest.raises(WeightsError, match=r"only pickles.*save_pretrained"):
        load_pretrained(clip)
    assert not mark.exists()


def test_a_pickle_under_another_name_is_never_read(clip: Path) -> None:
    mark = clip / "it-ran"
    torch.save(Bomb(mark), clip / "model.safetensors")
    with pytest.raises(WeightsError, match="cannot read"):
        load_pretrained(clip)
    assert not mark.exists()


# --- shards ---


@pytest.fixture
def shards(clip: Path) -> Path:
    weights = load_file(clip / "model.safetensors")
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[:10], names[10:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, clip / file)
        places |= dict.fromkeys(part, file)
    (clip / "model.safetensors").unlink()
    write_json(clip / "model.safetensors.index.json", {"weight_map": places})
    return clip


def test_shards_are_one_model(clip: Path, shards: Path) -> None:
    assert load_pretrained(shards).encode_texts(["a dog"]).shape == (1, 4)


def test_a_shard_that_is_not_there_is_named(shards: Path) -> None:
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002.*, which is not there"):
        load_pretrained(shards)


def test_a_shard_of_another_model_is_refused(shards: Path) -> None:
    save_file({"other": torch.zeros(1)}, shards / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match="differ in"):
        load_pretrained(shards)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin"]
)
def test_an_index_cannot_point_elsewhere(shards: Path, name: str) -> None:
    write_json(shards / "model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(WeightsError, match="names the file"):
        load_pretrained(shards)


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}, [1]])
def test_a_damaged_index_is_refused(shards: Path, content: object) -> None:
    write_json(shards / "model.safetensors.index.json", content)
    with pytest.raises(WeightsError, match=r"index\.json"):
        load_pretrained(shards)


# --- config.json ---


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"model_type": 3}']
)
def test_a_damaged_configuration_is_refused(clip: Path, content: bytes) -> None:
    (clip / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json|of type 3"):
        load_pretrained(clip)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", "8", "a whole number"),
        ("hidden_size", -8, "a whole number"),
        ("hidden_size", True, "a whole number"),
        ("hidden_size", 16, "of another shape"),
        ("num_attention_heads", 3, "a divisor of hidden_size"),
        ("num_hidden_layers", 2, r"missing vision_model\.encoder\.layers\.1"),
        ("num_hidden_layers", 10**9, "missing"),
        ("hidden_size", 2 * 10**9, "of another shape"),
        ("hidden_act", "relu", "gelu_pytorch_tanh"),
        ("layer_norm_eps", None, None),
        ("layer_norm_eps", "small", "a finite number"),
        ("image_size", [16, 32], "side of a square"),
        ("patch_size", 0, "side of a square"),
    ],
)
def test_a_configuration_of_another_form_is_refused(
    clip: Path, key: str, value: object, said: str | None
) -> None:
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"][key] = value
    write_json(clip / "config.json", config)
    if said is None:
        assert load_pretrained(clip).config.vision.transformer.norm_eps == 1e-5
        return
    with pytest.raises(WeightsError, match=said):
        load_pretrained(clip)


def test_an_end_of_text_that_the_tokenizer_does_not_write_is_refused(clip: Path) -> None:
    """Every text would be pooled at its first token."""
    config = json.loads((clip / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 3
    write_json(clip / "config.json", config)
    with pytest.raises(WeightsError, match=r"eos_token_id is 3"):
        load_pretrained(clip)


@pytest.mark.parametrize("load", [load_pretrained, load_text_tower, load_vision_tower])
@pytest.mark.parametrize("kind", ["siglip2", "llama", None, ""])
def test_models_of_other_types_are_refused(clip: Path, load: Any, kind: object) -> None:
    edit_json(clip / "config.json", model_type=kind)
    with pytest.raises(WeightsError, match="is of type"):
        load(clip)


def test_each_loader_says_what_it_reads(clip: Path) -> None:
    with pytest.raises(WeightsError, match="expected 'bert'"):
        load_text_tower(clip)
    with pytest.raises(WeightsError, match="expected 'vit' or 'dinov2'"):
        load_vision_tower(clip)
    edit_json(clip / "config.json", model_type="bert")
    with pytest.raises(WeightsError, match="expected 'clip' or 'siglip'"):
        load_pretrained(clip)


@pytest.mark.parametrize("load", [load_pretrained, load_text_tower, load_vision_tower])
def test_a_directory_that_is_empty_or_absent_is_refused(tmp_path: Path, load: Any) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load(tmp_path / "absent")


# --- texts ---


def test_a_tokenizer_in_another_form_is_refused_with_the_way_out(clip: Path) -> None:
    (clip / "tokenizer.json").rename(clip / "spiece.model")
    with pytest.raises(
        WeightsError, match=r"spiece\.model, expected tokenizer\.json.*AutoTokenizer"
    ):
        load_pretrained(clip)
    (clip / "spiece.model").unlink()
    with pytest.raises(WeightsError, match="no tokenizer"):
        load_pretrained(clip)
    (clip / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot read the tokenizer"):
        load_pretrained(clip)


def test_small_letters_where_the_files_ask_for_them(clip: Path) -> None:
    """SigLIP 2 says in `tokenizer_config.json` only that it was trained on small letters."""
    plain = load_pretrained(clip).tokenizer.encode("A Dog").ids
    assert plain == [WORDS.index(word) for word in ("A", "Dog", "<end>")]
    edit_json(clip / "tokenizer_config.json", do_lower_case=True)
    small = load_pretrained(clip).tokenizer.encode("A Dog").ids
    assert small == [WORDS.index(word) for word in ("a", "dog", "<end>")]
    save_tokenizer(clip, small=True)
    assert load_pretrained(clip).tokenizer.encode("A Dog").ids == small


def test_the_padding_token_must_be_a_token(clip: Path) -> None:
    edit_json(clip / "tokenizer_config.json", pad_token={"content": "<end>"})
    assert load_pretrained(clip).config.text_preprocess.pad_id == 6
    edit_json(clip / "tokenizer_config.json", pad_token="<nothing>")
    with pytest.raises(WeightsError, match=r"pad_token is '<nothing>'"):
        load_pretrained(clip)


def test_no_text_is_longer_than_the_tower_takes(clip: Path) -> None:
    edit_json(clip / "tokenizer_config.json", model_max_length=1e30)
    model = load_pretrained(clip)
    assert model.config.text_preprocess.max_tokens == 6
    assert np.isfinite(model.encode_texts(["a dog " * 1000])).all()


# --- pictures ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1.0}, "1/255"),
        ({"resample": 0}, "bicubic"),
        ({"resample": True}, "bicubic"),
        ({"image_mean": [0.5, 0.5]}, "three finite numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"size": {"height": 20, "width": 30}}, "equal height and width"),
        ({"size": {"shortest_edge": 20, "longest_edge": 30}}, "equal height and width"),
        ({"size": {"shortest_edge": 12}}, "at most the scaled short side"),
        ({"size": None}, "equal height and width"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"crop_size": 18}, "18 pixels for a tower of 16"),
    ],
)
def test_pictures_that_would_be_made_otherwise_are_refused(
    clip: Path, changes: dict[str, Any], said: str
) -> None:
    edit_json(clip / "preprocessor_config.json", **changes)
    with pytest.raises(WeightsError, match=said):
        load_pretrained(clip)


def test_pictures_without_settings_are_refused(clip: Path) -> None:
    (clip / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"no preprocessor_config\.json"):
        load_pretrained(clip)
    write_json(clip / "processor_config.json", {"image_processor": PICTURES})
    assert load_pretrained(clip).config.image_preprocess.mean == (0.4, 0.5, 0.6)


def test_old_and_new_ways_of_writing_a_size_mean_the_same(clip: Path) -> None:
    expected = read_image_preprocess(clip)
    edit_json(clip / "preprocessor_config.json", size=20, crop_size=16)
    assert read_image_preprocess(clip) == expected
    edit_json(
        clip / "preprocessor_config.json",
        do_center_crop=None,
        image_mean=None,
        feature_extractor_type="CLIPFeatureExtractor",
    )
    defaults = read_image_preprocess(clip)
    assert (defaults.fit, defaults.crop_share) == ("crop_whole", 0.8)
    assert defaults.mean == (0.48145466, 0.4578275, 0.40821073)
    edit_json(
        clip / "preprocessor_config.json",
        crop_size=None,
        feature_extractor_type="ViTFeatureExtractor",
    )
    square = read_image_preprocess(clip)
    assert (square.fit, square.size_px, square.mean) == ("squash", 20, (0.5, 0.5, 0.5))


# --- the hub ---


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr


FETCH = """
from costream.encoders.pretrained.hub import fetch_from_hub
from costream.errors import WeightsError
try:
    print("GOT", fetch_from_hub("owner/model"))
except WeightsError as error:
    print("REFUSED", error)
"""


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline", "unreachable"],
)
def test_a_hub_that_is_not_there(tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("huggingface_hub")
    said = in_a_process(FETCH, HF_HOME=str(tmp_path), **environment)
    assert "REFUSED cannot get 'owner/model' from the hub" in said
    assert "give its path" in said


def test_a_hub_name_without_the_package(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['huggingface_hub'] = None\n"
    assert "pip install 'costream[hub]'" in in_a_process(hide + FETCH, HF_HOME=str(tmp_path))


@pytest.mark.parametrize("name", ["a/b/c", "-/..", "a/..", "a b/c"])
def test_names_that_no_hub_has(name: str) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(WeightsError, match="from the hub"):
        fetch_from_hub(name)


def cached(home: Path, *, revision: str, reference: str, files: dict[str, bytes]) -> Path:
    """A snapshot as `huggingface_hub` keeps it."""
    model = home / "hub" / "models--owner--model"
    mark = model / "refs" / reference
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(revision)
    snapshot = model / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot


def test_what_was_fetched_before_works_offline(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    snapshot = cached(
        tmp_path, revision="a" * 40, reference="main", files={"model.safetensors": b""}
    )
    said = in_a_process(FETCH, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert f"GOT {snapshot}" in said


def test_converted_weights_are_taken_where_a_model_has_only_pickles(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    cached(tmp_path, revision="a" * 40, reference="main", files={"config.json": b"{}"})
    said = in_a_process(FETCH, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "REFUSED cannot get 'owner/model' from the hub" in said
    converted = cached(
        tmp_path,
        revision="b" * 40,
        reference="refs/pr/7",
        files={"config.json": b"{}", "model.safetensors": b""},
    )
    said = in_a_process(FETCH, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert f"GOT {converted}" in said


def entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: one model with a pickle, and pull requests."""

    offers: ClassVar[list[dict[str, Any]]] = []
    revisions: ClassVar[dict[str, tuple[str, dict[str, bytes]]]] = {
        "main": ("a" * 40, {"config.json": b"{}", "pytorch_model.bin": b"pickle"}),
        "refs/pr/7": ("b" * 40, {"config.json": b"{}", "model.safetensors": b"weights"}),
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        for name, (commit, files) in self.revisions.items():
            for revision in (name, commit):
                if path == f"/api/models/owner/model/revision/{revision}":
                    listed = [{"rfilename": file} for file in files]
                    self._answer({"id": "owner/model", "sha": commit, "siblings": listed})
                    return
                if path == f"/api/models/owner/model/tree/{revision}":
                    self._answer([entry(name, content) for name, content in files.items()])
                    return
                start = f"/owner/model/resolve/{revision}/"
                if path.startswith(start) and path.removeprefix(start) in files:
                    self._send(files[path.removeprefix(start)], commit)
                    return
        if path == "/api/models/owner/model/discussions":
            self._answer({"discussions": self.offers, "count": len(self.offers), "start": 0})
            return
        self.send_error(404)

    def _answer(self, value: object) -> None:
        self._send(json.dumps(value).encode(), "")

    def _send(self, content: bytes, commit: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub() -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def offer(number: int, author: str, title: str) -> dict[str, Any]:
    return {
        "num": number,
        "title": title,
        "status": "open",
        "author": {"name": author},
        "isPullRequest": True,
        "repo": {"name": "owner/model", "type": "model"},
        "createdAt": "2023-01-01T00:00:00.000Z",
    }


def test_only_the_converters_own_offer_is_taken(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`openai/clip-vit-base-patch32` itself has its weights as a pickle only."""
    title = "Adding `safetensors` variant of this model"
    stranger = offer(6, "somebody", title)
    monkeypatch.setattr(Hub, "offers", [stranger, offer(5, "SFconvertbot", "Other")])
    said = in_a_process(FETCH, HF_HOME=str(tmp_path), HF_ENDPOINT=hub)
    assert "REFUSED the hub has no safetensors of 'owner/model'" in said
    monkeypatch.setattr(Hub, "offers", [stranger, offer(7, "SFconvertbot", title)])
    said = in_a_process(FETCH, HF_HOME=str(tmp_path), HF_ENDPOINT=hub)
    got = Path(said.split("GOT ")[1].splitlines()[0])
    assert (got / "model.safetensors").read_bytes() == b"weights"
    assert not list(tmp_path.rglob("pytorch_model.bin"))
    assert f"GOT {got}" in in_a_process(FETCH, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
