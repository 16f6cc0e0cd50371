"""The sizes of our own models, and where their starting weights come from."""

from __future__ import annotations

from typing import Final

from costream.encoders.blocks import TransformerConfig
from costream.encoders.dual import DualConfig
from costream.encoders.efficientnet import EfficientNetConfig
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig

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
