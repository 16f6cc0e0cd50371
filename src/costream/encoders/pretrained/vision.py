"""ViT and DINOv2 vision towers, and the vision halves of CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from costream.encoders.blocks import TransformerConfig
from costream.encoders.pretrained.source import (
    Source,
    activation_of,
    fill,
    read_json,
    read_weights,
    without_prefix,
)
from costream.encoders.pretrained.text import two_tower_layers
from costream.encoders.vision import VisionConfig, VisionTower
from costream.errors import WeightsError


def load_vision_tower(directory: str | Path) -> VisionTower:
    """A vision tower from a Hugging Face directory of ViT or DINOv2.

    Args:
        directory: With `config.json` and `model.safetensors`.

    Returns:
        The tower; its pooled vector is the class token after the last normalisation.

    Raises:
        WeightsError: When it is of another family, or damaged.
    """
    directory = Path(directory)
    config = read_json(directory / "config.json")
    kind = config.get("model_type")
    if kind not in ("vit", "dinov2"):
        raise WeightsError(
            f"{directory} is of type {kind!r}, expected 'vit' or 'dinov2'",
            hint="vision towers alone are read from ViT and DINOv2 directories",
        )
    if config.get("use_swiglu_ffn", False) or not config.get("qkv_bias", True):
        raise WeightsError(
            f"{directory} has a gated feed-forward part or attention without bias, "
            "which our layers do not have",
            hint="use a small, base or large DINOv2, or a standard ViT",
        )
    weights = without_prefix(read_weights(directory), f"{kind}.")
    meaningless = (r"pooler\..*", r"classifier\..*", r"embeddings\.mask_token")
    source = Source(weights, directory, meaningless=meaningless)
    form = _form(config, layer_scale=kind == "dinov2")
    state = _state(source, form)
    source.finish()
    tower = VisionTower(form)
    fill(tower, state, directory)
    return tower.eval()


def _form(config: Mapping[str, Any], *, layer_scale: bool) -> VisionConfig:
    width = config["hidden_size"]
    mlp_width = config.get("intermediate_size", 0) if not layer_scale else 0
    return VisionConfig(
        image_px=config["image_size"],
        patch_px=config["patch_size"],
        transformer=TransformerConfig(
            width=width,
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp_width=mlp_width or width * config.get("mlp_ratio", 4),
            activation=activation_of(config, "gelu"),
            norm_eps=config.get("layer_norm_eps", 1e-6 if layer_scale else 1e-12),
            layer_scale=layer_scale,
        ),
    )


def _state(source: Source, form: VisionConfig) -> dict[str, Tensor]:
    state = {
        "class_token": source.take("embeddings.cls_token"),
        "position_embedding": source.take("embeddings.position_embeddings").squeeze(0),
        **source.take_pair("project", "embeddings.patch_embeddings.projection"),
        **source.take_pair("final_norm", "layernorm"),
    }
    for number in range(form.transformer.depth):
        state |= _layer(source, number, layer_scale=form.transformer.layer_scale)
    return state


def _layer(source: Source, number: int, *, layer_scale: bool) -> dict[str, Tensor]:
    """One layer, by the names of transformers 5 or by those of the checkpoints before it."""
    ours = f"transformer.layers.{number}"
    names = (f"layers.{number}", f"encoder.layer.{number}")
    norm = _first_norm(layer_scale)
    theirs = next((name for name in names if source.has(f"{name}.{norm}.weight")), names[1])
    if source.has(f"{theirs}.attention.q_proj.weight"):
        query, key, value = (f"{theirs}.attention.{part}_proj" for part in "qkv")
        out = f"{theirs}.attention.o_proj"
    else:
        inner = f"{theirs}.attention.attention"
        query, key, value = f"{inner}.query", f"{inner}.key", f"{inner}.value"
        out = f"{theirs}.attention.output.dense"
    split = source.has(f"{theirs}.intermediate.dense.weight")
    mlp_in = f"{theirs}.intermediate.dense" if split else f"{theirs}.mlp.fc1"
    mlp_out = f"{theirs}.output.dense" if split else f"{theirs}.mlp.fc2"
    second = "norm2" if layer_scale else "layernorm_after"
    state = {
        **source.take_attention(f"{ours}.attention", (query, key, value)),
        **source.take_pair(f"{ours}.attention.out", out),
        **source.take_pair(f"{ours}.attention_norm", f"{theirs}.{_first_norm(layer_scale)}"),
        **source.take_pair(f"{ours}.mlp_in", mlp_in),
        **source.take_pair(f"{ours}.mlp_out", mlp_out),
        **source.take_pair(f"{ours}.mlp_norm", f"{theirs}.{second}"),
    }
    if layer_scale:
        state[f"{ours}.attention_scale"] = source.take(f"{theirs}.layer_scale1.lambda1")
        state[f"{ours}.mlp_scale"] = source.take(f"{theirs}.layer_scale2.lambda1")
    return state


def _first_norm(layer_scale: bool) -> str:
    return "norm1" if layer_scale else "layernorm_before"


def clip_vision_state(source: Source, depth: int) -> dict[str, Tensor]:
    """State of CLIP's vision half, without its projection."""
    return {
        "class_token": source.take("vision_model.embeddings.class_embedding").reshape(1, 1, -1),
        "project.weight": source.take("vision_model.embeddings.patch_embedding.weight"),
        "position_embedding": source.take("vision_model.embeddings.position_embedding.weight"),
        **source.take_pair("pre_norm", "vision_model.pre_layrnorm"),
        **two_tower_layers(source, "vision_model", depth),
        **source.take_pair("final_norm", "vision_model.post_layernorm"),
    }


def siglip_vision_state(source: Source, depth: int) -> dict[str, Tensor]:
    """State of SigLIP's vision half with its attention pooling."""
    head = "vision_model.head"
    return {
        **source.take_pair("project", "vision_model.embeddings.patch_embedding"),
        "position_embedding": source.take("vision_model.embeddings.position_embedding.weight"),
        **two_tower_layers(source, "vision_model", depth),
        **source.take_pair("final_norm", "vision_model.post_layernorm"),
        "pool.probe": source.take(f"{head}.probe"),
        "pool.attention.in_proj_weight": source.take(f"{head}.attention.in_proj_weight"),
        "pool.attention.in_proj_bias": source.take(f"{head}.attention.in_proj_bias"),
        **source.take_pair("pool.attention.out_proj", f"{head}.attention.out_proj"),
        **source.take_pair("pool.norm", f"{head}.layernorm"),
        **source.take_pair("pool.mlp_in", f"{head}.mlp.fc1"),
        **source.take_pair("pool.mlp_out", f"{head}.mlp.fc2"),
    }
