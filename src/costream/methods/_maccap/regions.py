"""Parts of a picture: its most attended tokens, each with what it attends to.

Shape letters: B pictures, T tokens (the whole picture first), N parts, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from costream.encoders.blocks import Attention, Layer

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder

_TEMPERATURE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PictureTokens:
    """A picture and its tokens in the space of the texts.

    Attributes:
        whole: float32 (B, D), unit vectors of the pictures.
        tokens: float32 (B, T, D), unit vectors; the first is the whole.
        attention: float32 (B, T, T), how much a token (row) attends to another; rows sum to 1.
    """

    whole: Tensor
    tokens: Tensor
    attention: Tensor


@torch.no_grad()
def picture_tokens(model: DualEncoder, pixels: Tensor) -> PictureTokens:
    """Encode pictures once, with what is needed of their parts.

    Args:
        model: In evaluation mode.
        pixels: uint8 (B, 3, H, W).
    """
    vision = model.vision
    kept: list[Tensor] = []

    def keep(number: int, tokens: Tensor) -> Tensor:
        if number == len(vision.transformer.layers) - 1:
            kept.append(tokens)
        return tokens

    stem_map = vision.stem_map(model.normalise_pixels(pixels))
    seen = vision.encode_map(stem_map, on_layer=keep)
    whole = model.project_image(seen).float()
    front = int(vision.class_token is not None)
    patches = seen.tokens[:, front:]
    if vision.residual is not None:
        # The mean of the map is added to the class token; this is what a patch adds to that mean.
        patches = patches + vision.residual(stem_map.flatten(2).transpose(1, 2))
    projected = functional.normalize(model.image_projection(patches).float(), dim=-1)
    tokens = torch.cat([whole[:, None], projected], dim=1)
    if front:
        layer = vision.transformer.layers[-1]
        if not isinstance(layer, Layer):
            raise TypeError(f"got a {type(layer).__name__}, expected a transformer layer")
        attention = layer_attention(layer, kept[0])[:, : tokens.shape[1], : tokens.shape[1]]
        attention = attention / attention.sum(dim=-1, keepdim=True)
    else:
        attention = torch.softmax(tokens @ tokens.transpose(1, 2) / _TEMPERATURE, dim=-1)
    return PictureTokens(whole=whole, tokens=tokens, attention=attention)


def layer_attention(layer: Layer, tokens: Tensor) -> Tensor:
    """Attention (B, T, T) of a layer, averaged over its heads.

    Args:
        layer: Of a vision tower.
        tokens: float (B, T, width), before the layer.
    """
    own: Attention = layer.attention
    entered = layer.attention_norm(tokens) if layer.config.norm == "pre" else tokens
    batch, count, width = entered.shape
    parts = own.qkv(entered).view(batch, count, 3, own.heads, width // own.heads)
    query, key, _ = parts.permute(2, 0, 3, 1, 4).unbind(0)
    scores = query.float() @ key.float().transpose(-1, -2) / (width // own.heads) ** 0.5
    return torch.softmax(scores, dim=-1).mean(dim=1)


def sub_regions(
    seen: PictureTokens, count: int, *, mean: bool = False, again: bool = False
) -> Tensor:
    """Vectors of parts of pictures.

    Args:
        seen: Pictures.
        count: N; where a picture has fewer tokens, they come again.
        mean: Whether all parts are the mean of the patches (a control).
        again: Whether weights pass a second softmax (the released code).

    Returns:
        float32 (B, N, D), unit vectors.
    """
    if mean:
        middle = functional.normalize(seen.tokens[:, 1:].mean(dim=1), dim=-1)
        return middle[:, None].expand(-1, count, -1)
    order = seen.attention[:, 0].argsort(dim=1, descending=True, stable=True)
    chosen = order[:, torch.arange(count, device=order.device) % order.shape[1]]
    rows = seen.attention.gather(1, chosen[:, :, None].expand(-1, -1, seen.attention.shape[2]))
    if again:
        rows = torch.softmax(rows, dim=-1)
    return functional.normalize(rows @ seen.tokens, dim=-1)
