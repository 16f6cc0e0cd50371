"""Items: a page of them, one, its thumbnail, its file."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from costream.serve.collection import name_of
from costream.serve.files import open_item
from costream.serve.originals import original_response
from costream.serve.routes.common import StrictRoute, json_response, read_filter, service_of
from costream.serve.routes.shape import item_shape
from costream.serve.schema import ItemAnswer, ItemsAnswer, ItemsParameters, Token
from costream.serve.thumbnails import Size

router = APIRouter(route_class=StrictRoute, tags=["items"])

Id = Annotated[Token, Path()]
_Responses = dict[int | str, dict[str, Any]]
_FOR_EVER = "private, max-age=31536000, immutable"
_PICTURE: _Responses = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
}
_FILE: _Responses = {200: {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}}


@router.get("/items", response_model=ItemsAnswer)
async def items(request: Request, parameters: Annotated[ItemsParameters, Query()]) -> Response:
    """A page of everything there is."""
    service = service_of(request)
    collection = service.collection

    def work() -> Response:
        found, total = collection.page(
            read_filter(parameters.where, collection),
            sort=parameters.sort,
            descending=parameters.order == "descending",
            offset=parameters.offset,
            limit=parameters.limit,
        )
        shapes = [item_shape(item, collection) for item in found]
        return json_response({"items": shapes, "total": total})

    return await service.with_files(work)


@router.get("/items/{id}", response_model=ItemAnswer)
async def item(request: Request, id: Id) -> Response:
    """One item."""
    service = service_of(request)
    collection = service.collection
    return await service.with_files(
        lambda: json_response(item_shape(collection.item(id), collection))
    )


@router.get("/items/{id}/thumbnail", response_class=Response, responses=_PICTURE)
async def thumbnail(
    request: Request,
    id: Id,
    size: Annotated[Size, Query(description="Longest side in pixels.")] = Size.TILE,
    v: Annotated[
        str | None, Query(max_length=64, description="Names the content, for caches only.")
    ] = None,
    at: Annotated[
        float | None,
        Query(ge=0, le=1e7, allow_inf_nan=False, description="Moment of a clip, seconds."),
    ] = None,
) -> Response:
    """A small JPEG of an item, made when it is first asked for."""
    service = service_of(request)

    def work() -> Response:
        item = service.collection.item(id)
        moment = service.collection.moment(item, at)
        tag = f'"{item.content_hash[:32]}-{int(size)}-{moment or 0}"'
        if item.content_hash and request.headers.get("if-none-match") == tag:
            service.metrics.thumbnails.labels("not modified").inc()
            return Response(status_code=304, headers={"ETag": tag})
        made = service.collection.thumbnails.get(item, size, moment)
        service.metrics.thumbnails.labels("made" if made.made else "found").inc()
        lasting = made.of_indexed and v is not None and item.content_hash.startswith(v) and v
        headers = {"Cache-Control": _FOR_EVER if lasting else "private, no-cache"}
        if made.of_indexed:
            headers["ETag"] = tag
        return Response(made.jpeg, media_type="image/jpeg", headers=headers)

    return await service.with_files(work)


@router.get("/items/{id}/original", response_class=Response, responses=_FILE)
async def original(request: Request, id: Id) -> Response:
    """The file of an item, byte by byte."""
    service = service_of(request)

    def work() -> Response:
        item = service.collection.item(id)
        file = open_item(item)
        return original_response(file, name_of(item), wanted=request.headers.get("range"))

    return await service.with_files(work)
