"""Towers and models that others trained: Hugging Face directories and hub names.

Read are CLIP and SigLIP (both towers), BERT and MiniLM (texts), ViT and DINOv2 (pictures).
Safetensors only, and all or error: every weight in the file is used or is one that is known to mean
nothing here, and every weight of the tower comes from the file. Whatever changes a number
(activation, epsilon, crop, padding, ...) is read from the files, never guessed from a name.

Fetching from the hub imports no torch; the loaders do when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from costream.encoders.pretrained.dual import load_pretrained
    from costream.encoders.pretrained.hub import fetch_from_hub
    from costream.encoders.pretrained.preprocessing import read_image_preprocess
    from costream.encoders.pretrained.text import load_text_tower
    from costream.encoders.pretrained.vision import load_vision_tower

__all__ = [
    "fetch_from_hub",
    "load_pretrained",
    "load_text_tower",
    "load_vision_tower",
    "read_image_preprocess",
]

_HOMES: Final = {
    "fetch_from_hub": "hub",
    "load_pretrained": "dual",
    "load_text_tower": "text",
    "load_vision_tower": "vision",
    "read_image_preprocess": "preprocessing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
