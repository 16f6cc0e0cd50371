"""ViT and DINOv2 vision towers, and the vision halves of CLIP and SigLIP.

Shape letters: D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torch import Tensor

from costream.encoders.blocks import TransformerConfig
from costream.encoders.pretrained.checkpoint import Checkpoint, open_checkpoint
from costream.encoders.pretrained.layers import (
    CLIP_LAYER,
    LayerNames,
    take_layers,
    transformer_settings,
    under,
)
from costream.encoders.pretrained.settings import Settings, read_settings
from costream.encoders.vision import VisionConfig, VisionTower
from costream.errors import WeightsError

_VIT: Final = TransformerConfig(width=768, depth=12, heads=12, mlp_width=3072, norm_eps=1e-12)
_DINOV2: Final = TransformerConfig(
    width=768, depth=12, heads=12, mlp_width=3072, norm_eps=1e-6, layer_scale=True
)
_VIT_LAYER: Final = LayerNames(
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    out="attention.output.dense",
    attention_norm="layernorm_before",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    mlp_norm="layernorm_after",
)
_DINOV2_LAYER: Final = LayerNames(
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    out="attention.output.dense",
    attention_norm="norm1",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    mlp_norm="norm2",
    attention_scale="layer_scale1.lambda1",
    mlp_scale="layer_scale2.lambda1",
)
# A classifier, ViT's dense pooler (untrained in most files), and what masked training filled in.
_MEANINGLESS: Final = ("classifier.", "pooler.", "embeddings.mask_token")


def load_vision_tower(directory: str | Path) -> VisionTower:
    """A vision tower from a Hugging Face directory of ViT or DINOv2.

    Args:
        directory: With `config.json` and `model.safetensors`.

    Returns:
        The tower in evaluation mode, on the CPU, float32; its pooled vector is the class token
        after the last normalisation.

    Raises:
        WeightsError: When it is of another family, or a file is absent, damaged, or pickled.
    """
    directory = Path(directory)
    config = read_settings(directory / "config.json")
    kind = config.require_type(
        "vit", "dinov2", hint="vision towers alone are read from ViT and DINOv2 directories"
    )
    if config.flag("use_swiglu_ffn", default=False):
        raise WeightsError(
            f"{directory} has a gated feed-forward part (SwiGLU), which our layers do not have",
            hint="use a small, base or large DINOv2",
        )
    config.require("num_channels", 3, 3)
    form = _form(config, kind)
    with open_checkpoint(directory, prefix=f"{kind}.") as checkpoint:
        qkv_bias = config.flag("qkv_bias", default=True)
        state = _state(checkpoint, form, kind, qkv_bias=qkv_bias)
        checkpoint.finish(ignored=_MEANINGLESS)
    tower = VisionTower(form)
    tower.load_state_dict(state)
    return tower.eval()


def _form(config: Settings, kind: str) -> VisionConfig:
    if kind == "dinov2":
        width = config.integer("hidden_size", _DINOV2.width)
        inner = int(width * config.number("mlp_ratio", 4))
        transformer = transformer_settings(config, _DINOV2, "gelu", mlp_width=inner)
    else:
        transformer = transformer_settings(config, _VIT, "gelu")
    return VisionConfig(
        image_px=config.square("image_size", 224),
        patch_px=config.square("patch_size", 14 if kind == "dinov2" else 16),
        transformer=transformer,
    )


def _state(
    checkpoint: Checkpoint, form: VisionConfig, kind: str, *, qkv_bias: bool
) -> dict[str, Tensor]:
    width, patch = form.transformer.width, form.patch_px
    count = (form.image_px // patch) ** 2 + 1
    project = "embeddings.patch_embeddings.projection"
    names = _DINOV2_LAYER if kind == "dinov2" else _VIT_LAYER
    source = "encoder.layer"
    if f"layers.0.{names.attention_norm}.weight" in checkpoint:
        # As the library names them in memory since its version 5; files keep the older names.
        source, names = "layers", names.renamed()
    positions = checkpoint.take("embeddings.position_embeddings", 1, count, width)
    return {
        "class_token": checkpoint.take("embeddings.cls_token", 1, 1, width),
        "position_embedding": positions.squeeze(0),
        "project.weight": checkpoint.take(f"{project}.weight", width, 3, patch, patch),
        "project.bias": checkpoint.take(f"{project}.bias", width),
        **take_layers(checkpoint, source, names, form.transformer, qkv_bias=qkv_bias),
        **under("final_norm", checkpoint.norm("layernorm", width)),
    }


def two_tower_vision_state(checkpoint: Checkpoint, form: VisionConfig) -> dict[str, Tensor]:
    """State of the vision half of CLIP or SigLIP, without a projection."""
    width, patch = form.transformer.width, form.patch_px
    start = "vision_model.embeddings"
    count = (form.image_px // patch) ** 2 + int(form.class_token)
    state = {
        "project.weight": checkpoint.take(
            f"{start}.patch_embedding.weight", width, 3, patch, patch
        ),
        "position_embedding": checkpoint.take(f"{start}.position_embedding.weight", count, width),
        **take_layers(checkpoint, "vision_model.encoder.layers", CLIP_LAYER, form.transformer),
        **under("final_norm", checkpoint.norm("vision_model.post_layernorm", width)),
    }
    if form.patch_bias:
        state["project.bias"] = checkpoint.take(f"{start}.patch_embedding.bias", width)
    if form.class_token:
        state["class_token"] = checkpoint.take(f"{start}.class_embedding", width)[None, None]
    if form.pre_norm:
        # The misspelling is the published name.
        state |= under("pre_norm", checkpoint.norm("vision_model.pre_layrnorm", width))
    if form.pooling == "attention":
        state |= under("pool", _attention_pool(checkpoint, form.transformer))
    return state


def _attention_pool(checkpoint: Checkpoint, form: TransformerConfig) -> dict[str, Tensor]:
    head, width, inner = "vision_model.head", form.width, form.mlp_width
    attention = f"{head}.attention"
    return {
        "probe": checkpoint.take(f"{head}.probe", 1, 1, width),
        "attention.in_proj_weight": checkpoint.take(
            f"{attention}.in_proj_weight", 3 * width, width
        ),
        "attention.in_proj_bias": checkpoint.take(f"{attention}.in_proj_bias", 3 * width),
        **under("attention.out_proj", checkpoint.linear(f"{attention}.out_proj", width, width)),
        **under("norm", checkpoint.norm(f"{head}.layernorm", width)),
        **under("mlp_in", checkpoint.linear(f"{head}.mlp.fc1", inner, width)),
        **under("mlp_out", checkpoint.linear(f"{head}.mlp.fc2", width, inner)),
    }
