"""Items and answers as plain values that are told to a model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.index import Item, SearchIndex
    from costream.search import Answer, Result

_DIGITS = 4
_LONGEST_TEXT = 500
_MOST_TAGS = 100


def shown_id(item_id: str) -> str:
    r"""An id as text; bytes of file names that are none become `\xNN`.

    Example:
        >>> shown_id("caf\udce9.jpg")
        'caf\\xe9.jpg'
    """
    return item_id.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def item_facts(item: Item) -> dict[str, Any]:
    """What is told about an item in a list: only what is there."""
    facts: dict[str, Any] = {"id": shown_id(item.id), "modality": item.modality}
    if item.path is not None and item.path != item.id:
        facts["path"] = shown_id(item.path)
    if item.when is not None:
        facts["date"] = _iso(item.when)
    if item.tags:
        facts["tags"] = list(item.tags)
    if item.caption:
        facts["caption"] = item.caption
    if item.text:
        facts["text"] = item.text[:_LONGEST_TEXT]
    return facts


def all_facts(item: Item) -> dict[str, Any]:
    """Everything that is known about an item."""
    facts = item_facts(item)
    if item.text:
        facts["text"] = item.text
    if item.path is not None:
        facts |= {"path": shown_id(item.path), "is_there": os.path.exists(item.path)}  # noqa: PTH110
    if item.size:
        facts["size_bytes"] = item.size
    if item.content_hash:
        facts["sha256"] = item.content_hash
    if item.meta:
        facts["meta"] = dict(item.meta)
    return facts


def answer_facts(answer: Answer, items: Mapping[str, Item]) -> dict[str, Any]:
    """An answer with what is known about its items.

    Args:
        answer: What was found.
        items: Id to item, of those that are still there.
    """
    results = [_result_facts(one, items[one.id]) for one in answer.results if one.id in items]
    facts: dict[str, Any] = {
        "results": results,
        "searched_items": answer.total,
        "nothing_relevant": answer.nothing_relevant,
        "exact": answer.exact,
    }
    if not answer.exact:
        facts["recall"] = answer.recall
    if answer.unjudged:
        facts["unjudged"] = f"results have no relevance: {answer.unjudged}"
    if answer.nothing_relevant:
        facts["note"] = (
            "nothing in the index seems to fit; the results, if any, are what comes nearest"
        )
    return facts


def index_facts(index: SearchIndex) -> dict[str, Any]:
    """What an index holds."""
    items = index.items()
    stats = index.stats()
    tags = Counter(tag for item in items for tag in item.tags)
    dates = [item.when for item in items if item.when is not None]
    return {
        "index": index.location,
        "items": len(items),
        "by_modality": dict(Counter(item.modality for item in items)),
        "earliest": _iso(min(dates)) if dates else None,
        "latest": _iso(max(dates)) if dates else None,
        "folders": _folders(items),
        "tags": dict(tags.most_common(_MOST_TAGS)),
        "different_tags": len(tags),
        "with_caption": sum(1 for item in items if item.caption),
        "with_text": sum(1 for item in items if item.text),
        "metadata_fields": _fields(items),
        "model": None if stats.space is None else stats.space.encoder,
        "size_bytes": stats.size_bytes,
    }


def _result_facts(result: Result, item: Item) -> dict[str, Any]:
    facts: dict[str, Any] = {"rank": result.rank, **item_facts(item)}
    facts["score"] = round(result.score, _DIGITS)
    if result.relevance is not None:
        facts["relevance"] = round(result.relevance, _DIGITS)
    if result.span is not None:
        facts["from_s"], facts["to_s"] = result.span
    if result.duplicates:
        facts["duplicates"] = [shown_id(one) for one in result.duplicates]
    return facts


def _folders(items: Iterable[Item]) -> dict[str, int]:
    """The folders with most items."""
    found = Counter(os.path.dirname(item.path) for item in items if item.path)  # noqa: PTH120
    return {shown_id(folder): count for folder, count in found.most_common(20)}


def _fields(items: Iterable[Item]) -> list[str]:
    """Names of metadata, as filters take them."""
    found: Counter[str] = Counter()
    for item in items:
        for name, value in item.meta.items():
            inner = value if isinstance(value, Mapping) else {}
            found.update([f"{name}.{key}" for key in inner] or [name])
    return [name for name, _ in found.most_common(50)]


def _iso(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return None
