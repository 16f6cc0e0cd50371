"""A LangChain retriever that answers from an index.

Example:
    >>> from costream.adapters.langchain import CostreamRetriever
    >>> CostreamRetriever.model_fields["top"].default
    10
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from costream.adapters.peers import installed
from costream.index.filters import Filter
from costream.search import Query, Searcher, Words

with installed("langchain-core", extra="langchain"):
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

if TYPE_CHECKING:
    from costream.index import Item
    from costream.search import Result


class CostreamRetriever(BaseRetriever):
    """Finds what fits a text; every result is a document.

    The text of a document is the item's caption or found text, or else its file's name; `metadata`
    has `id`, `path`, `score`, `relevance`, `modality`, `tags`, and for a moment of a clip `span`.

    Attributes:
        searcher: Answers the questions; it holds the index and the model.
        top: Most documents.
        min_relevance: Leave out what is less relevant, 0 to 1.
        where: Conditions that results must meet.
    """

    searcher: Searcher
    top: int = 10
    min_relevance: float | None = None
    where: Filter | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        answer = self.searcher.answer(
            Query(
                terms=(Words(query),),
                where=self.where,
                top=self.top,
                min_relevance=self.min_relevance,
            )
        )
        items = self.searcher.index.get(result.id for result in answer.results)
        return [_document(result, item) for result, item in zip(answer.results, items, strict=True)]


def _document(result: Result, item: Item) -> Document:
    facts: dict[str, Any] = {
        "id": result.id,
        "path": result.path,
        "score": result.score,
        "relevance": result.relevance,
        "modality": result.modality,
        "tags": list(item.tags),
    }
    if result.span is not None:
        facts["span"] = list(result.span)
    text = item.caption or item.text or PurePath(item.path or item.id).name
    return Document(id=result.id, page_content=text, metadata=facts)
