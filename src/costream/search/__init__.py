"""What a question is, and how it is answered.

Names are imported when first used: a search by words needs little of this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.search.engine import Searcher
    from costream.search.model import load_searcher
    from costream.search.patches import Explanation, explain
    from costream.search.query import Like, Picture, Query, Region, Term, Words
    from costream.search.records import Answer, Result

__all__ = [
    "Answer",
    "Explanation",
    "Like",
    "Picture",
    "Query",
    "Region",
    "Result",
    "Searcher",
    "Term",
    "Words",
    "explain",
    "load_searcher",
]

_HOMES = {
    "Answer": "records",
    "Like": "query",
    "Picture": "query",
    "Query": "query",
    "Region": "query",
    "Result": "records",
    "Searcher": "engine",
    "Term": "query",
    "Words": "query",
    "Explanation": "patches",
    "explain": "patches",
    "load_searcher": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
