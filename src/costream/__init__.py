"""costream: cross-modal retrieval, from training to search.

Names are loaded when first used, so that `import costream` costs nothing.

Example:
    >>> import costream
    >>> model = costream.load("cots-mini")
    >>> model.encode_texts(["two dogs run through snow"]).shape
    (1, 256)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costream.data import DataSet as DataSet
    from costream.data import open_image as open_image
    from costream.data import read_data as read_data
    from costream.encoders.dual import DualEncoder as DualEncoder
    from costream.encoders.storage import load as load
    from costream.encoders.storage import save_model as save_model
    from costream.errors import ConfigError as ConfigError
    from costream.errors import CostreamError as CostreamError
    from costream.errors import DataError as DataError
    from costream.errors import NotFittedError as NotFittedError
    from costream.errors import NumericalError as NumericalError
    from costream.errors import SpaceMismatch as SpaceMismatch
    from costream.errors import WeightsError as WeightsError
    from costream.evaluate import evaluate as evaluate
    from costream.evaluate import evaluate_vectors as evaluate_vectors
    from costream.evaluate import rank_of_truth as rank_of_truth
    from costream.index import Index as Index
    from costream.index import Item as Item
    from costream.index import update_index as update_index
    from costream.records import Batch as Batch
    from costream.records import Features as Features
    from costream.records import Qrels as Qrels
    from costream.records import Ranking as Ranking
    from costream.records import Report as Report
    from costream.records import Sample as Sample
    from costream.records import Space as Space
    from costream.search import Like as Like
    from costream.search import Picture as Picture
    from costream.search import Query as Query
    from costream.search import Searcher as Searcher
    from costream.search import Words as Words
    from costream.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "Batch": "records",
    "ConfigError": "errors",
    "CostreamError": "errors",
    "DataError": "errors",
    "DataSet": "data",
    "DualEncoder": "encoders.dual",
    "Features": "records",
    "Index": "index",
    "Item": "index",
    "Like": "search",
    "NotFittedError": "errors",
    "NumericalError": "errors",
    "Picture": "search",
    "Qrels": "records",
    "Query": "search",
    "Ranking": "records",
    "Report": "records",
    "Sample": "records",
    "Searcher": "search",
    "Space": "records",
    "SpaceMismatch": "errors",
    "WeightsError": "errors",
    "Words": "search",
    "evaluate": "evaluate",
    "evaluate_vectors": "evaluate",
    "load": "encoders.storage",
    "open_image": "data",
    "rank_of_truth": "evaluate",
    "read_data": "data",
    "save_model": "encoders.storage",
    "train": "train",
    "update_index": "index",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - one list, not two


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'costream' has no attribute {name!r}")
    value = getattr(import_module(f"costream.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
