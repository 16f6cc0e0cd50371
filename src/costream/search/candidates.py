"""Items that may be in an answer, before it is cut to size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from costream.errors import DataError
from costream.index.filters import Filter

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex
    from costream.index.records import Item
    from costream.records import Ranking


class GoneError(Exception):
    """An item was removed between being found and being looked up; asking again helps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One item of a ranking.

    Attributes:
        id: In the index.
        score: Of the question and its best vector, or all of them; None for an item without one.
        span: Start and end of its best moment in seconds, if it has moments.
        reasons: Stage to its score.
        is_named: Whether the words asked for are its name.
    """

    id: str
    score: float | None
    span: tuple[float, float] | None = None
    reasons: Mapping[str, float] = field(default_factory=dict)
    is_named: bool = False


def by_vectors(found: Ranking) -> dict[str, Candidate]:
    """The ranking of one question as candidates by id, best first."""
    spans = found.spans[0] if found.spans else [None] * len(found.ids[0])
    return {
        item_id: Candidate(id=item_id, score=score, span=span, reasons={"vectors": score})
        for item_id, score, span in zip(found.ids[0], found.scores[0].tolist(), spans, strict=True)
    }


def look_up(index: SearchIndex, ids: Sequence[str]) -> list[Item]:
    """Items that were just found.

    Args:
        index: Where they are.
        ids: Which.

    Returns:
        One an id, in their order.

    Raises:
        GoneError: One of them was removed meanwhile.
        DataError: The index is damaged.
    """
    try:
        return index.get(ids)
    except DataError as error:
        if index.count(Filter(ids=frozenset(ids))) == len(set(ids)):
            raise
        raise GoneError from error
