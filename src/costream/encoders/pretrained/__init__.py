"""Towers and models that others trained: Hugging Face directories and hub names.

Safetensors only, and all or error: every weight in the file is used or is one that is known to mean
nothing here, and every weight of the tower comes from the file.
"""

from costream.encoders.pretrained.dual import load_pretrained
from costream.encoders.pretrained.hub import fetch_from_hub
from costream.encoders.pretrained.text import load_text_tower
from costream.encoders.pretrained.vision import load_vision_tower

__all__ = ["fetch_from_hub", "load_pretrained", "load_text_tower", "load_vision_tower"]
