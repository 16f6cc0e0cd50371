"""The records that flow through costream: data, no behaviour.

Shape letters: B items of a batch, T tokens, D dimensions, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One item of a data set.

    Attributes:
        id: Unique within its data set.
        group: Items of the same group are true matches of each other (all captions of a picture).
        slots: Modality name to value. `image` is a path, encoded bytes or a PIL image; `text` a
            tuple of captions, `text.fr` the same in French; `video` and `audio` are paths.
        weight: Trust in the pair, 0 (ignore) to 1.
        meta: Whatever else the source says (scene class, title, ...).
    """

    id: str
    group: str
    slots: Mapping[str, Any]
    weight: float = 1.0
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What an objective sees: tensors by slot name.

    Attributes:
        ids: One a row, for messages.
        groups: int64 (B,); rows with equal numbers are true matches of each other.
        slots: `image` uint8 (B, 3, H, W); `video` uint8 (B, F, 3, H, W), F frames; `text.ids` and
            `text.mask` int64 (B, K, T), K captions a picture, the same for `text.fr` and the like;
            others by method.
        weight: float32 (B,).
        seeds: int64 (B,); what a method draws at random for a row comes from the row's seed, so
            that it depends neither on the batch nor on the number of processes.
    """

    ids: tuple[str, ...]
    groups: Tensor
    slots: Mapping[str, Tensor]
    weight: Tensor
    seeds: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Where vectors live: two vectors may be compared only when their spaces agree.

    Attributes:
        encoder: Name of the model, for people.
        weights_hash: sha256 (hex, first 16 letters) of the weights.
        preprocessing_hash: The same of the preprocessing settings.
        dim: Number of dimensions.
        kind: One vector an item, many, or sparse.
        normalised: Whether every vector has length 1.
    """

    encoder: str
    weights_hash: str
    preprocessing_hash: str
    dim: int
    kind: Literal["dense", "multi", "sparse"] = "dense"
    normalised: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Output of an encoder for a batch.

    Attributes:
        pooled: float (B, D), one vector an item.
        tokens: float (B, T, D) or None.
        mask: bool (B, T), True where a token is real, or None.
        extras: Named intermediates.
        space: Where `pooled` lives.
        modality: `image`, `text`, `video`, ...; empty where it does not matter.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    space: Space | None = None
    modality: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Best items of each query, best first; as many as there are, never padded.

    Attributes:
        ids: Per query, item ids.
        scores: Per query, float32, the same length as its ids.
        stage: Name of the stage that made the scores.
        spans: Per query and result the (start, end) in seconds of the moment that was found, or
            None for what has no moments; empty when nothing that was searched has any.
        exact: Whether no item with a better score can have been missed.
        recall: When not exact, the measured share of the true results that such answers hold; None
            while it was not measured.
        kernel: Name of what scanned the vectors.
    """

    ids: Sequence[Sequence[str]]
    scores: Sequence[NDArray[np.float32]]
    stage: str = "exact"
    spans: Sequence[Sequence[tuple[float, float] | None]] = ()
    exact: bool = True
    recall: float | None = None
    kernel: str = "exact"


@dataclass(frozen=True, kw_only=True, slots=True)
class Qrels:
    """The truth of a retrieval task.

    Attributes:
        grades: Query id to {item id: grade}; a grade above 0 is relevant.
        exclude: Query id to item ids that do not count (the query's own picture, say).
    """

    grades: Mapping[str, Mapping[str, float]]
    exclude: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A measurement that carries what is needed to believe it.

    Attributes:
        metrics: Direction to {metric: value}; rates in percent.
        definitions: Metric to the sentence that defines it.
        data: Hash and counts of what was measured on.
        model: Name, weights hash and preprocessing hash of what was measured.
        tie_rule: How equal scores were ranked.
    """

    metrics: Mapping[str, Mapping[str, float]]
    definitions: Mapping[str, str]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    tie_rule: str = "expected"
