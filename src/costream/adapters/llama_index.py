"""A LlamaIndex retriever that answers from an index.

Example:
    >>> from costream.adapters.llama_index import CostreamRetriever
    >>> CostreamRetriever.__name__
    'CostreamRetriever'
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from costream.adapters.peers import installed
from costream.index.filters import Filter
from costream.search import Picture, Query, Searcher, Words

with installed("llama-index-core", extra="llama-index"):
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode

if TYPE_CHECKING:
    from costream.index import Item
    from costream.search import Result, Term


class CostreamRetriever(BaseRetriever):
    """Finds what fits a text, a picture, or both together.

    A `QueryBundle` with `image_path` asks by that picture; with words too, by their sum. Pictures
    come as `ImageNode`, everything else as `TextNode`, with the score of the item and in `metadata`
    its `path`, `relevance`, `modality`, `tags`, and for a moment of a clip `span`.

    Args:
        searcher: Answers the questions; it holds the index and the model.
        top: Most nodes.
        min_relevance: Leave out what is less relevant, 0 to 1.
        where: Conditions that results must meet.
    """

    def __init__(
        self,
        searcher: Searcher,
        *,
        top: int = 10,
        min_relevance: float | None = None,
        where: Filter | None = None,
    ) -> None:
        super().__init__()
        self.searcher = searcher
        self.top = top
        self.min_relevance = min_relevance
        self.where = where

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        terms: list[Term] = []
        if query_bundle.query_str:
            terms.append(Words(query_bundle.query_str))
        if query_bundle.image_path:
            terms.append(Picture(Path(query_bundle.image_path)))
        answer = self.searcher.answer(
            Query(
                terms=tuple(terms),
                where=self.where,
                top=self.top,
                min_relevance=self.min_relevance,
            )
        )
        items = self.searcher.index.get(result.id for result in answer.results)
        return [_node(result, item) for result, item in zip(answer.results, items, strict=True)]


def _node(result: Result, item: Item) -> NodeWithScore:
    facts: dict[str, Any] = {
        "path": result.path,
        "relevance": result.relevance,
        "modality": result.modality,
        "tags": list(item.tags),
    }
    if result.span is not None:
        facts["span"] = list(result.span)
    text = item.caption or item.text or PurePath(item.path or item.id).name
    if result.modality == "image" and result.path is not None:
        node: TextNode = ImageNode(id_=result.id, text=text, image_path=result.path, metadata=facts)
    else:
        node = TextNode(id_=result.id, text=text, metadata=facts)
    return NodeWithScore(node=node, score=result.score)
