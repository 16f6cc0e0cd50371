"""The ranking of a question: by vectors, and where it is words only, by words too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from costream.index.filters import Filter
from costream.scoring.fuse import fuse, named_by, telling
from costream.search.candidates import Candidate, by_vectors
from costream.search.names import KnownNames, content_words
from costream.search.query import Query, Words

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex
    from costream.records import Ranking
    from costream.search.asked import Asked
    from costream.search.steps import RankSteps

# Places of each ranking that count when two are fused; more would change nothing on a first page.
_DEPTH = 200


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
    names: KnownNames,
) -> Ranked:
    """Rank the items of an index.

    Args:
        index: Where to search.
        asked: The question.
        query: Its words and conditions.
        depth: Places of the ranking by vectors to look at.
        total: Items that the conditions let through.
        steps: What is done to the ranking by vectors before words come in.
        names: Of items that were met before.

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
        candidates = _with_words(index, asked, query, words, candidates, total, names)
    return Ranked(
        candidates=tuple(candidates.values()),
        by_vectors=ranked.found,
        is_whole=ranked.is_whole,
        unseen=ranked.unseen,
        is_exact=ranked.found.exact and ranked.is_exact,
    )


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
    known_names: KnownNames,
) -> dict[str, Candidate]:
    """The candidates and what the words find, fused."""
    matched = index.search_text(" ".join(texts), _DEPTH, where=query.where)
    telling_words = content_words(texts)
    found = zip(matched.ids[0], known_names.of(index, matched.ids[0]), strict=True)
    names = {one: each.texts for one, each in found if telling_words <= each.words}
    ids = tuple(names)
    if not ids:
        return dict(candidates)
    bm25 = dict(zip(matched.ids[0], matched.scores[0].tolist(), strict=True))
    by_words = frozenset(ids)
    far = _scored(index, asked, query, [one for one in ids if one not in candidates])
    named: frozenset[str] = frozenset()
    if len(texts) == 1:
        named = named_by(texts[0], names)
    weight = telling(len(ids), total)
    order = fuse(list(candidates), ids, named=named, words_weight=weight, depth=_DEPTH)
    known = {**far, **candidates}
    result: dict[str, Candidate] = {}
    for one in order:
        candidate = known.get(one.id) or Candidate(id=one.id, score=None)
        if one.id not in by_words and not one.is_named:
            result[one.id] = candidate
            continue
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
