"""BERT and MiniLM text towers, and the text halves of CLIP and SigLIP.

Shape letters: D width.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final, Literal

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
from costream.encoders.pretrained.settings import Settings, read_optional, read_settings
from costream.encoders.text import TextConfig, TextTower
from costream.errors import WeightsError

Pooling = Literal["mean", "first", "first_dense"]

_BERT: Final = TransformerConfig(
    width=768, depth=12, heads=12, mlp_width=3072, norm="post", norm_eps=1e-12
)
_BERT_LAYER: Final = LayerNames(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    mlp_norm="output.LayerNorm",
)
# Heads of pre-training and classification; the pooler is taken where it is asked for; the ids of
# the positions are 0, 1, 2, ...
_MEANINGLESS: Final = ("cls.", "classifier.", "pooler.", "embeddings.position_ids")


def load_text_tower(directory: str | Path, *, pooling: Pooling | None = None) -> TextTower:
    """A text tower from a Hugging Face directory of the BERT family.

    Args:
        directory: With `config.json` and `model.safetensors`.
        pooling: How a text's vector is made of its tokens'. When None, as a sentence encoder's
            `1_Pooling/config.json` says, else BERT's own pooler where its weights are there, else
            the first token.

    Returns:
        The tower in evaluation mode, on the CPU, float32.

    Raises:
        WeightsError: When it is of another family, or a file is absent, damaged, or pickled.
    """
    directory = Path(directory)
    config = read_settings(directory / "config.json")
    config.require_type("bert", hint="text towers alone are read from BERT and MiniLM directories")
    config.require("position_embedding_type", "absolute", "absolute")
    config.require("is_decoder", False, False)
    with open_checkpoint(directory, prefix="bert.") as checkpoint:
        if pooling is None:
            dense = "pooler.dense.weight" in checkpoint
            pooling = _stated_pooling(directory) or ("first_dense" if dense else "first")
        form = _bert_form(config, pooling)
        state = _bert_state(checkpoint, form, config.integer("type_vocab_size", 2))
        checkpoint.finish(ignored=_MEANINGLESS)
    tower = TextTower(form)
    tower.load_state_dict(state)
    return tower.eval()


def _stated_pooling(directory: Path) -> Pooling | None:
    """What a sentence encoder's files say about pooling; None when they say nothing."""
    settings = read_optional(directory / "1_Pooling" / "config.json")
    modes = {key for key in settings.keys() if key.startswith("pooling_mode_")}
    on = {key for key in modes if settings.flag(key)}
    if not modes:
        return None
    known: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "first",
    }
    if len(on) != 1 or not on <= set(known):
        raise WeightsError(
            f"{settings.path} pools by {sorted(on)}, expected one of {sorted(known)}",
            hint="pass pooling= to choose another way",
        )
    return known[on.pop()]


def _bert_form(config: Settings, pooling: Pooling) -> TextConfig:
    return TextConfig(
        vocab_size=config.integer("vocab_size", 30_522),
        context=config.integer("max_position_embeddings", 512),
        transformer=dataclasses.replace(
            transformer_settings(config, _BERT, "gelu"),
            dropout=config.number("hidden_dropout_prob", 0.1),
        ),
        embedding_norm=True,
        pooling=pooling,
    )


def _bert_state(checkpoint: Checkpoint, form: TextConfig, num_types: int) -> dict[str, Tensor]:
    width = form.transformer.width
    start = "embeddings"
    types = checkpoint.take(f"{start}.token_type_embeddings.weight", num_types, width)
    positions = checkpoint.take(f"{start}.position_embeddings.weight", form.context, width)
    words = checkpoint.take(f"{start}.word_embeddings.weight", form.vocab_size, width)
    if types.numel() and positions.numel():
        # A single text is always of type 0, so its embedding can be added to the positions once.
        positions = positions + types[0]
    state = {"token_embedding.weight": words, "position_embedding": positions}
    state |= under("embedding_norm", checkpoint.norm(f"{start}.LayerNorm", width))
    state |= take_layers(checkpoint, "encoder.layer", _BERT_LAYER, form.transformer)
    if form.pooling == "first_dense":
        state |= under("pooler", checkpoint.linear("pooler.dense", width, width))
    return state


def two_tower_text_state(checkpoint: Checkpoint, form: TextConfig) -> dict[str, Tensor]:
    """State of the text half of CLIP or SigLIP, without what comes after the tower."""
    width = form.transformer.width
    start = "text_model.embeddings"
    words = checkpoint.take(f"{start}.token_embedding.weight", form.vocab_size, width)
    positions = checkpoint.take(f"{start}.position_embedding.weight", form.context, width)
    return {
        "token_embedding.weight": words,
        "position_embedding": positions,
        **take_layers(checkpoint, "text_model.encoder.layers", CLIP_LAYER, form.transformer),
        **under("final_norm", checkpoint.norm("text_model.final_layer_norm", width)),
    }
