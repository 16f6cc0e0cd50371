"""From a request to an answer: the one place where the service meets the search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from costream.data.decode import open_image
from costream.index import Filter, Index
from costream.serve.models import ServedModel
from costream.serve.problems import Problem


@dataclass(frozen=True, slots=True)
class Words:
    """What to find, in words."""

    text: str
    weight: float = field(default=1.0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Picture:
    """An example of what to find."""

    source: bytes
    weight: float = field(default=1.0, kw_only=True)
    region: tuple[float, float, float, float] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Like:
    """An item of the index as an example."""

    id: str
    weight: float = field(default=1.0, kw_only=True)


Term = Words | Picture | Like


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A question."""

    terms: tuple[Term, ...]
    where: Filter | None = None
    top: int = 10
    offset: int = 0
    min_relevance: float | None = None
    hybrid: bool = True
    collapse_duplicates: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One item found."""

    rank: int
    id: str
    score: float
    relevance: float | None = None
    span: tuple[float | None, float | None] | None = None
    modality: str = "image"
    reasons: Mapping[str, float] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was found."""

    results: tuple[Result, ...]
    total: int
    nothing_relevant: bool = False
    exact: bool = True
    recall: float | None = None
    kernel: str = "exact"
    seconds: Mapping[str, float] = field(default_factory=dict)


def answer(index: Index, model: ServedModel, query: Query) -> Answer:
    """Answer a question; call it in a thread other than the event loop's.

    Args:
        index: Where to look.
        model: Its model.
        query: The question.

    Returns:
        What was found.
    """
    begin = time.perf_counter()
    total = len(index)
    if not total:
        return Answer(results=(), total=0, seconds={"encode": 0.0, "search": 0.0})
    vector = _vector(index, model, query.terms)
    encoded = time.perf_counter()
    own = {term.id for term in query.terms if isinstance(term, Like)}
    allowed = None
    if query.where is not None:
        allowed = {item.id for item in index.items() if query.where.matches(item)}
    wanted = query.top + query.offset + len(own)
    ranking = index.search(vector[None], model.space, wanted if allowed is None else total)
    pairs = zip(ranking.ids[0], ranking.scores[0], strict=True)
    found = [
        (item_id, float(score))
        for item_id, score in pairs
        if item_id not in own and (allowed is None or item_id in allowed)
    ]
    found = found[query.offset : query.offset + query.top]
    results = tuple(
        Result(rank=rank, id=item_id, score=score, reasons={"vector": score})
        for rank, (item_id, score) in enumerate(found, start=query.offset + 1)
    )
    searched = time.perf_counter()
    seconds = {"encode": encoded - begin, "search": searched - encoded}
    return Answer(results=results, total=total, seconds=seconds)


def _vector(index: Index, model: ServedModel, terms: Sequence[Term]) -> NDArray[np.float32]:
    parts = []
    for term in terms:
        if isinstance(term, Words):
            vector = model.encode_texts([term.text])[0]
        elif isinstance(term, Picture):
            vector = model.encode_images([_cropped(term)])[0]
        else:
            vector = index.vectors([term.id])[0]
        parts.append(term.weight * vector.astype(np.float64))
    total = np.sum(parts, axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise Problem(422, "the terms of the query cancel each other", hint="change a weight")
    unit: NDArray[np.float32] = (total / length).astype(np.float32)
    return unit


def _cropped(term: Picture) -> Image:
    picture = open_image(term.source)
    if term.region is None:
        return picture
    left, top, right, bottom = term.region
    wide, high = picture.size
    return picture.crop(
        (round(left * wide), round(top * high), round(right * wide), round(bottom * high))
    )
