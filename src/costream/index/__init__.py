"""A durable index of vectors, and how it is kept equal to files.

Names are imported when first used: searching needs nothing of what indexing needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.index.filters import Filter, parse_filter
    from costream.index.models import ImageEncoder, PreparingEncoder, SoundEncoder
    from costream.index.opening import open_index
    from costream.index.protocol import SearchIndex
    from costream.index.records import (
        IndexStats,
        Item,
        LeftOut,
        Moment,
        SpaceEntry,
        UpdateReport,
    )
    from costream.index.store import Index
    from costream.index.update import update_index

__all__ = [
    "Filter",
    "ImageEncoder",
    "Index",
    "IndexStats",
    "Item",
    "LeftOut",
    "Moment",
    "PreparingEncoder",
    "SearchIndex",
    "SoundEncoder",
    "SpaceEntry",
    "UpdateReport",
    "open_index",
    "parse_filter",
    "update_index",
]

_HOMES = {
    "Filter": "filters",
    "ImageEncoder": "models",
    "Index": "store",
    "IndexStats": "records",
    "Item": "records",
    "LeftOut": "records",
    "Moment": "records",
    "PreparingEncoder": "models",
    "SearchIndex": "protocol",
    "SoundEncoder": "models",
    "SpaceEntry": "records",
    "UpdateReport": "records",
    "open_index": "opening",
    "parse_filter": "filters",
    "update_index": "update",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
