"""Leaving out mismatched pairs, by the running distribution of the similarity of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from costream.errors import NumericalError


class SimilarityFilter(nn.Module):
    """Keeps a pair when its similarity is at least mean - k * standard deviation of recent ones.

    The statistics are those of the last `window` pairs, kept or not, so that the threshold cannot
    ratchet upwards. Nothing is filtered before `warm_up` pairs were seen.

    Args:
        k: Number of standard deviations below the mean; None keeps everything.
        window: Similarities remembered.
        warm_up: Pairs seen before the first is left out.

    Example:
        >>> import torch
        >>> keep = SimilarityFilter(k=1.0, window=8, warm_up=4)
        >>> keep.push(torch.tensor([0.5, 0.6, 0.5, 0.6]))
        >>> keep.kept(torch.tensor([0.55, 0.1])).tolist()
        [True, False]
    """

    def __init__(self, *, k: float | None, window: int = 4096, warm_up: int = 1024) -> None:
        super().__init__()
        self.k, self.window, self.warm_up = k, window, warm_up
        self.recent: Tensor
        self.seen: Tensor
        self.register_buffer("recent", torch.zeros(window))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def threshold(self) -> Tensor:
        """Least similarity that is kept now; minus infinity while warming up or switched off."""
        if self.k is None or int(self.seen) < max(self.warm_up, 2):
            return self.recent.new_tensor(float("-inf"))
        recent = self.recent[: min(int(self.seen), self.window)]
        return recent.mean() - self.k * recent.std(correction=0)

    def kept(self, similarities: Tensor) -> Tensor:
        """Which pairs to keep: bool (N,) for similarities (N,), by what was pushed before."""
        # Equal similarities have a spread of exactly 0 only without rounding. A similarity that is
        # not a number is kept: leaving it out would hide a broken model behind a loss of 0.
        return ~(similarities < self.threshold() - 1e-6)

    @torch.no_grad()
    def push(self, similarities: Tensor) -> None:
        """Remember similarities (N,) of pairs, the oldest dropping out.

        Raises:
            NumericalError: When one is not finite; nothing was remembered then.
        """
        if not torch.isfinite(similarities).all():
            raise NumericalError(
                "the similarity of a pair is not finite", hint="lower the learning rate"
            )
        values = similarities.detach()[-self.window :].to(self.recent.dtype)
        start = int(self.seen) + len(similarities) - len(values)
        slots = (start + torch.arange(len(values), device=values.device)) % self.window
        self.recent[slots] = values
        self.seen.add_(len(similarities))
