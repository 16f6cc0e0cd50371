"""A small single-stream model: both modalities in one transformer, one score a pair.

It is the peer that two-stream models are measured against: every pair of a text and a picture needs
a pass of its own, so nothing of the score can be computed ahead. It reads the same tokens as the
two towers do (embedded words, patches or the stem's map) and has the size of one of them:

    [class ; text tokens + positions + segment 0 ; image tokens + positions + segment 1]
    -> transformer -> class token -> one matching logit

Shape letters: B pairs, N pictures, M texts, S text tokens, P picture tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from costream.encoders.blocks import Transformer, TransformerConfig
from costream.encoders.device import inference_autocast
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import tokenize
from costream.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossConfig:
    """Form of a `CrossEncoder`.

    Attributes:
        transformer: Size of the joint layers.
        image_width: Dimensions of a picture's tokens as they come in.
        text_width: Dimensions of a text's tokens as they come in.
        max_image_tokens: Most tokens of a picture.
        max_text_tokens: Most tokens of a text.
    """

    transformer: TransformerConfig
    image_width: int
    text_width: int
    max_image_tokens: int
    max_text_tokens: int


class CrossEncoder(nn.Module):
    """Scores a pair of a picture and a text with one transformer over the tokens of both.

    Args:
        config: Size.

    Example:
        >>> import torch
        >>> layers = TransformerConfig(width=8, depth=1, heads=2, mlp_width=16)
        >>> cross = CrossEncoder(CrossConfig(
        ...     transformer=layers, image_width=6, text_width=8, max_image_tokens=4,
        ...     max_text_tokens=5))
        >>> cross.score(torch.randn(3, 4, 6), torch.randn(3, 5, 8), torch.ones(3, 5)).shape
        torch.Size([3])
    """

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.transformer.width, config.transformer.norm_eps
        self.image_in = nn.Linear(config.image_width, width)
        self.text_in: nn.Linear | nn.Identity = nn.Identity()
        if config.text_width != width:
            self.text_in = nn.Linear(config.text_width, width)
        self.image_positions = nn.Parameter(torch.randn(config.max_image_tokens, width) * 0.02)
        self.text_positions = nn.Parameter(torch.randn(config.max_text_tokens, width) * 0.02)
        self.segments = nn.Parameter(torch.randn(2, width) * 0.02)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.image_norm = nn.LayerNorm(width, eps=eps)
        self.text_norm = nn.LayerNorm(width, eps=eps)
        self.transformer = Transformer(config.transformer)
        self.final_norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, 1)

    def enter_images(self, image_tokens: Tensor) -> Tensor:
        """Picture tokens float (B, P, image_width) to what the layers read, (B, P, D).

        Raises:
            DataError: When there are more tokens than positions, or they have another width.
        """
        _check_tokens("picture", image_tokens, self.config.image_width, len(self.image_positions))
        placed = self.image_in(image_tokens) + self.image_positions[: image_tokens.shape[1]]
        entered: Tensor = self.image_norm(placed + self.segments[1])
        return entered

    def enter_texts(self, text_tokens: Tensor) -> Tensor:
        """Text tokens float (B, S, text_width) to what the layers read, (B, S, D).

        Raises:
            DataError: When there are more tokens than positions, or they have another width.
        """
        _check_tokens("text", text_tokens, self.config.text_width, len(self.text_positions))
        placed = self.text_in(text_tokens) + self.text_positions[: text_tokens.shape[1]]
        entered: Tensor = self.text_norm(placed + self.segments[0])
        return entered

    def score_entered(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """Score pairs of what `enter_images` and `enter_texts` gave; the part that no cache saves.

        Args:
            images: float (B, P, D).
            texts: float (B, S, D).
            mask: bool or int (B, S), true where a text token is real.

        Returns:
            float32 (B,), the matching logit.
        """
        front = self.class_token.expand(len(texts), -1, -1).to(texts.dtype)
        tokens = torch.cat([front, texts, images], dim=1)
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        real[:, 1 : 1 + texts.shape[1]] = mask.bool()
        read = self.final_norm(self.transformer(tokens, real)[:, 0])
        logits: Tensor = self.head(read)[:, 0].float()
        return logits

    def score(self, image_tokens: Tensor, text_tokens: Tensor, mask: Tensor) -> Tensor:
        """Matching logit of each pair.

        Args:
            image_tokens: float (B, P, image_width), without positions.
            text_tokens: float (B, S, text_width), without positions.
            mask: bool or int (B, S), true where a text token is real.

        Returns:
            float32 (B,); higher means a better match.

        Raises:
            DataError: When there are more tokens than positions, or they have another width.
        """
        return self.score_entered(
            self.enter_images(image_tokens), self.enter_texts(text_tokens), mask
        )

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, mask: Tensor) -> Tensor:
        """The same as `score`."""
        return self.score(image_tokens, text_tokens, mask)


def _check_tokens(what: str, tokens: Tensor, width: int, most: int) -> None:
    if tokens.ndim != 3 or tokens.shape[2] != width or tokens.shape[1] > most:
        raise DataError(
            f"got {what} tokens of shape {tuple(tokens.shape)}, "
            f"expected (pairs, at most {most}, {width})",
            hint="make the model with CrossConfig sizes that fit its towers",
        )


def cross_encoder_beside(model: DualEncoder) -> CrossEncoder:
    """A single-stream peer of a two-stream model: as wide and deep as its text tower.

    The joint layers, the text positions and the norm of the text embeddings start from the text
    tower's weights, so that the peer knows as much language as the tower does. Training never
    changes `model`: all weights are copies.

    Args:
        model: The two-stream model, whose tokens the peer will read.

    Returns:
        The peer, on the device of `model`, to be trained with `train_cross_encoder`.
    """
    text = model.text
    context = min(text.config.context, model.config.text_preprocess.max_tokens)
    cross = CrossEncoder(
        CrossConfig(
            transformer=text.config.transformer,
            image_width=model.vision.width,
            text_width=text.width,
            max_image_tokens=model.vision.grid**2,
            max_text_tokens=context,
        )
    )
    cross.transformer.load_state_dict(text.transformer.state_dict())
    with torch.no_grad():
        cross.text_positions.copy_(text.position_embedding[:context])
    if text.embedding_norm is not None:
        cross.text_norm.load_state_dict(text.embedding_norm.state_dict())
    return cross.to(model.device)


@torch.no_grad()
def tokens_of_pixels(model: DualEncoder, pixels: Tensor, *, batch_size: int = 32) -> Tensor:
    """What a two-stream model's picture tower starts from: tokens before positions and layers.

    Args:
        model: The two-stream model; evaluation mode is used and the mode restored.
        pixels: uint8 (N, 3, H, W), already cut to the model's size.
        batch_size: Pictures a step.

    Returns:
        float32 (N, P, image_width) on the device of `model`.
    """
    was_training = model.training
    model.eval()
    with inference_autocast(model.device):
        parts = [
            model.vision.patches(model.normalise_pixels(part.to(model.device))).float()
            for part in torch.split(pixels, batch_size)
        ]
    model.train(was_training)
    return torch.cat(parts)


@torch.no_grad()
def tokens_of_texts(model: DualEncoder, texts: list[str]) -> tuple[Tensor, Tensor]:
    """What a two-stream model's text tower starts from: embedded words before positions.

    Args:
        model: The two-stream model.
        texts: M strings.

    Returns:
        Tokens float32 (M, S, text_width) and mask bool (M, S), on the device of `model`.

    Raises:
        DataError: When an item is not a string.
    """
    ids, mask = tokenize(model.tokenizer, texts, model.config.text_preprocess)
    on = model.device
    return model.text.embed(torch.from_numpy(ids).to(on)), torch.from_numpy(mask).to(on).bool()


@torch.no_grad()
def score_matrix(
    cross: CrossEncoder,
    image_tokens: Tensor,
    text_tokens: Tensor,
    mask: Tensor,
    *,
    pairs_at_once: int = 256,
) -> Tensor:
    """Score every picture against every text: N * M joint passes, in chunks.

    Args:
        cross: The model; evaluation mode is used and the mode restored.
        image_tokens: float (N, P, image_width).
        text_tokens: float (M, S, text_width).
        mask: bool or int (M, S), true where a text token is real.
        pairs_at_once: Pairs a chunk; bounds the memory, not the result.

    Returns:
        float32 (N, M) on the CPU.

    Raises:
        ConfigError: When `pairs_at_once` is below 1.
        DataError: When there are more tokens than positions, or they have another width.
    """
    if pairs_at_once < 1:
        raise ConfigError(f"pairs_at_once: got {pairs_at_once}, expected at least 1")
    was_training = cross.training
    cross.eval()
    on = cross.class_token.device
    scores = torch.zeros(len(image_tokens), len(text_tokens))
    with inference_autocast(on):
        for text in range(len(text_tokens)):
            # Padding is cut away: it costs time and scores do not depend on it.
            length = int(mask[text].bool().nonzero().max()) + 1 if mask[text].any() else 0
            entered = cross.enter_texts(text_tokens[text : text + 1, :length].to(on))
            real = mask[text : text + 1, :length].to(on)
            for start in range(0, len(image_tokens), pairs_at_once):
                images = cross.enter_images(image_tokens[start : start + pairs_at_once].to(on))
                count = len(images)
                chunk = cross.score_entered(
                    images, entered.expand(count, -1, -1), real.expand(count, -1)
                )
                scores[start : start + count, text] = chunk.cpu()
    cross.train(was_training)
    return scores
