"""What every visual tokenizer can do, and how evenly one uses its codes.

Shape letters: B pictures, h x w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from costream.errors import DataError


@runtime_checkable
class VisualTokenizer(Protocol):
    """Turns pictures into grids of codes."""

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        ...

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one code stands for."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Pictures to codes, without gradient.

        Args:
            images: uint8 (B, 3, h, w), sides multiples of `pixels_per_token`.

        Returns:
            int64 (B, h / pixels_per_token, w / pixels_per_token), each in 0..vocab_size - 1.

        Raises:
            DataError: When `images` have another form.
        """
        ...


def check_pixels(images: Tensor, pixels_per_token: int) -> None:
    """Refuse anything but uint8 (B, 3, h, w) with sides that the tokenizer divides.

    Raises:
        DataError: When `images` have another form.
    """
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or images.ndim != 4 or shape[1] != 3:
        raise DataError(
            f"got pictures of type {images.dtype} and shape {shape}, expected uint8 (B, 3, h, w)",
            hint="pass pixels 0 to 255, not normalised",
        )
    if 0 in shape[2:] or shape[2] % pixels_per_token or shape[3] % pixels_per_token:
        raise DataError(
            f"got pictures of {shape[2]} x {shape[3]} pixels, "
            f"expected sides that are multiples of {pixels_per_token}",
            hint="resize the pictures to the grid of tokens wanted times this number",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeUsage:
    """How evenly codes are used.

    Attributes:
        perplexity: exp of the entropy of the codes' frequencies; 1 when one code takes all, the
            size of the vocabulary when all are equally frequent.
        used: Number of codes that occur.
        tokens: Number of tokens counted.
    """

    perplexity: float
    used: int
    tokens: int


def code_usage(codes: Tensor, vocab_size: int) -> CodeUsage:
    """Measure how evenly codes are used.

    Args:
        codes: int64 of any shape, as from `VisualTokenizer.encode`.
        vocab_size: Number of codes there are.

    Raises:
        DataError: When there is no code.

    Example:
        >>> import torch
        >>> usage = code_usage(torch.tensor([[0, 1], [0, 1]]), 512)
        >>> round(usage.perplexity, 6), usage.used
        (2.0, 2)
    """
    if codes.numel() == 0:
        raise DataError("got no codes to count, expected at least one", hint="pass a picture")
    counts = torch.bincount(codes.flatten().cpu(), minlength=vocab_size).to(torch.float64)
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * share.log()).sum()
    return CodeUsage(
        perplexity=float(entropy.exp()), used=int((counts > 0).sum()), tokens=codes.numel()
    )
