"""The sizes of our own models, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from costream.encoders.blocks import TransformerConfig
from costream.encoders.dual import DualConfig
from costream.encoders.efficientnet import EfficientNetConfig
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig
from costream.errors import ConfigError
from costream.suggest import did_you_mean

_MINILM: Final = TransformerConfig(
    width=384, depth=6, heads=12, mlp_width=1536, norm="post", norm_eps=1e-12, dropout=0.1
)
_BASE_PRE: Final = TransformerConfig(
    width=768, depth=12, heads=12, mlp_width=3072, norm="pre", norm_eps=1e-6, drop_path=0.1
)
_BASE_POST: Final = TransformerConfig(
    width=768, depth=12, heads=12, mlp_width=3072, norm="post", norm_eps=1e-12, dropout=0.1
)

COTS_MINI: Final = DualConfig(
    name="cots-mini",
    dim=256,
    vision=VisionConfig(
        image_px=224,
        patch_px=32,
        stem="conv",
        conv=EfficientNetConfig(width_factor=1.1, depth_factor=1.2, num_frozen_stages=3),
        transformer=TransformerConfig(
            width=384, depth=2, heads=6, mlp_width=1536, norm="pre", dropout=0.1, drop_path=0.1
        ),
        stem_residual=True,
    ),
    text=TextConfig(
        vocab_size=30_522,
        context=64,
        transformer=_MINILM,
        embedding_norm=True,
        pooling="mean",
    ),
    # The stem was trained on (pixel - 127) / 128.
    image_preprocess=ImagePreprocess(
        size_px=224,
        crop_share=1.0,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
    ),
    text_preprocess=TextPreprocess(max_tokens=64),
)
"""The default model: EfficientNet-Lite2 and two layers; MiniLM-L6. 31 million weights."""

COTS_BASE: Final = DualConfig(
    name="cots-base",
    dim=256,
    vision=VisionConfig(image_px=384, patch_px=16, transformer=_BASE_PRE),
    text=TextConfig(
        vocab_size=30_522,
        context=512,
        transformer=_BASE_POST,
        embedding_norm=True,
        pooling="first",
    ),
    image_preprocess=ImagePreprocess(size_px=384),
    text_preprocess=TextPreprocess(max_tokens=64),
)
"""The paper's scale: ViT-B/16 at 384 pixels and BERT-base."""

_TINY_LAYERS: Final = TransformerConfig(width=96, depth=3, heads=4, mlp_width=192)

TINY: Final = DualConfig(
    name="tiny",
    dim=64,
    vision=VisionConfig(image_px=48, patch_px=6, transformer=_TINY_LAYERS),
    text=TextConfig(vocab_size=30_522, context=32, transformer=_TINY_LAYERS, embedding_norm=True),
    image_preprocess=ImagePreprocess(size_px=48),
    text_preprocess=TextPreprocess(max_tokens=32),
)
"""A model that learns procedural scenes in seconds: for tests and first steps."""

PRESETS: Final[Mapping[str, DualConfig]] = {
    preset.name: preset for preset in (COTS_MINI, COTS_BASE, TINY)
}
"""Name to form, of every model that can be started from random weights."""


def find_preset(name: str) -> DualConfig:
    """The form of a model of ours.

    Args:
        name: One of `PRESETS`.

    Raises:
        ConfigError: When there is no such preset; lists what there is.

    Example:
        >>> find_preset("tiny").dim
        64
    """
    if name not in PRESETS:
        raise ConfigError(
            f"there is no preset {name!r}{did_you_mean(name, PRESETS)}",
            hint=f"presets are: {', '.join(PRESETS)}",
        )
    return PRESETS[name]
