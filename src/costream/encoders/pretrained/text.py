"""BERT and MiniLM text towers, and the text halves of CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
from costream.encoders.text import TextConfig, TextTower
from costream.errors import WeightsError


def load_text_tower(
    directory: str | Path, *, pooling: Literal["mean", "first", "first_dense"] | None = None
) -> TextTower:
    """A text tower from a Hugging Face directory of the BERT family.

    Args:
        directory: With `config.json` and `model.safetensors`.
        pooling: How a text's vector is made of its tokens'; when None, `mean` where a
            sentence-transformers directory says so, else BERT's own pooler where its weights are
            there, else the first token.

    Raises:
        WeightsError: When it is of another family, or damaged.
    """
    directory = Path(directory)
    config = read_json(directory / "config.json")
    if config.get("model_type") != "bert":
        raise WeightsError(
            f"{directory} is of type {config.get('model_type')!r}, expected 'bert'",
            hint="text towers alone are read from BERT and MiniLM directories",
        )
    weights = without_prefix(read_weights(directory), "bert.")
    source = Source(weights, directory, meaningless=(r"cls\..*", r"pooler\..*", r"classifier\..*"))
    has_pooler = source.has("pooler.dense.weight")
    if pooling is None:
        says_mean = read_json(directory / "1_Pooling" / "config.json").get(
            "pooling_mode_mean_tokens", False
        )
        pooling = "mean" if says_mean else "first_dense" if has_pooler else "first"
    form = _bert_form(config, pooling)
    state = _bert_state(source, form)
    if pooling == "first_dense":
        state |= source.take_pair("pooler", "pooler.dense")
    source.finish()
    tower = TextTower(form)
    fill(tower, state, directory)
    return tower.eval()


def _bert_form(config: Mapping[str, Any], pooling: Any) -> TextConfig:
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise WeightsError(
            f"config.json asks for {config['position_embedding_type']!r} positions, "
            "expected 'absolute'"
        )
    return TextConfig(
        vocab_size=config["vocab_size"],
        context=config["max_position_embeddings"],
        transformer=TransformerConfig(
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            norm="post",
            activation=activation_of(config, "gelu"),
            norm_eps=config.get("layer_norm_eps", 1e-12),
            dropout=config.get("hidden_dropout_prob", 0.1),
        ),
        embedding_norm=True,
        pooling=pooling,
    )


def _bert_state(source: Source, form: TextConfig) -> dict[str, Tensor]:
    # A single text is always of type 0, so its embedding can be added to the positions once.
    kind = source.take("embeddings.token_type_embeddings.weight")
    state = {
        "token_embedding.weight": source.take("embeddings.word_embeddings.weight"),
        "position_embedding": source.take("embeddings.position_embeddings.weight") + kind[0],
        **source.take_pair("embedding_norm", "embeddings.LayerNorm"),
    }
    for number in range(form.transformer.depth):
        ours, theirs = f"transformer.layers.{number}", f"encoder.layer.{number}"
        names = tuple(f"{theirs}.attention.self.{part}" for part in ("query", "key", "value"))
        state |= source.take_attention(f"{ours}.attention", names)  # type: ignore[arg-type] # three
        state |= source.take_pair(f"{ours}.attention.out", f"{theirs}.attention.output.dense")
        state |= source.take_pair(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        state |= source.take_pair(f"{ours}.mlp_in", f"{theirs}.intermediate.dense")
        state |= source.take_pair(f"{ours}.mlp_out", f"{theirs}.output.dense")
        state |= source.take_pair(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm")
    return state


def two_tower_layers(source: Source, prefix: str, depth: int) -> dict[str, Tensor]:
    """Layers as CLIP and SigLIP name them, in both of their halves."""
    state: dict[str, Tensor] = {}
    for number in range(depth):
        ours, theirs = f"transformer.layers.{number}", f"{prefix}.encoder.layers.{number}"
        names = (f"{theirs}.self_attn.q_proj", f"{theirs}.self_attn.k_proj")
        state |= source.take_attention(f"{ours}.attention", (*names, f"{theirs}.self_attn.v_proj"))
        state |= source.take_pair(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj")
        state |= source.take_pair(f"{ours}.attention_norm", f"{theirs}.layer_norm1")
        state |= source.take_pair(f"{ours}.mlp_in", f"{theirs}.mlp.fc1")
        state |= source.take_pair(f"{ours}.mlp_out", f"{theirs}.mlp.fc2")
        state |= source.take_pair(f"{ours}.mlp_norm", f"{theirs}.layer_norm2")
    return state


def two_tower_transformer(
    config: Mapping[str, Any], activation: str, eps: float
) -> TransformerConfig:
    """Size of one half of CLIP or SigLIP; the library's defaults stand where the file is silent."""
    return TransformerConfig(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        activation=activation_of(config, activation),
        norm_eps=config.get("layer_norm_eps", eps),
    )


def two_tower_text_state(source: Source, depth: int) -> dict[str, Tensor]:
    """State of the text half of CLIP or SigLIP, without what comes after the tower."""
    return {
        "token_embedding.weight": source.take("text_model.embeddings.token_embedding.weight"),
        "position_embedding": source.take("text_model.embeddings.position_embedding.weight"),
        **two_tower_layers(source, "text_model", depth),
        **source.take_pair("final_norm", "text_model.final_layer_norm"),
    }
