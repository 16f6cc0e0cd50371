"""Our towers give what `transformers` gives on the same weights, for every family that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import costream
from costream.encoders.pretrained import (
    load_pretrained,
    load_text_tower,
    load_vision_tower,
    read_image_preprocess,
)
from costream.errors import WeightsError

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "dog", "on", "the", "beach", "cat", "red"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight random: fresh ones are zero or one where a mistake would not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + (0.5 if weight.ndim == 1 else 0.0))
    return model.eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_bert(tmp_path: Path, activation: str) -> None:
    config = transformers.BertConfig(vocab_size=50, hidden_act=activation, **SIZES)
    theirs = randomised(transformers.BertModel(config))
    theirs.save_pretrained(tmp_path)
    ours = load_text_tower(tmp_path)
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask)
        found = ours(ids, mask.bool())
    assert gap(found.pooled, expected.pooler_output) < TOLERANCE
    real = mask.bool()
    assert gap(found.tokens[real], expected.last_hidden_state[real]) < TOLERANCE


def test_bert_with_a_head_and_old_names(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=50, tie_word_embeddings=True, **SIZES)
    theirs = randomised(transformers.BertForMaskedLM(config))
    theirs.save_pretrained(tmp_path)
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        expected = theirs.bert(ids).last_hidden_state
        found = load_text_tower(tmp_path)(ids)
    assert gap(found.tokens, expected) < TOLERANCE
    assert gap(found.pooled, expected[:, 0]) < TOLERANCE


def test_vit(tmp_path: Path, pictures: torch.Tensor) -> None:
    theirs = randomised(
        transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES))
    )
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(pictures).last_hidden_state
        found = load_vision_tower(tmp_path)(pictures)
    assert gap(found.tokens, expected) < TOLERANCE
    assert gap(found.pooled, expected[:, 0]) < TOLERANCE


def test_vit_at_another_size(tmp_path: Path) -> None:
    theirs = randomised(
        transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES))
    )
    theirs.save_pretrained(tmp_path)
    pictures = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = theirs(pictures, interpolate_pos_encoding=True).last_hidden_state
        found = load_vision_tower(tmp_path)(pictures)
    assert gap(found.tokens, expected) < TOLERANCE


def test_vit_by_the_names_of_older_checkpoints(tmp_path: Path, pictures: torch.Tensor) -> None:
    theirs = randomised(
        transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES))
    )
    theirs.save_pretrained(tmp_path)
    older = {}
    renames = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for name, value in theirs.state_dict().items():
        old_name = name
        for new, old in renames.items():
            old_name = old_name.replace(new, old)
        older["vit." + old_name.replace("layers.", "encoder.layer.", 1)] = value.contiguous()
    save_file(older, tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = theirs(pictures).last_hidden_state
        assert gap(load_vision_tower(tmp_path)(pictures).tokens, expected) < TOLERANCE


def test_dinov2(tmp_path: Path, pictures: torch.Tensor) -> None:
    config = transformers.Dinov2Config(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    theirs = randomised(transformers.Dinov2Model(config))
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(pictures)
        found = load_vision_tower(tmp_path)(pictures)
    assert gap(found.tokens, expected.last_hidden_state) < TOLERANCE
    assert gap(found.pooled, expected.pooler_output) < TOLERANCE


def test_a_gated_dinov2_is_refused(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        use_swiglu_ffn=True,
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="gated"):
        load_vision_tower(tmp_path)


def save_tokenizer(folder: Path, *, closing: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {closing}", special_tokens=[("<s>", 1), (closing, WORDS.index(closing))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def clip_directory(folder: Path) -> torch.nn.Module:
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": 11,
            "max_position_embeddings": 12,
            "bos_token_id": 1,
            "eos_token_id": 10,
            "pad_token_id": 10,
            **SIZES,
        },
        vision_config={"image_size": 32, "patch_size": 8, **SIZES},
        projection_dim=16,
    )
    model = randomised(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    save_tokenizer(folder, closing="red")
    settings = {
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "size": {"shortest_edge": 32},
        "resample": 3,
        "image_mean": [0.48, 0.45, 0.4],
        "image_std": [0.27, 0.26, 0.28],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def siglip_directory(folder: Path) -> torch.nn.Module:
    config = transformers.SiglipConfig(
        text_config={"vocab_size": 11, "max_position_embeddings": 9, "pad_token_id": 2, **SIZES},
        vision_config={"image_size": 32, "patch_size": 8, **SIZES},
    )
    model = randomised(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    save_tokenizer(folder, closing="</s>")
    settings = {"size": {"height": 32, "width": 32}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def image_features(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    found = model.get_image_features(pixel_values=pixels)
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def text_features(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found = model.get_text_features(input_ids=ids)
    return found if isinstance(found, torch.Tensor) else found.pooler_output


@pytest.mark.parametrize("make", [clip_directory, siglip_directory])
def test_both_towers_end_in_the_same_vectors(tmp_path: Path, make: object) -> None:
    theirs = make(tmp_path)  # type: ignore[operator]
    ours = load_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in noise]
    mean = torch.tensor(ours.config.image_preprocess.mean).view(3, 1, 1)
    std = torch.tensor(ours.config.image_preprocess.std).view(3, 1, 1)
    pixels = (torch.from_numpy(noise).permute(0, 3, 1, 2) / 255 - mean) / std
    texts = ["a dog on the beach", "cat", "a red dog"]
    settings = ours.config.text_preprocess
    with torch.no_grad():
        expected_images = image_features(theirs, pixels)
        rows = []
        for text in texts:
            ids = ours.tokenizer.encode(text).ids
            if settings.pad_to_max:
                ids = ids + [settings.pad_id] * (settings.max_tokens - len(ids))
            rows.append(text_features(theirs, torch.tensor([ids])))
        expected_texts = torch.cat(rows)
    unit = torch.nn.functional.normalize
    assert gap(torch.from_numpy(ours.encode_images(images)), unit(expected_images)) < TOLERANCE
    assert gap(torch.from_numpy(ours.encode_texts(texts)), unit(expected_texts)) < TOLERANCE


def test_load_takes_a_hugging_face_directory(tmp_path: Path) -> None:
    clip_directory(tmp_path)
    model = costream.load(tmp_path)
    assert model.encode_texts(["a dog"]).shape == (1, 16)


def test_shards_are_read_like_one_file(tmp_path: Path, pictures: torch.Tensor) -> None:
    theirs = randomised(
        transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES))
    )
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    with torch.no_grad():
        expected = theirs(pictures).last_hidden_state
        assert gap(load_vision_tower(tmp_path)(pictures).tokens, expected) < TOLERANCE


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    clip_directory(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"only pickles.*save_pretrained"):
        load_pretrained(tmp_path)


def test_a_missing_or_an_extra_weight_is_refused(tmp_path: Path) -> None:
    clip_directory(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "surprise": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="unexpected surprise"):
        load_pretrained(tmp_path)
    weights.pop("text_projection.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing text_projection\.weight"):
        load_pretrained(tmp_path)


def test_a_damaged_file_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    clip_directory(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["text_projection.weight"][0, 0] = float("nan")
    save_file(weights, path)
    with pytest.raises(WeightsError, match="not finite"):
        load_pretrained(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        load_pretrained(tmp_path)


# --- variants that a file states and a name does not ---


def dinov2(**changes: Any) -> torch.nn.Module:
    form = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.Dinov2Config(**{**form, "num_attention_heads": 4, **changes})
    return randomised(transformers.Dinov2Model(config))


@pytest.mark.parametrize("shape", [(48, 64), (33, 47), (8, 8)])
def test_dinov2_at_another_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    theirs = dinov2(mlp_ratio=3)
    theirs.save_pretrained(tmp_path)
    pictures = torch.randn(2, 3, *shape)
    with torch.no_grad():
        expected = theirs(pictures)
        found = load_vision_tower(tmp_path)(pictures)
    assert gap(found.tokens, expected.last_hidden_state) < TOLERANCE
    assert gap(found.pooled, expected.pooler_output) < TOLERANCE


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_attention_without_bias(tmp_path: Path, kind: str, pictures: torch.Tensor) -> None:
    if kind == "vit":
        config = transformers.ViTConfig(image_size=32, patch_size=8, qkv_bias=False, **SIZES)
        theirs = randomised(transformers.ViTModel(config))
    else:
        theirs = dinov2(qkv_bias=False)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(pictures).last_hidden_state
        assert gap(load_vision_tower(tmp_path)(pictures).tokens, expected) < TOLERANCE


@pytest.mark.parametrize("head", ["ViTForImageClassification", "Dinov2ForImageClassification"])
def test_a_classifier_is_left_out(tmp_path: Path, head: str, pictures: torch.Tensor) -> None:
    sizes = {"image_size": 32, "patch_size": 8, **SIZES}
    if head.startswith("Dino"):
        del sizes["intermediate_size"]
    kind = getattr(transformers, head)
    theirs = randomised(kind(kind.config_class(num_labels=3, **sizes)))
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs.base_model(pictures).last_hidden_state
        assert gap(load_vision_tower(tmp_path)(pictures).tokens, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "first"),
    ],
)
def test_a_sentence_encoder_pools_as_its_files_say(
    tmp_path: Path, modes: dict[str, bool], pooling: str
) -> None:
    theirs = randomised(transformers.BertModel(transformers.BertConfig(vocab_size=50, **SIZES)))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **modes})
    )
    ours = load_text_tower(tmp_path)
    assert ours.config.pooling == pooling
    ids, mask = torch.tensor([[4, 5, 6, 0], [7, 8, 9, 3]]), torch.tensor([[1, 1, 1, 0], [1] * 4])
    with torch.no_grad():
        hidden = theirs(ids, attention_mask=mask).last_hidden_state
        found = ours(ids, mask.bool()).pooled
    means = torch.stack([hidden[0, :3].mean(dim=0), hidden[1].mean(dim=0)])
    assert gap(found, means if pooling == "mean" else hidden[:, 0]) < TOLERANCE


def test_pooling_that_we_do_not_have_is_refused(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(vocab_size=50, **SIZES)).save_pretrained(
        tmp_path
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(WeightsError, match="pooling_mode_max_tokens"):
        load_text_tower(tmp_path)


def clip_parts(**changes: Any) -> torch.nn.Module:
    """A CLIP whose halves differ in every size."""
    text = {"vocab_size": 11, "max_position_embeddings": 12, "eos_token_id": 10, **SIZES}
    vision = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "image_size": 30,
        "patch_size": 8,
    }
    config = transformers.CLIPConfig(
        text_config={**text, **changes.get("text", {})},
        vision_config={**vision, **changes.get("vision", {})},
        projection_dim=16,
    )
    return randomised(transformers.CLIPModel(config))


def save_clip(model: torch.nn.Module, folder: Path, *, size: int = 30) -> None:
    model.save_pretrained(folder)
    save_tokenizer(folder, closing="red")
    settings = {"crop_size": size, "size": size, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_clip_layer_by_layer(tmp_path: Path, activation: str) -> None:
    """Tokens and vectors of both halves; padded texts; a size that patches do not fill."""
    act = {"hidden_act": activation}
    theirs = clip_parts(text=act, vision={**act, "layer_norm_eps": 1e-3})
    save_clip(theirs, tmp_path)
    ours = load_pretrained(tmp_path)
    pictures = torch.randn(2, 3, 30, 30)
    ids = torch.tensor([[1, 4, 5, 10, 10, 10], [1, 6, 7, 8, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    with torch.no_grad():
        seen = theirs.vision_model(pictures)
        read = theirs.text_model(ids, attention_mask=mask)
        found_seen, found_read = ours.vision(pictures), ours.text(ids, mask.bool())
    assert gap(found_seen.tokens, seen.last_hidden_state) < TOLERANCE
    assert gap(found_seen.pooled, seen.pooler_output) < TOLERANCE
    assert gap(found_read.tokens[mask.bool()], read.last_hidden_state[mask.bool()]) < TOLERANCE
    assert gap(found_read.pooled, read.pooler_output) < TOLERANCE


@pytest.mark.parametrize("shape", [(48, 40), (30, 64)])
def test_clip_at_another_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    theirs = clip_parts()
    save_clip(theirs, tmp_path)
    pictures = torch.randn(2, 3, *shape)
    with torch.no_grad():
        expected = theirs.vision_model(pictures, interpolate_pos_encoding=True)
        found = load_pretrained(tmp_path).vision(pictures)
    assert gap(found.tokens, expected.last_hidden_state) < TOLERANCE


def test_clip_from_before_the_id_of_end_of_text_was_right(tmp_path: Path) -> None:
    """Such files say 2 and mean the highest id; 2 stands in the texts here."""
    theirs = clip_parts(text={"eos_token_id": 2})
    save_clip(theirs, tmp_path)
    ours = load_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 5, 10, 3, 3], [1, 6, 2, 8, 9, 10]])
    with torch.no_grad():
        assert gap(ours.text(ids).pooled, theirs.text_model(ids).pooler_output) < TOLERANCE


def test_clip_with_its_settings_under_the_older_key(tmp_path: Path) -> None:
    theirs = clip_parts()
    save_clip(theirs, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = config.pop("text_config")
    config["text_config"] = None
    config["vision_config_dict"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    pictures = torch.randn(1, 3, 30, 30)
    with torch.no_grad():
        expected = theirs.vision_model(pictures).pooler_output
        assert gap(load_pretrained(tmp_path).vision(pictures).pooled, expected) < TOLERANCE


def siglip_parts(**changes: Any) -> torch.nn.Module:
    text = {"vocab_size": 11, "max_position_embeddings": 9, "projection_size": 24, **SIZES}
    vision = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "image_size": 30,
        "patch_size": 8,
    }
    config = transformers.SiglipConfig(text_config=text, vision_config={**vision, **changes})
    return randomised(transformers.SiglipModel(config))


def save_siglip(model: torch.nn.Module, folder: Path, *, pad: str = "</s>") -> None:
    model.save_pretrained(folder)
    save_tokenizer(folder, closing="</s>")
    settings = {"size": {"height": 30, "width": 30}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_siglip_layer_by_layer(tmp_path: Path, activation: str) -> None:
    """The activation holds in the pooling head too; text and picture towers differ in width."""
    theirs = siglip_parts(hidden_act=activation)
    save_siglip(theirs, tmp_path)
    ours = load_pretrained(tmp_path)
    pictures, ids = torch.randn(2, 3, 30, 30), torch.randint(0, 11, (2, 9))
    with torch.no_grad():
        seen, read = theirs.vision_model(pictures), theirs.text_model(ids)
        found_seen, found_read = ours.vision(pictures), ours.text(ids)
        projected = ours.text_projection(found_read.pooled)
    assert gap(found_seen.tokens, seen.last_hidden_state) < TOLERANCE
    assert gap(found_seen.pooled, seen.pooler_output) < TOLERANCE
    assert gap(found_read.tokens, read.last_hidden_state) < TOLERANCE
    assert gap(projected, read.pooler_output) < TOLERANCE


def test_siglip_at_another_size(tmp_path: Path) -> None:
    theirs = siglip_parts()
    save_siglip(theirs, tmp_path)
    pictures = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        expected = theirs.vision_model(pictures, interpolate_pos_encoding=True)
        found = load_pretrained(tmp_path).vision(pictures)
    assert gap(found.tokens, expected.last_hidden_state) < TOLERANCE
    assert gap(found.pooled, expected.pooler_output) < TOLERANCE


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_siglip_pads_with_the_token_that_the_tokenizer_names(tmp_path: Path, pad: str) -> None:
    """The vector is read at the last place, which is padding: another token, another vector."""
    theirs = siglip_parts()
    save_siglip(theirs, tmp_path, pad=pad)
    ids = torch.tensor([[1, 4, 5, 2] + [WORDS.index(pad)] * 5])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(text_features(theirs, ids))
    found = load_pretrained(tmp_path).encode_texts(["a dog"])
    assert gap(torch.from_numpy(found), expected) < TOLERANCE


def test_siglip_padded_on_the_left_is_refused(tmp_path: Path) -> None:
    save_siglip(siglip_parts(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    with pytest.raises(WeightsError, match="padding_side is 'left'"):
        load_pretrained(tmp_path)


# --- pictures ---


def processor(kind: str, **settings: Any) -> Any:
    """The processor that needs no torchvision."""
    module = pytest.importorskip(f"transformers.models.{kind}.image_processing_pil_{kind}")
    name = {"clip": "CLIP", "siglip": "Siglip", "vit": "ViT", "bit": "Bit"}[kind]
    return getattr(module, f"{name}ImageProcessorPil")(**settings)


def both_ways(theirs: Any, folder: Path, picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    theirs.save_pretrained(folder)
    ours = read_image_preprocess(folder)
    mean, std = (np.array(each)[:, None, None] for each in (ours.mean, ours.std))
    found = (ours.pixels(picture) / 255 - mean) / std
    return found, np.asarray(theirs(picture, return_tensors="np")["pixel_values"][0])


@pytest.mark.parametrize(
    ("kind", "settings", "size"),
    [
        ("clip", {"size": {"shortest_edge": 32}, "crop_size": 32}, (77, 77)),
        ("clip", {"size": {"shortest_edge": 32}, "crop_size": 32}, (20, 20)),
        ("clip", {"size": {"shortest_edge": 32}, "crop_size": 32}, (64, 32)),
        ("bit", {"size": {"shortest_edge": 32}, "crop_size": 24}, (64, 32)),
        ("clip", {}, (640, 427)),
        ("clip", {}, (427, 640)),
        ("clip", {}, (501, 333)),
        ("clip", {}, (97, 1001)),
        ("clip", {"size": {"shortest_edge": 336}, "crop_size": 336}, (386, 587)),
        ("clip", {"size": {"shortest_edge": 33}, "crop_size": 24}, (51, 77)),
        ("bit", {"size": {"shortest_edge": 256}, "crop_size": 224}, (333, 500)),
        ("bit", {"size": {"shortest_edge": 256}, "crop_size": 224}, (7, 41)),
        ("siglip", {"size": {"height": 32, "width": 32}}, (77, 50)),
        ("vit", {"size": {"height": 32, "width": 32}}, (33, 150)),
    ],
)
def test_pixels_are_equal(
    tmp_path: Path, kind: str, settings: dict[str, Any], size: tuple[int, int]
) -> None:
    """Noise shows what smooth pictures hide: half a pixel's shift, another order of the passes."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    theirs = processor(kind, **settings)
    found, expected = both_ways(theirs, tmp_path, Image.fromarray(noise))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="from the hub"):
        costream.load("nobody/no-such-model-at-all")
