"""Many inputs through a model a batch at a time: cut, decoded ahead, and put together again.

Shape letters: N items in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from costream.data.picture import PictureSource
from costream.errors import ConfigError
from costream.records import Features

T = TypeVar("T")


def join_features(parts: Sequence[Features]) -> Features:
    """Batches of features one below the other, token sequences padded to the longest."""
    first = parts[0]
    longest = max(tokens_of(part).shape[1] for part in parts)

    def padded(value: Tensor) -> Tensor:
        missing = longest - value.shape[1]
        return functional.pad(value, (0, 0) * (value.ndim - 2) + (0, missing))

    mask = None
    if first.mask is not None:
        mask = torch.cat([padded(part.mask) for part in parts if part.mask is not None])
    extras = {}
    for name, value in first.extras.items():
        by_token = value.ndim > 1 and value.shape[1] == tokens_of(first).shape[1] and name == "ids"
        each = [part.extras[name] for part in parts]
        extras[name] = torch.cat([padded(one) for one in each] if by_token else each)
    return Features(
        pooled=torch.cat([part.pooled for part in parts]),
        tokens=torch.cat([padded(tokens_of(part)) for part in parts]),
        mask=mask,
        extras=extras,
        modality=first.modality,
    )


def to_cpu(features: Features) -> Features:
    """Features in float32 on the CPU, of memory of their own; the tokens must be there."""

    def moved(value: Tensor) -> Tensor:
        value = value.float() if value.is_floating_point() else value
        return value.cpu().clone()

    return replace(
        features,
        pooled=moved(features.pooled),
        tokens=moved(tokens_of(features)),
        mask=None if features.mask is None else moved(features.mask),
        extras={name: moved(value) for name, value in features.extras.items()},
    )


def tokens_of(features: Features) -> Tensor:
    """The tokens of features, which must be there."""
    if features.tokens is None:
        raise ValueError(f"features of {features.modality} have no tokens, expected some")
    return features.tokens


def in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Items `size` at a time; the last batch may have fewer.

    Raises:
        ConfigError: The size is below 1.

    Example:
        >>> list(in_batches([1, 2, 3], 2))
        [[1, 2], [3]]
    """
    if size < 1:
        raise ConfigError(f"batch_size is {size}, expected at least 1")
    return (items[start : start + size] for start in range(0, len(items), size))


def decoded_ahead(
    batches: Iterator[Sequence[PictureSource]], pixels: Callable[[PictureSource], NDArray[np.uint8]]
) -> Iterator[Sequence[NDArray[np.uint8]]]:
    """Decode the next batch in threads while the model works on this one."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = [pool.submit(pixels, picture) for picture in next(batches, [])]
        while waiting:
            ready = [future.result() for future in waiting]
            waiting = [pool.submit(pixels, picture) for picture in next(batches, [])]
            yield ready
