"""The page: files of the package, read once, none named by a request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response

from costream.serve.problems import Problem

router = APIRouter(include_in_schema=False)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str


@cache
def _files() -> dict[str, _File]:
    found = {}
    for entry in (resources.files("costream") / "serve" / "web").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if entry.is_file() and suffix in _TYPES:
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = _File(content=content, media_type=_TYPES[suffix], tag=tag)
    return found


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return _response("index.html", request)


@router.get("/web/{name}")
async def part(request: Request, name: str) -> Response:
    """A part of the page."""
    return _response(name, request)


def _response(name: str, request: Request) -> Response:
    file = _files().get(name)
    if file is None:
        raise Problem(404, "the page has no such part")
    headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
