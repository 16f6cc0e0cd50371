"""Searching: by words, pictures and items, added and subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from costream.search import Like, Picture, Term, Words
from costream.search import Query as Question
from costream.serve.problems import Problem
from costream.serve.routes.common import (
    StrictRoute,
    decoded_picture,
    json_response,
    picture_bytes,
    read_filter,
    service_of,
    until_gone,
)
from costream.serve.routes.shape import answer_shape, explained_shape
from costream.serve.schema import (
    ExplainAnswer,
    ExplainRequest,
    ImageTerm,
    LikeTerm,
    SearchAnswer,
    SearchParameters,
    SearchRequest,
    SimilarRequest,
    TextTerm,
    UrlTerm,
)
from costream.serve.service import Service

router = APIRouter(route_class=StrictRoute, tags=["search"])

RequestTerm = TextTerm | ImageTerm | UrlTerm | LikeTerm


@router.post("/search", response_model=SearchAnswer)
async def search(request: Request, body: SearchRequest) -> Response:
    """Search by any mixture of words, pictures and items."""
    service = service_of(request)

    async def work() -> Response:
        return await _answered(
            service,
            Question(
                terms=await read_terms(body.terms, service),
                where=read_filter(body.where, service.collection),
                top=body.top,
                offset=body.offset,
                min_relevance=body.min_relevance,
                hybrid=body.hybrid,
                collapse_duplicates=body.collapse_duplicates,
            ),
        )

    return await until_gone(request, work())


@router.get("/search", response_model=SearchAnswer)
async def search_words(
    request: Request, parameters: Annotated[SearchParameters, Query()]
) -> Response:
    """Search by words and items, as far as a URL can hold the question."""
    service = service_of(request)
    plus = ([] if parameters.q is None else [parameters.q]) + list(parameters.plus)
    terms: list[RequestTerm] = [TextTerm(text=text) for text in plus]
    terms += [TextTerm(text=text, weight=-1.0) for text in parameters.minus]
    terms += [LikeTerm(like=token) for token in parameters.like]
    if not terms:
        raise Problem(422, "got no term, expected at least one", hint="GET /search?q=a+dog")

    async def work() -> Response:
        return await _answered(
            service,
            Question(
                terms=await read_terms(terms, service),
                where=read_filter(parameters.where, service.collection),
                top=parameters.top,
                offset=parameters.offset,
                min_relevance=parameters.min_relevance,
                hybrid=parameters.hybrid,
                collapse_duplicates=parameters.collapse_duplicates,
            ),
        )

    return await until_gone(request, work())


@router.post("/similar", response_model=SearchAnswer)
async def similar(request: Request, body: SimilarRequest) -> Response:
    """More like one item; the item itself is left out."""
    service = service_of(request)

    async def work() -> Response:
        return await _answered(
            service,
            Question(
                terms=await read_terms([LikeTerm(like=body.id)], service),
                where=read_filter(body.where, service.collection),
                top=body.top,
                offset=body.offset,
                min_relevance=body.min_relevance,
                collapse_duplicates=body.collapse_duplicates,
            ),
        )

    return await until_gone(request, work())


@router.post("/explain", response_model=ExplainAnswer)
async def explain(request: Request, body: ExplainRequest) -> Response:
    """Why an item matches a question: its score by stage, and the parts of its picture."""
    service = service_of(request)

    async def work() -> Response:
        item = await service.with_files(lambda: service.collection.item(body.id))
        explained = await service.explain(item, await read_terms(body.terms, service))
        return json_response(explained_shape(body.id, explained))

    return await until_gone(request, work())


async def read_terms(terms: Sequence[RequestTerm], service: Service) -> tuple[Term, ...]:
    """Terms as the search takes them; pictures checked, items known.

    Args:
        terms: As they were sent.
        service: That was asked.

    Returns:
        Typed terms.

    Raises:
        Problem: 404 for an unknown item, 422 for what is no picture, a weight of 0, or a URL where
            none is allowed.
    """
    return tuple([await _read_term(term, service) for term in terms])


async def _read_term(term: RequestTerm, service: Service) -> Term:
    if term.weight == 0:
        raise Problem(422, "got a term of weight 0, expected another number", hint="leave it out")
    if isinstance(term, TextTerm):
        return Words(term.text, weight=term.weight)
    if isinstance(term, LikeTerm):
        item = await service.with_files(lambda: service.collection.item(term.like))
        return Like(item.id, weight=term.weight)
    if isinstance(term, UrlTerm):
        content, region = await _fetched(term.url, service), None
    else:
        content, region = picture_bytes(term.image), _region(term.region)
    picture = await service.with_files(lambda: decoded_picture(content, service, region))
    return Picture(picture, weight=term.weight)


async def _fetched(url: str, service: Service) -> bytes:
    if not service.settings.allow_fetch:
        raise Problem(
            422,
            "got a picture by URL, and this service fetches nothing",
            hint="send the picture itself as base64",
        )
    return await service.fetcher.fetch(url)


def _region(shares: list[float] | None) -> tuple[float, float, float, float] | None:
    if shares is None:
        return None
    left, top, right, bottom = shares
    if not (left < right and top < bottom):
        raise Problem(
            422,
            f"got the region {shares}, expected left < right and top < bottom",
            hint="the right half is [0.5, 0, 1, 1]",
        )
    return left, top, right, bottom


async def _answered(service: Service, question: Question) -> Response:
    shape = await service.search(question, lambda answer: answer_shape(answer, service.collection))
    return json_response(shape)
