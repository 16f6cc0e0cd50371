"""Renaming of one transformer layer, which all families have under other names.

Shape letters: D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from costream.encoders.blocks import TransformerConfig
from costream.encoders.pretrained.checkpoint import Checkpoint
from costream.encoders.pretrained.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNames:
    """What the parts of a layer are called in a family's checkpoints.

    Attributes:
        query: Linear layer of the queries; `key` and `value` alike.
        out: Linear layer after the attention.
        attention_norm: Normalisation of the attention part; `mlp_norm` of the feed-forward part.
        mlp_in: First linear layer of the feed-forward part; `mlp_out` the second.
        attention_scale: Vector that multiplies the attention part's output, where there is one;
            `mlp_scale` the other part's.
    """

    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    mlp_in: str
    mlp_out: str
    mlp_norm: str
    attention_scale: str | None = None
    mlp_scale: str | None = None

    def renamed(self) -> LayerNames:
        """The same for ViT and DINOv2 as the library names them in memory since its version 5."""
        return dataclasses.replace(
            self,
            query="attention.q_proj",
            key="attention.k_proj",
            value="attention.v_proj",
            out="attention.o_proj",
            mlp_in="mlp.fc1",
            mlp_out="mlp.fc2",
        )


CLIP_LAYER = LayerNames(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.out_proj",
    attention_norm="layer_norm1",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    mlp_norm="layer_norm2",
)
"""Of CLIP and SigLIP, both towers."""


def under(prefix: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with `prefix` and a dot before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in parts.items()}


def take_layers(
    checkpoint: Checkpoint,
    source: str,
    names: LayerNames,
    config: TransformerConfig,
    *,
    qkv_bias: bool = True,
) -> dict[str, Tensor]:
    """The state of a `Transformer`, under `transformer.`.

    Args:
        checkpoint: Where from.
        source: What the list of layers is called there.
        names: What the parts of a layer are called there.
        config: Sizes.
        qkv_bias: Whether queries, keys and values have a bias.
    """
    state: dict[str, Tensor] = {}
    for number in range(config.depth):
        layer = _take_layer(checkpoint, f"{source}.{number}", names, config, qkv_bias=qkv_bias)
        state.update(under(f"transformer.layers.{number}", layer))
    return state


def _take_layer(
    checkpoint: Checkpoint,
    source: str,
    names: LayerNames,
    config: TransformerConfig,
    *,
    qkv_bias: bool,
) -> dict[str, Tensor]:
    width, inner = config.width, config.mlp_width
    projections = [
        checkpoint.linear(f"{source}.{name}", width, width, bias=qkv_bias)
        for name in (names.query, names.key, names.value)
    ]
    state = {
        f"attention.qkv.{part}": torch.cat([each[part] for each in projections])
        for part in ("weight", "bias")
    }
    linear, norm = checkpoint.linear, checkpoint.norm
    state.update(under("attention.out", linear(f"{source}.{names.out}", width, width)))
    state.update(under("attention_norm", norm(f"{source}.{names.attention_norm}", width)))
    state.update(under("mlp_in", linear(f"{source}.{names.mlp_in}", inner, width)))
    state.update(under("mlp_out", linear(f"{source}.{names.mlp_out}", width, inner)))
    state.update(under("mlp_norm", norm(f"{source}.{names.mlp_norm}", width)))
    if names.attention_scale is not None and names.mlp_scale is not None:
        state["attention_scale"] = checkpoint.take(f"{source}.{names.attention_scale}", width)
        state["mlp_scale"] = checkpoint.take(f"{source}.{names.mlp_scale}", width)
    return state


def transformer_settings(
    settings: Settings,
    defaults: TransformerConfig,
    activation: str,
    *,
    mlp_width: int | None = None,
) -> TransformerConfig:
    """Size and form of a stack of layers, as Hugging Face configurations write it.

    Args:
        settings: Of the tower.
        defaults: What holds where the file is silent: the publishing library leaves out its own
            defaults.
        activation: The same for the activation, by its name in the file.
        mlp_width: Inner width of the feed-forward part, where the file writes it in its own way.

    Raises:
        WeightsError: When a value is of another kind than expected.
    """
    width = settings.integer("hidden_size", defaults.width)
    heads = settings.integer("num_attention_heads", defaults.heads)
    if width % heads:
        raise settings.problem("num_attention_heads", f"a divisor of hidden_size, {width}")
    if mlp_width is None:
        mlp_width = settings.integer("intermediate_size", defaults.mlp_width)
    return dataclasses.replace(
        defaults,
        width=width,
        depth=settings.integer("num_hidden_layers", defaults.depth),
        heads=heads,
        mlp_width=mlp_width,
        activation=settings.activation("hidden_act", activation),
        norm_eps=settings.number("layer_norm_eps", defaults.norm_eps),
    )
