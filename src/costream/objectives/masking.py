"""What is hidden from a tower that learns by guessing it back: patches in blocks, words one by one.

All randomness comes from a CPU `torch.Generator`, whose state a checkpoint can hold, so that a
resumed run hides what the uninterrupted one would have hidden.

Shape letters: B items, T patches or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from costream.errors import ConfigError

_TRIES = 10
_LOG_ASPECT = math.log(1 / 0.3)


def _block(grid: NDArray[np.bool_], remaining: int, smallest: int, rng: np.random.Generator) -> int:
    """Mask one rectangle in place; returns how many cells it added, 0 when no draw fitted."""
    rows, columns = grid.shape
    for _ in range(_TRIES):
        area = smallest + (remaining - smallest) * rng.random()
        aspect = math.exp(_LOG_ASPECT * (2 * rng.random() - 1))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height <= rows and 0 < width <= columns):
            continue
        top = int(rng.random() * (rows - height + 1))
        left = int(rng.random() * (columns - width + 1))
        window = grid[top : top + height, left : left + width]
        added = int(window.size - window.sum())
        if 0 < added <= remaining:
            window[...] = True
            return added
    return 0


def _grow(grid: NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Mask one more cell in place: a neighbour of what is masked, or any cell when nothing is."""
    near = np.zeros_like(grid)
    near[1:] |= grid[:-1]
    near[:-1] |= grid[1:]
    near[:, 1:] |= grid[:, :-1]
    near[:, :-1] |= grid[:, 1:]
    free = np.flatnonzero(near & ~grid)
    if len(free) == 0:
        free = np.flatnonzero(~grid)
    grid.flat[free[int(rng.random() * len(free))]] = True


def block_mask(
    batch: int,
    rows: int,
    columns: int,
    *,
    share: float = 0.4,
    smallest: int = 4,
    exact: bool = True,
    generator: torch.Generator,
) -> Tensor:
    """Choose patches to hide, in rectangles, each item on its own (the generator of BEiT).

    Rectangles with an area uniform between `smallest` and what is still to be masked, and an aspect
    log-uniform in [0.3, 1/0.3], are drawn, at most ten tries each, until `int(share * T)` patches
    are covered. Where ten tries do not fit, BEiT's loop ends with fewer; `exact` instead grows
    the blocks cell by cell to the full count, so that every item has as many targets.

    Args:
        batch: Number of items B; may be 0.
        rows: Rows of the grid of patches.
        columns: Columns of the grid of patches.
        share: Share of the T = rows * columns patches to hide, 0 to 1.
        smallest: Smallest area of a rectangle, in patches (BEiT: 16 on a 14 x 14 grid). Smaller
            ones appear only when fewer patches than this are left to mask.
        exact: Whether every item gets exactly `int(share * T)` hidden patches, or at most.
        generator: CPU generator; advanced by one draw an item, whatever the masks.

    Returns:
        bool (B, T) on the CPU, row by row of the grid, True where hidden.

    Raises:
        ConfigError: When `share` is outside 0 to 1 or a size is negative.

    Example:
        >>> import torch
        >>> mask = block_mask(2, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> mask.shape, mask.sum(dim=1).tolist()
        (torch.Size([2, 36]), [14, 14])
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"share of patches to hide: got {share}, expected 0 to 1")
    if min(batch, rows, columns) < 0 or smallest < 1:
        raise ConfigError(
            f"got {batch=}, {rows=}, {columns=}, {smallest=}, "
            "expected sizes of at least 0 and a smallest block of at least 1"
        )
    # 1e-9: 0.4 * 36 is 14.4, but 0.29 * 100 is 28.999999999999996 and means 29.
    wanted = int(share * rows * columns + 1e-9)
    seeds = torch.randint(0, 2**62, (batch,), generator=generator).tolist()
    masks = np.zeros((batch, rows, columns), dtype=np.bool_)
    for grid, seed in zip(masks, seeds, strict=True):
        rng = np.random.default_rng(seed)
        covered = 0
        while covered < wanted:
            added = _block(grid, wanted - covered, smallest, rng)
            if added == 0:
                break
            covered += added
        if exact:
            for _ in range(wanted - covered):
                _grow(grid, rng)
    return torch.from_numpy(masks.reshape(batch, rows * columns))


def mask_words(
    ids: Tensor,
    mask: Tensor,
    *,
    share: float = 0.15,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Choose words to guess back and disguise them (the rule of BERT).

    Each real, ordinary token is a target with probability `share`. Of the targets 80 % become
    `mask_id`, 10 % a random ordinary token, 10 % stay as they are.

    Args:
        ids: int64 (B, T).
        mask: bool or int (B, T), true where a token is real; padding is never a target.
        share: Probability of a token to be a target, 0 to 1.
        mask_id: The token that stands for a hidden one.
        vocab_size: Number of tokens; random ones are drawn below it.
        special_ids: Tokens that are never targets and never drawn (class, separator, padding,
            unknown, mask).
        generator: CPU generator; advanced by the same amount for every batch of this shape. What
            it draws for a token does not depend on T.

    Returns:
        The disguised ids int64 (B, T), and the targets bool (B, T), both where `ids` are.

    Raises:
        ConfigError: When `share` is outside 0 to 1 or every token of the vocabulary is special.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[101, 7, 8, 9, 102, 0]])
        >>> masked, targets = mask_words(
        ...     ids, ids > 0, share=1.0, mask_id=103, vocab_size=200,
        ...     special_ids=(0, 101, 102, 103), generator=torch.Generator().manual_seed(0))
        >>> targets.tolist(), masked.tolist()
        ([[False, True, True, True, False, False]], [[101, 103, 103, 103, 102, 0]])
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"share of words to hide: got {share}, expected 0 to 1")
    special = torch.tensor(sorted(set(special_ids)), dtype=torch.int64)
    ordinary = torch.ones(vocab_size, dtype=torch.bool)
    ordinary[special[(special >= 0) & (special < vocab_size)]] = False
    words = ordinary.nonzero()[:, 0]
    if len(words) == 0:
        raise ConfigError(
            f"got {len(special)} special tokens in a vocabulary of {vocab_size}, "
            "expected at least one ordinary token"
        )
    # Token by token, so that more padding only adds draws at the end: a text is masked alike in
    # whatever batch it stands, split over processes or not.
    draws = torch.rand((*ids.T.shape, 3), dtype=torch.float64, generator=generator)
    chance, treatment, place = draws.transpose(0, 1).to(ids.device).unbind(dim=2)
    drawn = words.to(ids.device)[(place * len(words)).long()]
    allowed = mask.bool() & ~torch.isin(ids, special.to(ids.device))
    targets = allowed & (chance < share)
    masked = torch.where(targets & (treatment < 0.8), torch.full_like(ids, mask_id), ids)
    masked = torch.where(targets & (treatment >= 0.9), drawn, masked)
    return masked, targets
