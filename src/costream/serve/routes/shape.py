"""Items and results as answers show them."""

from __future__ import annotations

from typing import Any

from costream.data.failures import printable
from costream.index.records import Item
from costream.search import Answer, Result
from costream.serve.collection import Collection, name_of
from costream.serve.explaining import PICTURED, Explained

_DIGITS = 6


def item_shape(item: Item, collection: Collection) -> dict[str, Any]:
    """An item, without what only its owner may know.

    Args:
        item: Of the index.
        collection: That it is in.

    Returns:
        The members of `ItemAnswer`.
    """
    token = collection.ids.token(item.id)
    has_file = item.path is not None
    name = printable(name_of(item))
    if not has_file and not collection.shows_paths:
        name = printable(name_of(item).rpartition("/")[2])
    return {
        "id": token,
        "name": name,
        "modality": item.modality,
        "size_bytes": item.size,
        "date": item.when,
        "caption": _printable(item.caption),
        "tags": [_printable(tag) for tag in item.tags],
        "meta": _printable_meta(item),
        "path": printable(item.path) if item.path and collection.shows_paths else None,
        # The hash names the content, so that a browser may keep the picture for ever.
        "thumbnail": f"items/{token}/thumbnail?v={item.content_hash[:16]}"
        if has_file and item.modality in PICTURED
        else None,
        "original": f"items/{token}/original" if has_file else None,
    }


def answer_shape(answer: Answer, collection: Collection) -> dict[str, Any]:
    """An answer.

    Args:
        answer: Of the search.
        collection: That was searched.

    Returns:
        The members of `SearchAnswer`.
    """
    items = collection.known([result.id for result in answer.results])
    return {
        "results": [
            _result_shape(result, items[result.id], collection)
            for result in answer.results
            if result.id in items  # not removed between search and now
        ],
        "total": answer.total,
        "exact": answer.exact,
        "recall": answer.recall,
        "kernel": answer.kernel,
        "nothing_relevant": answer.nothing_relevant,
        "unjudged": answer.unjudged,
        "seconds": {stage: round(seconds, _DIGITS) for stage, seconds in answer.seconds.items()},
    }


def _result_shape(result: Result, item: Item, collection: Collection) -> dict[str, Any]:
    shape = item_shape(item, collection)
    if result.span is not None and shape["thumbnail"]:
        shape["thumbnail"] += f"&at={sum(result.span) / 2:.3f}"
    return shape | {
        "rank": result.rank,
        "score": round(result.score, _DIGITS),
        "relevance": None if result.relevance is None else round(result.relevance, _DIGITS),
        "span": None if result.span is None else list(result.span),
        "reasons": {stage: round(score, _DIGITS) for stage, score in result.reasons.items()},
        "duplicates": [collection.ids.token(each) for each in result.duplicates],
    }


def explained_shape(token: str, explained: Explained) -> dict[str, Any]:
    """Why an item matches.

    Args:
        token: Its public id.
        explained: What is known.

    Returns:
        The members of `ExplainAnswer`.
    """
    patches = explained.patches
    score = explained.reasons.get("vectors") if patches is None else patches.score
    return {
        "id": token,
        "score": None if score is None else round(score, _DIGITS),
        "reasons": {stage: round(each, _DIGITS) for stage, each in explained.reasons.items()},
        "span": None if explained.span is None else list(explained.span),
        "grid": None if patches is None else patches.grid.tolist(),
        "region": None if patches is None else list(patches.region),
    }


def _printable_meta(item: Item) -> dict[str, Any]:
    return {printable(str(key)): _printable(value) for key, value in item.meta.items()}


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(printable(c) if 0xD800 <= ord(c) <= 0xDFFF else c for c in value)
    if isinstance(value, dict):
        return {printable(str(key)): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(inner) for inner in value]
    return value
