"""A durable index of vectors, and how it is kept equal to files.

Names are imported when first used: searching needs nothing of what indexing needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.index.records import IndexStats, Item, UpdateReport
    from costream.index.store import Index
    from costream.index.update import ImageEncoder, update_index

__all__ = ["ImageEncoder", "Index", "IndexStats", "Item", "UpdateReport", "update_index"]

_HOMES = {
    "ImageEncoder": "update",
    "Index": "store",
    "IndexStats": "records",
    "Item": "records",
    "UpdateReport": "records",
    "update_index": "update",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
