"""Items on their way through the model: a batch may hold parts of many, each is stored whole.

A picture is one part, a clip one for each of its moments. While the model works on a batch, in a
thread of its own, the next one is gathered.

Shape letters: M parts of a batch, V vectors of a part, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from costream.errors import DataError, NumericalError
from costream.index.records import Item

Vectors = NDArray[np.float32]
Span = tuple[float, float]

NO_SPAN: Span = (float("nan"), float("nan"))
"""The span of what has no moments."""

# A batch is closed early when its decoded pictures have this many pixels (200 MB as RGB).
_BATCH_PIXELS = 2**26


@dataclass(kw_only=True, slots=True, eq=False)
class Growing:
    """An item some parts of which may still have to be decoded, or to go through the model.

    Attributes:
        item: What will be stored.
        spans: Of the parts that came so far.
        vectors: Those that the model gave so far, float32 (V, D) a part, in the order of `spans`.
        is_whole: Whether no more part will come.
    """

    item: Item
    spans: list[Span] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    is_whole: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether every vector so far is finite and not zero."""
        return all(np.isfinite(part).all() and part.any(axis=1).all() for part in self.vectors)


class Batches:
    """Gathers parts, has them embedded, and hands over the items that are complete.

    Args:
        encode: The model: M parts to float32 (M, D), or to M of (V, D), where a part gets several
            vectors.
        dim: D.
        batch_size: Parts of a batch.
        thread: Where the model works.
        store: Called with items that have all their vectors; after each batch, in this thread.
    """

    def __init__(
        self,
        encode: Callable[[list[Any]], Vectors | list[Vectors]],
        *,
        dim: int,
        batch_size: int,
        thread: ThreadPoolExecutor,
        store: Callable[[list[Growing]], None],
    ) -> None:
        self._encode = encode
        self._dim = dim
        self._batch_size = batch_size
        self._thread = thread
        self._store = store
        self._growing: list[Growing] = []
        self._waiting: list[tuple[Growing, Any]] = []
        self._num_pixels = 0
        self._in_model: tuple[list[Growing], Future[Vectors | list[Vectors]]] | None = None
        self._was_usable = False

    def begin(self, item: Item) -> Growing:
        """Announce an item whose parts will follow."""
        growing = Growing(item=item)
        self._growing.append(growing)
        return growing

    def add(self, growing: Growing, part: Any, span: Span) -> None:
        """Take a part of an item; a full batch is handed to the model.

        Raises:
            DataError, NumericalError: As of `finish`, of an earlier batch.
        """
        growing.spans.append(span)
        self._waiting.append((growing, part))
        if isinstance(part, Image):
            self._num_pixels += part.width * part.height
        if len(self._waiting) == self._batch_size or self._num_pixels >= _BATCH_PIXELS:
            self._send()

    def drop(self, growing: Growing) -> None:
        """Forget an item whose parts did not all come."""
        self._growing.remove(growing)
        self._waiting = [waiting for waiting in self._waiting if waiting[0] is not growing]

    def finish(self) -> None:
        """Embed and hand over all that is left.

        Raises:
            DataError: The model gave something else than a vector for each part.
            NumericalError: No part of the first batch got a usable vector: the model is broken.
        """
        self._send()
        self._collect()

    def _send(self) -> None:
        """Hand what waits to the model, after taking over what it made before."""
        self._collect()
        if self._waiting:
            owners = [growing for growing, _ in self._waiting]
            parts = [part for _, part in self._waiting]
            self._in_model = owners, self._thread.submit(self._encode, parts)
            self._waiting, self._num_pixels = [], 0

    def _collect(self) -> None:
        if self._in_model is not None:
            owners, future = self._in_model
            found = future.result()
            self._in_model = None
            parts = list(found[:, None]) if isinstance(found, np.ndarray) else found
            self._check(owners, parts)
            for growing, vectors_VD in zip(owners, parts, strict=True):
                growing.vectors.append(vectors_VD)
        done = [g for g in self._growing if g.is_whole and len(g.vectors) == len(g.spans)]
        self._growing = [g for g in self._growing if g not in done]
        self._store(done)

    def _check(self, owners: Sequence[Growing], parts: Sequence[Vectors]) -> None:
        forms = {part.shape[1:] for part in parts if len(part)}
        if len(parts) != len(owners) or forms != {(self._dim,)} or not all(map(len, parts)):
            shapes = sorted({part.shape for part in parts})
            raise DataError(
                f"the model gave vectors of shape {shapes} for {len(owners)} pictures, "
                f"expected {len(owners)} with {self._dim} dimensions each"
            )
        fine = [bool((np.isfinite(p).all(axis=1) & (p != 0).any(axis=1)).all()) for p in parts]
        self._was_usable = self._was_usable or any(fine)
        if not self._was_usable:
            raise NumericalError(
                f"the model gave no usable vector for {len(owners)} pictures, the first being "
                f"{owners[0].item.id!r}: every one is zero or not finite",
                hint="check the model's weights",
            )
