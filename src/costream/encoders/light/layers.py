"""Transformer layers in numpy. The tokens of several items lie one after the other, unpadded.

Shape letters: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from costream.encoders.light.model_files import Choices

Array = NDArray[np.float32]
Weights = Mapping[str, Array]
"""Weights by their names in the file, float32."""

LAYERS: Final[Choices] = {
    "width": None,
    "depth": None,
    "heads": None,
    "mlp_width": None,
    "norm": ("pre", "post"),
    "activation": ("gelu",),
    "norm_eps": None,
    "dropout": None,
    "drop_path": None,
    "layer_scale": (False,),
}
"""Every option of a stack of layers, with the values that are implemented here."""


def erf(x: Array) -> Array:
    """The error function to 1.5e-7, 5e-7 in float32 (Abramowitz and Stegun 7.1.26).

    Example:
        >>> round(float(erf(np.float32([0.5]))[0]), 5)
        0.5205
    """
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    series = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    result: Array = (np.sign(x) * (1.0 - series * np.exp(-x * x))).astype(np.float32)
    return result


def linear(x: Array, weights: Weights, name: str) -> Array:
    """A linear layer, with or without bias."""
    result: Array = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return result if bias is None else result + bias


def normalise(x: Array, weights: Weights, name: str, eps: float) -> Array:
    """Layer normalisation."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt(variance + eps) * weights[f"{name}.weight"]
    result: Array = (scaled + weights[f"{name}.bias"]).astype(np.float32)
    return result


def transform(
    x: Array,
    weights: Weights,
    name: str,
    settings: Mapping[str, Any],
    *,
    lengths: Sequence[int] | None = None,
) -> Array:
    """Run a stack of layers.

    Args:
        x: Tokens (T, D) of one item, or of several.
        weights: Of the model.
        name: Of the stack.
        settings: Its options, of the kind that `LAYERS` lists.
        lengths: Number of tokens of each item; None for one item.

    Returns:
        float32 (T, D).
    """
    eps = float(settings["norm_eps"])
    lengths = [len(x)] if lengths is None else lengths
    for number in range(settings["depth"]):
        layer = f"{name}.layers.{number}"
        if settings["norm"] == "pre":
            seen = normalise(x, weights, f"{layer}.attention_norm", eps)
            x = x + _attend(seen, weights, f"{layer}.attention", settings["heads"], lengths)
            x = x + _feed_forward(normalise(x, weights, f"{layer}.mlp_norm", eps), weights, layer)
        else:
            mixed = _attend(x, weights, f"{layer}.attention", settings["heads"], lengths)
            x = normalise(x + mixed, weights, f"{layer}.attention_norm", eps)
            x = normalise(x + _feed_forward(x, weights, layer), weights, f"{layer}.mlp_norm", eps)
    return x


def unit(vector: Array) -> Array:
    """A vector made unit length; zeros stay zeros."""
    result: Array = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return result


def _attend(x: Array, weights: Weights, name: str, heads: int, lengths: Sequence[int]) -> Array:
    tokens, width = x.shape
    qkv = linear(x, weights, f"{name}.qkv").reshape(tokens, 3, heads, width // heads)
    items = np.split(qkv, np.cumsum(lengths)[:-1])
    mixed = np.concatenate([_mixed(item).reshape(-1, width) for item in items])
    return linear(mixed, weights, f"{name}.out")


def _mixed(qkv: Array) -> Array:
    """What the tokens of one item, (T, 3, heads, D), tell each other: (T, heads, D)."""
    query, key, value = qkv.transpose(1, 2, 0, 3)
    scores = query @ key.transpose(0, 2, 1) / np.float32(query.shape[-1] ** 0.5)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = scores / scores.sum(axis=-1, keepdims=True)
    mixed: Array = (shares @ value).transpose(1, 0, 2)
    return mixed


def _feed_forward(x: Array, weights: Weights, layer: str) -> Array:
    inner = linear(x, weights, f"{layer}.mlp_in")
    inner = 0.5 * inner * (1.0 + erf(inner * np.float32(0.5**0.5)))
    return linear(inner, weights, f"{layer}.mlp_out")
