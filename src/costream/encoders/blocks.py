"""Transformer layers shared by all towers.

Shape letters: B items, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.linear import Linear

LayerHook = Callable[[int, Tensor], Tensor]
"""Called before each layer with its number and the tokens (B, T, D); returns the tokens to use.

Methods that add prompts to deeper layers, or that read them, enter here.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Size and form of a stack of transformer layers.

    Attributes:
        width: Dimensions of a token.
        depth: Number of layers.
        heads: Attention heads; divides `width`.
        mlp_width: Inner width of the feed-forward part.
        norm: Layer normalisation before each part (ViT, CLIP) or after it (BERT).
        activation: Of the feed-forward part.
        norm_eps: Epsilon of the layer normalisation.
        dropout: Rate on the output of each part, while training.
        drop_path: Rate at which a whole part is skipped for an item, while training; grows linearly
            from 0 at the first layer to this at the last.
        layer_scale: Whether each part's output is multiplied by a learned vector (DINOv2).
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: bool = False


def activate(x: Tensor, activation: Literal["gelu", "gelu_tanh", "quick_gelu"]) -> Tensor:
    """Apply the named activation."""
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class Attention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width=} and {heads=}")
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """(B, T, D) to (B, T, D); `mask` bool (B, T) is True where a token may be attended to."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        allowed = None if mask is None else mask[:, None, None, :]
        if causal and allowed is not None:
            triangle = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
            allowed = allowed & triangle
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, is_causal=causal and allowed is None
        )
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return result


class Layer(nn.Module):
    """One transformer layer: attention, then a feed-forward part, each with a residual."""

    def __init__(self, config: TransformerConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.drop_path = drop_path
        self.attention = Attention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp_in = Linear(config.width, config.mlp_width)
        self.mlp_out = Linear(config.mlp_width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention_scale: nn.Parameter | None = None
        self.mlp_scale: nn.Parameter | None = None
        if config.layer_scale:
            self.attention_scale = nn.Parameter(torch.full((config.width,), 1e-5))
            self.mlp_scale = nn.Parameter(torch.full((config.width,), 1e-5))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        x = functional.dropout(x, self.config.dropout)
        if self.drop_path > 0.0:
            keep = 1.0 - self.drop_path
            x = x * (torch.rand(x.shape[0], 1, 1, device=x.device) < keep).to(x.dtype) / keep
        return x

    def _mlp(self, x: Tensor) -> Tensor:
        outer: Tensor = self.mlp_out(activate(self.mlp_in(x), self.config.activation))
        return outer if self.mlp_scale is None else outer * self.mlp_scale

    def _attend(self, x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        mixed: Tensor = self.attention(x, mask, causal=causal)
        return mixed if self.attention_scale is None else mixed * self.attention_scale

    def forward(self, x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if self.config.norm == "pre":
            x = x + self._drop(self._attend(self.attention_norm(x), mask, causal=causal))
            return x + self._drop(self._mlp(self.mlp_norm(x)))
        x = self.attention_norm(x + self._drop(self._attend(x, mask, causal=causal)))
        result: Tensor = self.mlp_norm(x + self._drop(self._mlp(x)))
        return result


class Transformer(nn.Module):
    """A stack of layers, entered with embedded tokens.

    Args:
        config: Size and form.
        causal: Whether a token sees only itself and earlier ones.
    """

    def __init__(self, config: TransformerConfig, *, causal: bool = False) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        last = max(config.depth - 1, 1)
        self.layers = nn.ModuleList(
            Layer(config, drop_path=config.drop_path * number / last)
            for number in range(config.depth)
        )

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, on_layer: LayerHook | None = None
    ) -> Tensor:
        """Run all layers.

        Args:
            tokens: float (B, T, D).
            mask: bool (B, T), True where a token is real; None when all are.
            on_layer: Called before each layer; may replace the tokens.

        Returns:
            float (B, T, D), before any final normalisation.
        """
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                tokens = on_layer(number, tokens)
            tokens = layer(tokens, mask, causal=self.causal)
        return tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """What a tower makes of a batch.

    Attributes:
        pooled: float (B, D), one vector an item, before projection.
        tokens: float (B, T, D), the last layer's tokens.
        mask: bool (B, T) or None, True where a token is real.
        ids: int64 (B, T), what the tokens of a text were; None for pictures.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor | None = None
    ids: Tensor | None = None


class TowerHook(Protocol):
    """What a method puts into a tower for good (prompts, experts): a module with weights.

    It stands in every pass of the tower, beside the hook that one call may give.
    """

    def enter(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) with positions, before the first normalisation and layer."""

    def before_layer(self, number: int, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) before the layer of a number, from 0."""

    def leave(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) after the last layer and normalisation, before pooling."""


def both_hooks(lasting: TowerHook | None, passing: LayerHook | None) -> LayerHook | None:
    """The hook of a tower and that of a call as one."""
    if lasting is None:
        return passing

    def hook(number: int, tokens: Tensor) -> Tensor:
        tokens = lasting.before_layer(number, tokens)
        return tokens if passing is None else passing(number, tokens)

    return hook
