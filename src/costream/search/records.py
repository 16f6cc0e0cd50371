"""What an answer is: data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One item found.

    Attributes:
        rank: From 1; the first of a second page goes on from the first page.
        id: In the index.
        path: Where the file was when it was indexed, or None when there is no file.
        score: Cosine of the question and the item, -1 to 1.
        relevance: How sure it is that the item is more than the best of chance, 0 to 1; None when
            that is not known, for which the answer has the reason.
        span: Start and end of the best moment in seconds, for what has a length.
        modality: `image`, `video`, `audio` or `text`.
        reasons: Stage to its score: why the item is where it is.
        duplicates: Ids of items that are nearly the same and were left out for this one.
    """

    rank: int
    id: str
    path: str | None
    score: float
    relevance: float | None = None
    span: tuple[float, float] | None = None
    modality: str = "image"
    reasons: Mapping[str, float] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a `Searcher` found.

    Attributes:
        results: Best first.
        total: Items that were looked at: those that the filter lets through.
        nothing_relevant: Whether even the best result looks like the best of chance.
        unjudged: Why results have no relevance (one that is called by its very name has one all the
            same); empty where they have.
        exact: Whether the ranking is that of a full scan.
        recall: Audited share of the true best that an inexact kernel finds; None when exact or
            not audited yet.
        kernel: What scored the vectors.
        seconds: Stage to the time it took.
    """

    results: tuple[Result, ...]
    total: int
    nothing_relevant: bool = False
    unjudged: str = ""
    exact: bool = True
    recall: float | None = None
    kernel: str = "exact"
    seconds: Mapping[str, float] = field(default_factory=dict)
