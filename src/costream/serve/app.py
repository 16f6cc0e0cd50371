"""The application: routes, and every error as a problem that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from costream.errors import ConfigError, CostreamError, NumericalError, SpaceMismatch
from costream.serve.batching import EncodeError, OverloadedError
from costream.serve.guard import App, Guard
from costream.serve.openapi import describe
from costream.serve.problems import (
    CLIENT_GONE,
    ClientGoneError,
    Problem,
    problem_response,
    too_busy,
)
from costream.serve.routes import embed, items, operations, page, search
from costream.serve.service import Service

_MAX_ERRORS = 20
# Told to the client and done with; anything else goes on to the guard, which logs it as a defect.
_EXPECTED: tuple[type[Exception], ...] = (
    Problem,
    RequestValidationError,
    HTTPException,
    CostreamError,
    OverloadedError,
    EncodeError,
    TimeoutError,
)


def make_app(service: Service) -> App:
    """The whole application, guarded.

    Args:
        service: What it serves.

    Returns:
        An ASGI application.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    application = FastAPI(
        title="costream",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    application.state.service = service
    for module in (search, items, embed, operations, page):
        application.include_router(module.router)
    description = describe(application)

    @application.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(description, media_type="application/json")

    for kind in (*_EXPECTED, Exception):
        application.add_exception_handler(kind, _told)
    application.add_exception_handler(ClientGoneError, _gone)
    return Guard(
        cast(App, application),
        settings=service.settings,
        sessions=service.sessions,
        metrics=service.metrics,
    )


async def _told(request: Request, error: Exception) -> Response:
    return problem_response(problem_of(error), openai=request.url.path.startswith("/v1/"))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def problem_of(error: Exception) -> Problem:
    """An error of any layer as a problem, without what is not the client's to know.

    Args:
        error: What was raised.

    Returns:
        What to tell.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, _detail(error), headers=dict(error.headers or {}))
    if isinstance(error, OverloadedError):
        return too_busy(str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, TimeoutError):
        return Problem(
            503, "the work took too long", hint="try again", headers={"Retry-After": "2"}
        )
    if isinstance(error, SpaceMismatch):
        return Problem(
            503,
            "the index has just been given another model",
            hint="try again in some seconds",
            headers={"Retry-After": "5"},
        )
    if isinstance(error, ConfigError | NumericalError):
        return Problem(422, error.message, hint=error.hint)
    if isinstance(error, EncodeError):
        return Problem(503, str(error), hint="the service's log has the details")
    if isinstance(error, CostreamError):
        return Problem(
            503,
            "the index cannot be read",
            hint="the service's log has the details",
            headers={"Retry-After": "5"},
        )
    return Problem(500, "a defect of this service", hint="its log has the details")


def _detail(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is nothing at this address; GET /openapi.json lists what there is"
    if error.status_code == 405:
        return "this address does not take this method; GET /openapi.json lists what there is"
    return str(error.detail)


def _invalid(error: RequestValidationError) -> Problem:
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        words = found[0].get("ctx", {}).get("error", "")
        return Problem(400, f"the body is no JSON ({str(words)[:200]})", hint="send an object")
    lines = [_line(each) for each in found[:_MAX_ERRORS]]
    if len(found) > _MAX_ERRORS:
        lines.append(f"and {len(found) - _MAX_ERRORS} more")
    return Problem(
        422,
        "the request has another form than expected",
        hint="GET /openapi.json describes it",
        errors=tuple(lines),
    )


def _line(error: dict[str, Any]) -> str:
    place = ".".join(str(part)[:100] for part in error["loc"])
    return f"{place}: {error['msg']}"[:500]
