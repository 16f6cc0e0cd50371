"""Slow copies of towers, and queues of what they made.

Shape letters: N pairs of a batch, K columns of the queue, D dimensions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from costream.encoders.dual import DualEncoder
from costream.errors import NumericalError


def momentum_copy(model: DualEncoder) -> DualEncoder:
    """A copy that takes no gradient; deep, so that both move apart. The tokenizer is shared."""
    twin = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})
    twin.requires_grad_(requires_grad=False)
    return twin.eval()


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move the slow weights: slow <- momentum * slow + (1 - momentum) * fast.

    Weights that never train are equal in both and are skipped. Buffers are copied.

    Args:
        slow: Changed in place; of the same form as `fast`.
        fast: Left as it is.
        momentum: Share of the old weights that is kept, 0 to 1.
    """
    pairs = [
        (s, f) for s, f in zip(slow.parameters(), fast.parameters(), strict=True) if f.requires_grad
    ]
    if pairs:
        slow_weights: list[Tensor] = [s for s, _ in pairs]
        torch._foreach_lerp_(slow_weights, [f.detach() for _, f in pairs], 1.0 - momentum)
    for s, f in zip(slow.buffers(), fast.buffers(), strict=True):
        s.copy_(f)


class PairedQueue(nn.Module):
    """First in, first out: past key pairs, image keys and text keys under one pointer.

    Column j of both halves is the same past pair, which alignment of the two retrieval tasks needs.
    Unfilled columns are masked, so that nothing is ever contrasted with noise.

    Args:
        size: Number of columns K; 0 makes a queue that is always empty.
        dim: Dimensions of a key.

    Example:
        >>> queue = PairedQueue(2, 1)
        >>> for number in (1.0, 2.0, 3.0):
        ...     queue.push(torch.tensor([[number]]), torch.tensor([[-number]]), torch.tensor([0]))
        >>> image, text, _ = queue.contents()
        >>> image.flatten().tolist(), text.flatten().tolist()
        ([3.0, 2.0], [-3.0, -2.0])
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.image: Tensor
        self.text: Tensor
        self.groups: Tensor
        self.pointer: Tensor
        self.filled: Tensor
        self.register_buffer("image", torch.zeros(size, dim))
        self.register_buffer("text", torch.zeros(size, dim))
        self.register_buffer("groups", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, image_ND: Tensor, text_ND: Tensor, groups_N: Tensor) -> None:
        """Add pairs, dropping the oldest; wraps around at any size.

        Args:
            image_ND: Image keys, unit length.
            text_ND: Text keys, unit length, row i the partner of image key i.
            groups_N: int64 group of each pair.

        Raises:
            NumericalError: When a key is not finite; the queue is left as it was.
        """
        if self.size == 0 or len(groups_N) == 0:
            return
        if not (torch.isfinite(image_ND).all() and torch.isfinite(text_ND).all()):
            raise NumericalError(
                "a key for the queue is not finite", hint="lower the learning rate"
            )
        image_ND, text_ND = image_ND[-self.size :], text_ND[-self.size :]
        groups_N = groups_N[-self.size :]
        count = len(groups_N)
        columns = (self.pointer + torch.arange(count, device=self.pointer.device)) % self.size
        self.image[columns] = image_ND.to(self.image.dtype)
        self.text[columns] = text_ND.to(self.text.dtype)
        self.groups[columns] = groups_N
        self.pointer.copy_((self.pointer + count) % self.size)
        self.filled.copy_((self.filled + count).clamp_max(self.size))

    def contents(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of the filled columns: image keys (K', D), text keys (K', D) and groups (K',)."""
        filled = int(self.filled)
        return (
            self.image[:filled].clone(),
            self.text[:filled].clone(),
            self.groups[:filled].clone(),
        )
