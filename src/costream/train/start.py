"""What training starts from: a model, published starting weights, or random ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from costream.encoders.device import default_device
from costream.encoders.dual import DualEncoder
from costream.encoders.locate import DEFAULT_MODEL, locate_model
from costream.encoders.preprocess import load_tokenizer
from costream.encoders.presets import find_preset
from costream.encoders.starting_weights import pretrained_model
from costream.encoders.storage import load


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """What training starts from.

    Attributes:
        start: `random`; `pretrained` for the published starting weights of the preset; or a model's
            name or directory, which is trained on.
        preset: Form of the model, for `random` and `pretrained`.
        name: Name of the trained model; that of the model it started from when empty.
    """

    start: str = DEFAULT_MODEL
    preset: str = DEFAULT_MODEL
    name: str = ""


def start_model(config: StartConfig, *, seed: int = 0) -> DualEncoder:
    """Make the model that training starts from, on the default device.

    Args:
        config: What to start from.
        seed: Of random weights.

    Returns:
        The model; the same one for the same seed.

    Raises:
        ConfigError: When there is no such preset.
        WeightsError: When there is no such model, or the packages are not installed.
    """
    torch.manual_seed(seed)
    if config.start == "random":
        tokenizer = load_tokenizer(locate_model(DEFAULT_MODEL) / "tokenizer.json")
        model = DualEncoder(find_preset(config.preset), tokenizer)
    elif config.start == "pretrained":
        model = pretrained_model(find_preset(config.preset).name)
    else:
        model = load(config.start)
    if config.name:
        model.config = replace(model.config, name=config.name)
    return model.to(default_device())
