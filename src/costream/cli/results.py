"""What a search found: data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One picture found.

    Attributes:
        rank: From 1.
        id: In the index.
        path: Where the file was when it was indexed, or None when there is no file.
        score: Similarity to the query, -1 to 1.
    """

    rank: int
    id: str
    path: str | None
    score: float
