"""The ranking of a question: by vectors, and where it is words only, by words too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from costream.index.filters import Filter
from costream.scoring.fuse import fold, fuse, named_by, telling
from costream.search.candidates import Candidate, by_vectors, look_up
from costream.search.query import Query, Words

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex
    from costream.index.records import Item
    from costream.records import Ranking
    from costream.search.asked import Asked
    from costream.search.steps import RankSteps

# Places of each ranking that count when two are fused; more would change nothing on a first page.
_DEPTH = 200
# English words that say nothing about a picture. An item counts as found by words only when it has
# all others of the question: one common word in a file's name is no reason to be on the first page.
_FUNCTION_WORDS = frozenset(
    "a an and are at by for from has have in into is it its of on or over some that the their "
    "there these this to under up while with".split()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A ranking, and how it was made.

    Attributes:
        candidates: Best first, each item once.
        by_vectors: The ranking by vectors alone, before any rank step.
        is_whole: Whether every item that can be found is among the candidates.
        unseen: No item that is not among the candidates has a greater cosine.
        is_exact: Whether neither the vectors nor what came after them can have missed an item that
            belongs before one that is shown.
    """

    candidates: tuple[Candidate, ...]
    by_vectors: Ranking
    is_whole: bool
    unseen: float
    is_exact: bool


def rank(
    index: SearchIndex,
    asked: Asked,
    query: Query,
    *,
    depth: int,
    total: int,
    steps: RankSteps,
) -> Ranked:
    """Rank the items of an index.

    Args:
        index: Where to search.
        asked: The question.
        query: Its words and conditions.
        depth: Places of the ranking by vectors to look at.
        total: Items that the conditions let through.
        steps: What is done to the ranking by vectors before words come in.

    Returns:
        At least the best `depth` items, or all there are; their order does not depend on `depth`.

    Raises:
        GoneError: An item was removed meanwhile.
    """
    depth = max(depth, _DEPTH)
    modality = "text" if all(isinstance(term, Words) for term in query.terms) else "image"
    ranked = steps.rank(asked, modality=modality, wanted=depth, where=query.where)
    candidates = dict(ranked.candidates)
    words = _only_words(query)
    if words:
        candidates = _with_words(index, asked, query, words, candidates, total)
    return Ranked(
        candidates=tuple(candidates.values()),
        by_vectors=ranked.found,
        is_whole=ranked.is_whole,
        unseen=ranked.unseen,
        is_exact=ranked.found.exact and ranked.is_exact,
    )


def names_of(item: Item) -> tuple[str, ...]:
    """What an item may be called: the name of its file without ending, caption, tags, found text.

    Args:
        item: Of an index.

    Returns:
        Texts that are not empty.

    Example:
        >>> from costream.index.records import Item
        >>> names_of(Item(id="1", path="/pictures/red_car.jpg", tags=("garage",)))
        ('red_car', 'garage')
    """
    # PurePath takes longer, and one question looks at hundreds of names.
    stem, _ = os.path.splitext(os.path.basename(item.path or item.id))  # noqa: PTH119, PTH122
    return tuple(text for text in (stem, item.caption, *item.tags, item.text) if text)


def content_words(texts: Sequence[str]) -> frozenset[str]:
    """The words of a question that say what is asked for; all words if none does.

    Example:
        >>> sorted(content_words(["People on a stage"]))
        ['people', 'stage']
    """
    words = frozenset(word for text in texts for word in fold(text))
    return frozenset(word for word in words if word not in _FUNCTION_WORDS) or words


def has_words(item: Item, words: frozenset[str]) -> bool:
    """Whether an item's names have every one of some words."""
    return words <= {word for name in names_of(item) for word in fold(name)}


def _only_words(query: Query) -> list[str]:
    """The texts of a question that is words only and subtracts none, else nothing."""
    if not query.hybrid:
        return []
    texts = [term.text for term in query.terms if isinstance(term, Words) and term.weight > 0]
    return texts if len(texts) == len(query.terms) else []


def _with_words(
    index: SearchIndex,
    asked: Asked,
    query: Query,
    texts: Sequence[str],
    candidates: Mapping[str, Candidate],
    total: int,
) -> dict[str, Candidate]:
    """The candidates and what the words find, fused."""
    matched = index.search_text(" ".join(texts), _DEPTH, where=query.where)
    telling_words = content_words(texts)
    items = [item for item in look_up(index, matched.ids[0]) if has_words(item, telling_words)]
    ids = tuple(item.id for item in items)
    if not ids:
        return dict(candidates)
    bm25 = dict(zip(matched.ids[0], matched.scores[0].tolist(), strict=True))
    by_words = frozenset(ids)
    far = _scored(index, asked, query, [one for one in ids if one not in candidates])
    named: frozenset[str] = frozenset()
    if len(texts) == 1:
        named = named_by(texts[0], {item.id: names_of(item) for item in items})
    weight = telling(len(ids), total)
    order = fuse(list(candidates), ids, named=named, words_weight=weight, depth=_DEPTH)
    known = {**far, **candidates}
    result: dict[str, Candidate] = {}
    for one in order:
        candidate = known.get(one.id, Candidate(id=one.id, score=None))
        reasons = dict(candidate.reasons)
        if one.id in by_words:
            reasons |= {"words": bm25[one.id], "fused": one.score}
        if one.is_named:
            reasons["named"] = 1.0
        result[one.id] = replace(candidate, reasons=reasons, is_named=one.is_named)
    return result


def _scored(
    index: SearchIndex,
    asked: Asked,
    query: Query,
    ids: Iterable[str],
) -> dict[str, Candidate]:
    """Items that only the words found, with the scores of their vectors."""
    wanted = frozenset(ids)
    if not wanted:
        return {}
    where = replace(query.where or Filter(), ids=wanted)
    return by_vectors(asked.search(index, len(wanted), where))
