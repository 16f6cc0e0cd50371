"""Vision towers: ViT on patches, and a transformer on the map of a convolutional stem.

Both are entered in three steps, so that methods can mask, prompt or read in between:
`patches(images)` gives tokens without positions, `encode(patches)` runs the layers and pools.

Shape letters: B pictures, T patches, D width, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.blocks import (
    Encoded,
    LayerHook,
    TowerHook,
    Transformer,
    TransformerConfig,
    activate,
    both_hooks,
)
from costream.encoders.efficientnet import EfficientNetConfig, EfficientNetLite
from costream.encoders.linear import Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """Form of a vision tower.

    Attributes:
        image_px: Side of the square input the positions are made for; other sides are interpolated.
        stem: `patch` cuts the picture into patches; `conv` runs an EfficientNet-Lite first.
        patch_px: Side of a patch (`patch`) or stride of the stem (`conv`, 32).
        transformer: Size of the layers.
        conv: Size of the stem, for `conv`.
        patch_bias: Whether the patch projection has a bias (all but CLIP).
        class_token: Whether a learned token is put in front.
        pre_norm: Whether tokens are normalised before the first layer (CLIP).
        final_norm: Where the last normalisation stands: over all `tokens` (ViT, DINOv2), over the
            `pooled` vector only (CLIP), or nowhere.
        pooling: `first` token, `mean` of the patches, or `attention` (SigLIP's probe).
        stem_residual: For `conv`: adds the mean of the stem's map, linearly projected, to the
            pooled vector, so that an untrained transformer starts from what the stem knows.
    """

    image_px: int
    patch_px: int
    transformer: TransformerConfig
    stem: Literal["patch", "conv"] = "patch"
    conv: EfficientNetConfig | None = None
    patch_bias: bool = True
    class_token: bool = True
    pre_norm: bool = False
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    pooling: Literal["first", "mean", "attention"] = "first"
    stem_residual: bool = False


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, then a feed-forward part (SigLIP's pooling head)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.probe = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp_in = Linear(config.width, config.mlp_width)
        self.mlp_out = Linear(config.mlp_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, D)."""
        probe = self.probe.expand(tokens.shape[0], -1, -1)
        mixed, _ = self.attention(probe, tokens, tokens, need_weights=False)
        inner = activate(self.mlp_in(self.norm(mixed)), self.activation)
        pooled: Tensor = (mixed + self.mlp_out(inner))[:, 0]
        return pooled


class VisionTower(nn.Module):
    """Pictures to one vector a picture and one a patch.

    Raises:
        ValueError: When `stem` is `conv` and `conv` is None.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.hook: TowerHook | None = None
        width = config.transformer.width
        eps = config.transformer.norm_eps
        self.width = width
        self.stem: EfficientNetLite | None = None
        self.residual: nn.Linear | None = None
        if config.stem == "conv":
            if config.conv is None:
                raise ValueError("stem='conv' needs conv=EfficientNetConfig(...), got None")
            stem = EfficientNetLite(config.conv)
            # Channels last is the layout that convolutions on a CPU are fastest in.
            self.stem = stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # stub
            self.project: nn.Module = nn.Linear(self.stem.num_channels, width)
            if config.stem_residual:
                self.residual = nn.Linear(self.stem.num_channels, width)
        else:
            self.project = nn.Conv2d(
                3, width, config.patch_px, stride=config.patch_px, bias=config.patch_bias
            )
        self.grid = (
            -(-config.image_px // config.patch_px)
            if self.stem
            else (config.image_px // config.patch_px)
        )
        front = int(config.class_token)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if front else None
        self.position_embedding = nn.Parameter(torch.randn(front + self.grid**2, width) * 0.02)
        self.pre_norm = nn.LayerNorm(width, eps=eps) if config.pre_norm else None
        self.transformer = Transformer(config.transformer)
        has_norm = config.final_norm != "none"
        self.final_norm = nn.LayerNorm(width, eps=eps) if has_norm else None
        attention = config.pooling == "attention"
        self.pool = AttentionPool(config.transformer) if attention else None

    def frozen_part(self, images: Tensor) -> Tensor:
        """Run the stages that never train, which a tower shares with its momentum copy.

        Args:
            images: float (B, 3, H, W), normalised.

        Returns:
            What `trained_part` goes on from; the pictures themselves when nothing is frozen.
        """
        return images if self.stem is None else self.stem.early(images)

    def trained_part(self, frozen: Tensor) -> Tensor:
        """From the output of `frozen_part` to the stem's map (B, C, H', W'), or the pixels."""
        return frozen if self.stem is None else self.stem.late(frozen)

    def stem_map(self, images: Tensor) -> Tensor:
        """What comes before the tokens: the stem's map (B, C, H', W'), or the pixels as they are.

        Args:
            images: float (B, 3, H, W), normalised.
        """
        return self.trained_part(self.frozen_part(images))

    def grid_of(self, stem_map: Tensor) -> tuple[int, int]:
        """Rows and columns of patches that `stem_map` gives."""
        rows, columns = stem_map.shape[-2:]
        side = 1 if self.stem is not None else self.config.patch_px
        return rows // side, columns // side

    def patches_of_map(self, stem_map: Tensor) -> Tensor:
        """The output of `stem_map` to patch tokens (B, T, D), row by row, without positions."""
        if self.stem is None:
            cut: Tensor = self.project(stem_map)
            return cut.flatten(2).transpose(1, 2)
        projected: Tensor = self.project(stem_map.flatten(2).transpose(1, 2))
        return projected

    def patches(self, images: Tensor) -> Tensor:
        """Normalised pictures float (B, 3, H, W) to patch tokens (B, T, D), without positions."""
        return self.patches_of_map(self.stem_map(images))

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of a grid: (front + rows * columns, D), interpolated where needed."""
        if rows == columns == self.grid:
            return self.position_embedding
        front = int(self.class_token is not None)
        grid = self.position_embedding[front:].T.reshape(1, self.width, self.grid, self.grid)
        resized = functional.interpolate(
            grid, size=(rows, columns), mode="bicubic", align_corners=False, antialias=False
        )
        flat = resized.reshape(self.width, rows * columns).T
        return torch.cat([self.position_embedding[:front], flat])

    def encode(
        self,
        patches: Tensor,
        *,
        rows: int | None = None,
        residual: Tensor | None = None,
        on_layer: LayerHook | None = None,
    ) -> Encoded:
        """Run the tower from patch tokens on.

        Args:
            patches: float (B, T, D) as from `patches`, possibly with some masked.
            rows: Rows of the grid; a square grid when None.
            residual: (B, C) mean of the stem's map, used only with `stem_residual`.
            on_layer: Called before each layer.

        Returns:
            Pooled vectors (B, D) and tokens (B, front + T, D), class token first.
        """
        count = patches.shape[1]
        rows = round(count**0.5) if rows is None else rows
        tokens = patches
        if self.class_token is not None:
            front = self.class_token.expand(patches.shape[0], -1, -1).to(patches.dtype)
            tokens = torch.cat([front, patches], dim=1)
        tokens = tokens + self.positions(rows, count // rows)
        if self.hook is not None:
            tokens = self.hook.enter(tokens)
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        tokens = self.transformer(tokens, None, both_hooks(self.hook, on_layer))
        if self.config.final_norm == "tokens" and self.final_norm is not None:
            tokens = self.final_norm(tokens)
        if self.hook is not None:
            tokens = self.hook.leave(tokens)
        pooled = self._pool(tokens)
        if self.config.final_norm == "pooled" and self.final_norm is not None:
            pooled = self.final_norm(pooled)
        if self.residual is not None and residual is not None:
            pooled = pooled + self.residual(residual)
        return Encoded(pooled=pooled, tokens=tokens)

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.pool is not None:
            pooled: Tensor = self.pool(tokens)
            return pooled
        if self.config.pooling == "mean":
            return tokens[:, int(self.class_token is not None) :].mean(dim=1)
        return tokens[:, 0]

    def encode_map(
        self, stem_map: Tensor, patches: Tensor | None = None, on_layer: LayerHook | None = None
    ) -> Encoded:
        """Run the tower from the stem's map on.

        Args:
            stem_map: Output of `stem_map`.
            patches: Tokens to use instead of those of the map (some of them masked, say).
            on_layer: Called before each layer.
        """
        tokens = self.patches_of_map(stem_map) if patches is None else patches
        rows, _ = self.grid_of(stem_map)
        mean = stem_map.mean(dim=(2, 3)) if self.residual is not None else None
        return self.encode(tokens, rows=rows, residual=mean, on_layer=on_layer)

    def forward(self, images: Tensor) -> Encoded:
        """Normalised pictures float (B, 3, H, W) to pooled vectors and tokens."""
        return self.encode_map(self.stem_map(images))
