"""CLIP and SigLIP as a whole: both towers, projections and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess, load_tokenizer
from costream.encoders.pretrained.source import Source, fill, read_json, read_weights
from costream.encoders.pretrained.text import two_tower_text_state, two_tower_transformer
from costream.encoders.pretrained.vision import clip_vision_state, siglip_vision_state
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig
from costream.errors import WeightsError

# transformers' own defaults, which a config.json leaves out where they apply.
_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_SIGLIP_TEXT = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_SIGLIP_VISION = {**_CLIP_VISION, "patch_size": 16}


def load_pretrained(directory: str | Path) -> DualEncoder:
    """A two-stream model from a Hugging Face directory of CLIP or SigLIP.

    Args:
        directory: With `config.json`, `model.safetensors`, `tokenizer.json` and
            `preprocessor_config.json`.

    Raises:
        WeightsError: When it is of another family, or a file is absent or damaged.
    """
    directory = Path(directory)
    config = read_json(directory / "config.json")
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        raise WeightsError(
            f"{directory} is of type {kind!r}, expected 'clip' or 'siglip', whose towers "
            "share a space",
            hint="give a directory with both towers, or one that costream train wrote",
        )
    source = Source(read_weights(directory), directory, meaningless=(r"logit_scale", r"logit_bias"))
    form = _clip_form if kind == "clip" else _siglip_form
    model = DualEncoder(form(directory, config), load_tokenizer(directory / "tokenizer.json"))
    state = _clip_state(source, model) if kind == "clip" else _siglip_state(source, model)
    source.finish()
    fill(model, state, directory)
    return model.eval()


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _clip_state(source: Source, model: DualEncoder) -> dict[str, Tensor]:
    text_depth = model.config.text.transformer.depth
    vision_depth = model.config.vision.transformer.depth
    return {
        **_under("text", two_tower_text_state(source, text_depth)),
        **_under("vision", clip_vision_state(source, vision_depth)),
        "text_projection.weight": source.take("text_projection.weight"),
        "image_projection.weight": source.take("visual_projection.weight"),
    }


def _siglip_state(source: Source, model: DualEncoder) -> dict[str, Tensor]:
    text_depth = model.config.text.transformer.depth
    vision_depth = model.config.vision.transformer.depth
    return {
        **_under("text", two_tower_text_state(source, text_depth)),
        **_under("vision", siglip_vision_state(source, vision_depth)),
        **source.take_pair("text_projection", "text_model.head"),
    }


def _clip_form(directory: Path, config: Mapping[str, Any]) -> DualConfig:
    text = {**_CLIP_TEXT, **config.get("text_config", {})}
    vision = {**_CLIP_VISION, **config.get("vision_config", {})}
    # Checkpoints from before the id was written right say 2; their end-of-text is the last id.
    eot_id = text["vocab_size"] - 1 if text["eos_token_id"] == 2 else text["eos_token_id"]
    return DualConfig(
        name=_name(directory, config),
        dim=config.get("projection_dim", 512),
        vision=VisionConfig(
            image_px=vision["image_size"],
            patch_px=vision["patch_size"],
            transformer=two_tower_transformer(vision, "quick_gelu", 1e-5),
            patch_bias=False,
            pre_norm=True,
            final_norm="pooled",
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            context=text["max_position_embeddings"],
            transformer=two_tower_transformer(text, "quick_gelu", 1e-5),
            causal=True,
            final_norm=True,
            pooling="eot",
            eot_id=eot_id,
        ),
        image_preprocess=_image_preprocess(directory, vision["image_size"]),
        text_preprocess=TextPreprocess(max_tokens=text["max_position_embeddings"], pad_id=eot_id),
    )


def _siglip_form(directory: Path, config: Mapping[str, Any]) -> DualConfig:
    text = {**_SIGLIP_TEXT, **config.get("text_config", {})}
    vision = {**_SIGLIP_VISION, **config.get("vision_config", {})}
    dim = text.get("projection_size") or text["hidden_size"]
    if dim != vision["hidden_size"]:
        raise WeightsError(
            f"{directory}: text vectors have {dim} dimensions, pictures' {vision['hidden_size']}"
        )
    return DualConfig(
        name=_name(directory, config),
        dim=dim,
        vision=VisionConfig(
            image_px=vision["image_size"],
            patch_px=vision["patch_size"],
            transformer=two_tower_transformer(vision, "gelu_pytorch_tanh", 1e-6),
            class_token=False,
            pooling="attention",
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            context=text["max_position_embeddings"],
            transformer=two_tower_transformer(text, "gelu_pytorch_tanh", 1e-6),
            final_norm=True,
            pooling="last",
        ),
        image_preprocess=_image_preprocess(directory, vision["image_size"]),
        text_preprocess=TextPreprocess(
            max_tokens=text["max_position_embeddings"],
            pad_id=text["pad_token_id"],
            pad_to_max=True,
        ),
        projection="text",
        projection_bias=True,
    )


def _name(directory: Path, config: Mapping[str, Any]) -> str:
    # A hub snapshot lies in .../models--owner--name/snapshots/<hash>.
    for part in reversed(directory.parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return str(config.get("_name_or_path") or directory.name)


def _image_preprocess(directory: Path, image_px: int) -> ImagePreprocess:
    settings = read_json(directory / "preprocessor_config.json")
    if not settings:
        raise WeightsError(
            f"{directory} has no preprocessor_config.json",
            hint="copy it too: with other preprocessing the vectors mean something else",
        )
    size = settings.get("size", image_px)
    crops = settings.get("do_center_crop", False)
    side = image_px
    share = 1.0
    if crops:
        crop = settings.get("crop_size", image_px)
        side = crop["height"] if isinstance(crop, dict) else crop
        short = size.get("shortest_edge", side) if isinstance(size, dict) else size
        share = side / short
    resample = {2: "bilinear", 3: "bicubic"}.get(settings.get("resample", 3))
    if resample is None or not 0 < share <= 1:
        raise WeightsError(
            f"{directory / 'preprocessor_config.json'} asks for resample "
            f"{settings.get('resample')} and a crop of {share:.2f}, "
            "expected 2 or 3 and a share of at most 1"
        )
    normalises = settings.get("do_normalize", True)
    mean = settings.get("image_mean", [0.5] * 3) if normalises else [0.0] * 3
    std = settings.get("image_std", [0.5] * 3) if normalises else [1.0] * 3
    return ImagePreprocess(
        size_px=side,
        fit="crop" if crops else "squash",
        crop_share=share,
        resample=cast(Literal["bilinear", "bicubic"], resample),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
    )
