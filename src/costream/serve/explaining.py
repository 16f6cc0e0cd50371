"""Why an item matches a question: its score by stage, and which parts of its picture match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from costream.index import Filter, Item
from costream.index.forms import ItemForm
from costream.index.protocol import SearchIndex
from costream.search import Query, Term
from costream.serve.models import ServedModel

if TYPE_CHECKING:
    from costream.search import Explanation
    from costream.serve.collection import Collection

PICTURED = ("image", "video")
"""Modalities that have something to look at."""

# What depends on the other items that were found, which are not looked at here.
_RELATIVE = ("fused",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """Why an item matches.

    Attributes:
        asked: The question as a vector, float32 (D,); None where it is more than one.
        reasons: Stage to its score; empty for an item that is itself part of the question.
        span: Its best moment, if it has moments.
        patches: Which parts of its picture match; None where that cannot be told.
    """

    asked: NDArray[np.float32] | None
    reasons: Mapping[str, float] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    patches: Explanation | None = None


def ask_about(
    index: SearchIndex, model: ServedModel, item: Item, terms: Sequence[Term]
) -> Explained:
    """Ask a question about one item only.

    Args:
        index: Where it is.
        model: Of the index.
        item: Which.
        terms: The question.

    Returns:
        Without patches.
    """
    searcher = model.searcher(index)
    one = Filter(ids=frozenset((item.id,)))
    answer = searcher.answer(Query(terms=tuple(terms), where=one, top=1))
    asked = None if isinstance(searcher.encoder, ItemForm) else searcher.embed(terms)
    if not answer.results:
        return Explained(asked=asked)
    (found,) = answer.results
    reasons = {stage: score for stage, score in found.reasons.items() if stage not in _RELATIVE}
    return Explained(asked=asked, reasons=reasons, span=found.span)


def with_patches(
    asked: Explained, collection: Collection, model: ServedModel, item: Item
) -> Explained:
    """Find out which parts of an item's picture match.

    Args:
        asked: What is known of it.
        collection: That it is in.
        model: Of the index.
        item: Which.

    Returns:
        With patches, of a clip those of its best moment; as it came where the question is more
        than one vector.

    Raises:
        Problem: Its file is gone, or is no picture any more.
    """
    if asked.asked is None:
        return asked
    moment = None if asked.span is None else (asked.span[0] + asked.span[1]) / 2
    picture = collection.thumbnails.picture(item, moment)
    return replace(asked, patches=model.explain(picture, asked.asked))
