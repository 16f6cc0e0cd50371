"""For those who watch over the service, and for browsers that open a session."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request, Response

from costream.serve import metrics
from costream.serve.problems import Problem
from costream.serve.routes.common import StrictRoute, json_response, service_of
from costream.serve.schema import AboutAnswer, SessionRequest, StateAnswer
from costream.serve.security import COOKIE, read_headers, sent_session

router = APIRouter(route_class=StrictRoute, tags=["operations"])


@router.get("/health", response_model=StateAnswer)
async def health() -> Response:
    """Whether the process is alive."""
    return json_response({"status": "alive"})


@router.get("/ready", response_model=StateAnswer)
async def ready(request: Request) -> Response:
    """Whether a search works: both towers of the model and the index are tried, for real."""
    reason = await service_of(request).why_not_ready()
    if reason:
        raise Problem(503, reason, hint="the service's log has more")
    return json_response({"status": "ready"})


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def prometheus(request: Request) -> Response:
    """Counters in Prometheus' text form."""
    return Response(service_of(request).metrics.text(), media_type=metrics.MEDIA_TYPE)


@router.get("/about", response_model=AboutAnswer)
async def about(request: Request) -> Response:
    """What this service is, as far as its page needs to know."""
    service = service_of(request)
    index = service.collection.index
    size = await service.with_files(lambda: len(index))
    space = service.model.space
    return json_response(
        {
            "version": _version(),
            "model": space.encoder,
            "dimensions": space.dim,
            "items": size,
            "needs_key": bool(service.settings.keys),
            "shows_paths": service.collection.shows_paths,
            "allows_fetch": service.settings.allow_fetch,
            "explains": service.model.explains,
        }
    )


@router.post("/session", status_code=204)
async def begin_session(request: Request, body: SessionRequest) -> Response:
    """A cookie in exchange for a key, so that the page can show pictures."""
    service = service_of(request)
    owner = service.settings.keys.match(body.key) if service.settings.keys else None
    if owner is None:
        raise Problem(401, "got an unknown API key, expected one of this service's")
    response = Response(status_code=204)
    response.set_cookie(
        COOKIE,
        service.sessions.begin(owner),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.delete("/session", status_code=204)
async def end_session(request: Request) -> Response:
    """Forget the session of this browser."""
    secret = sent_session(read_headers(request.scope["headers"]))
    if secret is not None:
        service_of(request).sessions.end(secret)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE)
    return response


def _version() -> str:
    try:
        return version("costream")
    except PackageNotFoundError:
        return "unknown"
