"""Text towers: BERT-type (both directions, mean or first token) and CLIP-type (causal, EOT pooled).

Shape letters: B texts, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from costream.encoders.blocks import (
    Encoded,
    LayerHook,
    TowerHook,
    Transformer,
    TransformerConfig,
    both_hooks,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Form of a text tower.

    Attributes:
        vocab_size: Number of token ids.
        context: Most tokens a text may have, special tokens included.
        transformer: Size of the layers.
        causal: Whether tokens see only earlier ones (CLIP).
        embedding_norm: Whether the embeddings are normalised before the first layer (BERT).
        final_norm: Whether the tokens are normalised after the last layer (CLIP, SigLIP).
        pooling: `mean` over real tokens (MiniLM), `first` token (BERT), `first_dense` the same
            followed by a dense layer and tanh (BERT's own pooler), `eot` the first end-of-text
            token (CLIP), `last` position of the context (SigLIP).
        eot_id: Token id of end-of-text, for `eot`.
    """

    vocab_size: int
    context: int
    transformer: TransformerConfig
    causal: bool = False
    embedding_norm: bool = False
    final_norm: bool = False
    pooling: Literal["mean", "first", "first_dense", "eot", "last"] = "mean"
    eot_id: int = -1


class TextTower(nn.Module):
    """Token ids to one vector a text and one a token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.hook: TowerHook | None = None
        self.width = config.transformer.width
        eps = config.transformer.norm_eps
        self.token_embedding = nn.Embedding(config.vocab_size, self.width)
        self.position_embedding = nn.Parameter(torch.zeros(config.context, self.width))
        self.embedding_norm = nn.LayerNorm(self.width, eps=eps) if config.embedding_norm else None
        self.transformer = Transformer(config.transformer, causal=config.causal)
        self.final_norm = nn.LayerNorm(self.width, eps=eps) if config.final_norm else None
        dense = config.pooling == "first_dense"
        self.pooler = nn.Linear(self.width, self.width) if dense else None
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 (B, T) to token embeddings (B, T, D), without positions."""
        embedded: Tensor = self.token_embedding(ids)
        return embedded

    def encode(
        self,
        embedded: Tensor,
        ids: Tensor,
        mask: Tensor | None = None,
        on_layer: LayerHook | None = None,
    ) -> Encoded:
        """Run the tower from token embeddings on.

        Args:
            embedded: float (B, T, D) as from `embed`, possibly with prompts or masks put in.
            ids: int64 (B, T), where the end-of-text token is looked up.
            mask: bool (B, T), True where a token is real; None when all are.
            on_layer: Called before each layer.

        Returns:
            Pooled vectors (B, D) and tokens (B, T, D).
        """
        tokens = embedded + self.position_embedding[: embedded.shape[1]]
        if self.hook is not None:
            tokens = self.hook.enter(tokens)
        if self.embedding_norm is not None:
            tokens = self.embedding_norm(tokens)
        tokens = self.transformer(tokens, mask, both_hooks(self.hook, on_layer))
        if self.final_norm is not None:
            tokens = self.final_norm(tokens)
        if self.hook is not None:
            tokens = self.hook.leave(tokens)
        return Encoded(pooled=self._pool(tokens, ids, mask), tokens=tokens, mask=mask, ids=ids)

    def _pool(self, tokens: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        if self.config.pooling == "mean":
            if mask is None:
                return tokens.mean(dim=1)
            real = mask.to(tokens.dtype).unsqueeze(-1)
            return (tokens * real).sum(dim=1) / real.sum(dim=1).clamp_min(1.0)
        if self.config.pooling == "eot":
            position = (ids == self.config.eot_id).to(torch.int64).argmax(dim=1)
            return tokens[torch.arange(tokens.shape[0], device=tokens.device), position]
        if self.config.pooling == "last":
            return tokens[:, -1]
        first = tokens[:, 0]
        return first if self.pooler is None else torch.tanh(self.pooler(first))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Encoded:
        """Token ids int64 (B, T) and mask bool (B, T) to pooled vectors and tokens."""
        return self.encode(self.embed(ids), ids, mask)
