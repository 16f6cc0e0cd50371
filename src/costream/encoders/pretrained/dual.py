"""CLIP and SigLIP as a whole: both towers, projections and preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from costream.encoders.blocks import TransformerConfig
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.preprocess import ImagePreprocess
from costream.encoders.pretrained.checkpoint import Checkpoint, open_checkpoint
from costream.encoders.pretrained.layers import transformer_settings, under
from costream.encoders.pretrained.preprocessing import read_image_preprocess, read_tokenizer
from costream.encoders.pretrained.settings import Settings, read_settings
from costream.encoders.pretrained.text import two_tower_text_state
from costream.encoders.pretrained.vision import two_tower_vision_state
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig
from costream.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The publishing library's own defaults, which a config.json leaves out where they apply.
_CLIP_TEXT: Final = TransformerConfig(width=512, depth=12, heads=8, mlp_width=2048, norm_eps=1e-5)
_CLIP_VISION: Final = TransformerConfig(
    width=768, depth=12, heads=12, mlp_width=3072, norm_eps=1e-5
)
_SIGLIP: Final = TransformerConfig(width=768, depth=12, heads=12, mlp_width=3072, norm_eps=1e-6)
# What the published configurations said before the id of end-of-text was written right.
_WRONG_EOT: Final = 2
# Scale and shift of the training loss, which change no ranking, and 0, 1, 2, ...
_MEANINGLESS: Final = (
    "logit_scale",
    "logit_bias",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
)


def load_pretrained(directory: str | Path) -> DualEncoder:
    """A two-stream model from a Hugging Face directory: CLIP, or SigLIP of one picture size.

    Args:
        directory: With `config.json`, `model.safetensors` (or shards and their index),
            `tokenizer.json` and `preprocessor_config.json`.

    Returns:
        The model in evaluation mode, on the CPU, float32.

    Raises:
        WeightsError: When it is of another family, or a file is absent, damaged, pickled, or does
            not fit the others.
    """
    directory = Path(directory)
    settings = read_settings(directory / "config.json")
    kind = settings.require_type(
        "clip",
        "siglip",
        hint="give a directory whose two towers share a space, or one that costream train wrote",
    )
    read = _clip if kind == "clip" else _siglip
    config, tokenizer = read(directory, settings)
    with open_checkpoint(directory) as checkpoint:
        state = _state(checkpoint, config)
        checkpoint.finish(ignored=_MEANINGLESS)
    # Fresh weights are drawn and thrown away; the caller's random numbers must not move.
    with torch.random.fork_rng(devices=[]):
        model = DualEncoder(config, tokenizer)
    model.load_state_dict(state)
    return model.eval()


def _state(checkpoint: Checkpoint, config: DualConfig) -> dict[str, Tensor]:
    dim, text_width = config.dim, config.text.transformer.width
    state = under("text", two_tower_text_state(checkpoint, config.text))
    state |= under("vision", two_tower_vision_state(checkpoint, config.vision))
    if config.projection == "text":
        return state | under(
            "text_projection", checkpoint.linear("text_model.head", dim, text_width)
        )
    vision_width = config.vision.transformer.width
    return state | {
        "text_projection.weight": checkpoint.take("text_projection.weight", dim, text_width),
        "image_projection.weight": checkpoint.take("visual_projection.weight", dim, vision_width),
    }


def _clip(directory: Path, settings: Settings) -> tuple[DualConfig, Tokenizer]:
    text, vision = (settings.inner(f"{each}_config") for each in ("text", "vision"))
    # Older files have a second, stronger copy.
    text = settings.inner("text_config_dict").over(text)
    vision = settings.inner("vision_config_dict").over(vision)
    vocab_size = text.integer("vocab_size", 49_408)
    stated = text.token_id("eos_token_id")
    eot_id = 49_407 if stated is None else stated
    if eot_id == _WRONG_EOT:
        eot_id = vocab_size - 1
    context = text.integer("max_position_embeddings", 77)
    tokenizer, preprocess = read_tokenizer(
        directory, context=context, pads_to_max=False, pad_id=eot_id
    )
    if eot_id not in tokenizer.encode("a").ids:
        raise text.problem(
            "eos_token_id", f"the token that tokenizer.json closes {tokenizer.encode('a').ids} with"
        )
    config = DualConfig(
        name=_name(directory, settings),
        dim=settings.integer("projection_dim", 512),
        vision=VisionConfig(
            image_px=vision.square("image_size", 224),
            patch_px=vision.square("patch_size", 32),
            transformer=transformer_settings(vision, _CLIP_VISION, "quick_gelu"),
            patch_bias=False,
            pre_norm=True,
            final_norm="pooled",
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            context=context,
            transformer=transformer_settings(text, _CLIP_TEXT, "quick_gelu"),
            causal=True,
            final_norm=True,
            pooling="eot",
            eot_id=eot_id,
        ),
        image_preprocess=_fitting_pictures(directory, vision.square("image_size", 224)),
        text_preprocess=preprocess,
    )
    return config, tokenizer


def _siglip(directory: Path, settings: Settings) -> tuple[DualConfig, Tokenizer]:
    text, vision = (settings.inner(f"{each}_config") for each in ("text", "vision"))
    vision.require("vision_use_head", True, True)
    context = text.integer("max_position_embeddings", 64)
    stated = text.token_id("pad_token_id")
    tokenizer, preprocess = read_tokenizer(
        directory, context=context, pads_to_max=True, pad_id=1 if stated is None else stated
    )
    pictures = transformer_settings(vision, _SIGLIP, "gelu_pytorch_tanh")
    texts = transformer_settings(text, _SIGLIP, "gelu_pytorch_tanh")
    dim = text.integer("projection_size", texts.width)
    if dim != pictures.width:
        raise text.problem("projection_size", f"{pictures.width}, as pictures have")
    config = DualConfig(
        name=_name(directory, settings),
        dim=dim,
        vision=VisionConfig(
            image_px=vision.square("image_size", 224),
            patch_px=vision.square("patch_size", 16),
            transformer=pictures,
            class_token=False,
            pooling="attention",
        ),
        text=TextConfig(
            vocab_size=text.integer("vocab_size", 32_000),
            context=context,
            transformer=texts,
            final_norm=True,
            pooling="last",
        ),
        image_preprocess=_fitting_pictures(directory, vision.square("image_size", 224)),
        text_preprocess=preprocess,
        projection="text",
        projection_bias=True,
    )
    return config, tokenizer


def _fitting_pictures(directory: Path, image_px: int) -> ImagePreprocess:
    preprocess = read_image_preprocess(directory)
    if preprocess.size_px != image_px:
        raise WeightsError(
            f"{directory} makes pictures of {preprocess.size_px} pixels for a tower of {image_px}",
            hint="the files are of two models; copy all of them from one",
        )
    return preprocess


def _name(directory: Path, settings: Settings) -> str:
    # A hub snapshot lies in .../models--owner--name/snapshots/<hash>.
    for part in reversed(directory.parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return settings.text("_name_or_path", "") or directory.resolve().name
