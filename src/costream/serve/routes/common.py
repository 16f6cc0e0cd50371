"""What routes share: requests read strictly, answers written fast, the service behind them."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from PIL import Image

from costream.errors import DataError
from costream.index import Filter, parse_filter
from costream.search.engine import cut_region
from costream.search.query import Region
from costream.serve.collection import Collection
from costream.serve.problems import ClientGoneError, Problem
from costream.serve.service import Service

T = TypeVar("T")


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body; NaN, lone surrogates and a thousand nested brackets are no JSON."""
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    """A route whose JSON is read by the letter of its standard."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given requests that read strictly."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def json_response(value: object) -> Response:
    """A value as JSON; numpy arrays are lists."""
    content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")


def picture_bytes(text: str) -> bytes:
    """The encoded picture that was sent as base64.

    Raises:
        Problem: 422 when it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            422, "a picture is no base64", hint="standard base64, without a data: prefix"
        ) from error


def decoded_picture(content: bytes, service: Service, region: Region | None = None) -> Image.Image:
    """A picture that was sent, as the model takes it; decoded in another process.

    Args:
        content: Encoded bytes.
        service: With the limits.
        region: The part of it that counts.

    Returns:
        RGB; small where the model says how it fits pictures.

    Raises:
        Problem: 422 when it is none, too large, or breaks its decoder.
    """
    fit, limits = service.picture_settings, service.settings.limits
    # A part is cut from the whole, as everywhere.
    side = None if fit is None or region is not None else fit.decoded_px
    try:
        picture = service.decoders.decode(
            content,
            "the picture that was sent",
            max_pixels=limits.pixels,
            smallest_side=side,
            limit_s=limits.answer_s,
        )
    except DataError as error:
        raise Problem(422, error.message, hint=error.hint) from error
    if region is not None:
        picture = cut_region(picture, region)
    if fit is None or fit.crop_share < 1:
        # What is cut already would be cut again.
        return picture
    # Many may wait for the model: they wait as small as it takes them.
    return Image.fromarray(fit.pixels(picture).transpose(1, 2, 0))


def read_filter(conditions: Sequence[str], collection: Collection) -> Filter | None:
    """Conditions on items as a client may set them.

    Args:
        conditions: KEY=VALUE; the value of `id` is a public id.
        collection: That is asked.

    Returns:
        The filter; None without conditions.

    Raises:
        Problem: 422 for a condition on paths from those who may not know them.
        ConfigError: A condition has another form.
    """
    if not conditions:
        return None
    read = []
    for condition in conditions:
        key, _, value = condition.partition("=")
        if key == "path" and not collection.shows_paths:
            raise Problem(422, "got a condition on paths, which this service does not show")
        if key == "id":
            # An unknown id becomes one that nothing has.
            read.append(f"id={collection.ids.id(value) or chr(0)}")
        else:
            read.append(condition)
    return parse_filter(read)


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Do something for as long as the client is there.

    Args:
        request: Whose body has been read.
        work: What to do; cancelled when the client closes the connection.

    Returns:
        What the work returned.

    Raises:
        ClientGoneError: It has.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
