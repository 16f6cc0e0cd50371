"""Errors as the service tells them: `application/problem+json` (RFC 9457).

Every answer that is no success says what was got, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
CLIENT_GONE = 499
"""What logs and counters have in place of a status, as nginx does."""


class Problem(Exception):
    """A request that is not answered, and why.

    Args:
        status: HTTP status, 400 to 599.
        detail: What was got and what was expected; never a path of a file, never a key.
        hint: What to do.
        headers: Further headers of the answer.
        errors: One line a wrong field.

    Example:
        >>> Problem(404, "there is no item 'x'", hint="GET /items lists them").status
        404
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
        errors: tuple[str, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.hint = hint
        self.headers = dict(headers or {})
        self.errors = errors

    def body(self) -> dict[str, Any]:
        """The members of the JSON answer."""
        title = HTTPStatus(self.status).phrase
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.hint:
            body["hint"] = self.hint
        if self.errors:
            body["errors"] = list(self.errors)
        return body


class ClientGoneError(Exception):
    """Whoever asked has closed the connection: there is nobody to tell anything."""


def too_busy(detail: str, *, retry_after_s: int = 1) -> Problem:
    """A 429 with the time after which to try again.

    Args:
        detail: What there is too much of.
        retry_after_s: Whole seconds.

    Returns:
        The problem, to be raised or sent.
    """
    return Problem(
        429,
        detail,
        hint=f"try again after {retry_after_s} s",
        headers={"Retry-After": str(retry_after_s)},
    )


def problem_response(problem: Problem, *, openai: bool = False) -> Response:
    """A problem as an answer.

    Args:
        problem: What went wrong.
        openai: Whether to add the member `error` that OpenAI's clients read.

    Returns:
        The answer.
    """
    body = problem.body()
    if openai:
        kind = "invalid_request_error" if problem.status < 500 else "server_error"
        told = f"{problem.detail}; {problem.hint}" if problem.hint else problem.detail
        body["error"] = {"message": told, "type": kind, "param": None, "code": None}
    return Response(
        orjson.dumps(body),
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )
