"""The service's description of itself (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from costream.serve.problems import MEDIA_TYPE
from costream.serve.schema import ProblemAnswer


def describe(application: FastAPI) -> bytes:
    """The description of an application, with problems as the answer to everything that fails.

    Args:
        application: With all its routes.

    Returns:
        JSON.
    """
    found = get_openapi(
        title="costream",
        version="1",
        description="Search pictures and clips by words, by example, and by both.",
        routes=application.routes,
    )
    schemas: dict[str, Any] = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = ProblemAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas["Problem"] = problem
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {
                "description": "Why there is no answer (RFC 9457)",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
    found["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "Needed where keys are set."}
    }
    found["security"] = [{}, {"key": []}]
    return orjson.dumps(found)
