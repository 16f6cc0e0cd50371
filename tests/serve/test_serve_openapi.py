"""The service keeps to its own description, whatever it is asked."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

HEALTH = list(HealthCheck)
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


OPERATIONS = [
    "POST /search",
    "GET /search",
    "POST /similar",
    "POST /explain",
    "GET /items",
    "GET /items/{id}",
    "GET /items/{id}/thumbnail",
    "GET /items/{id}/original",
    "POST /embed",
    "POST /v1/embeddings",
    "GET /v1/models",
    "GET /health",
    "GET /ready",
    "GET /metrics",
    "GET /about",
    "POST /session",
    "DELETE /session",
]


@pytest.fixture(scope="session")
def operations(client: httpx.Client) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{client.base_url}openapi.json")
    return {each.ok().label: each.ok() for each in schema.get_all_operations()}


def test_every_operation_is_fuzzed(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_address_keeps_to_the_description(
    operations: dict[str, Any], label: str, mode: GenerationMode
) -> None:
    operation = operations[label]
    cases = operation.as_strategy(generation_mode=mode)

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=HEALTH)
    @given(case=cases)
    def ask(case: Any) -> None:
        response = case.call(timeout=60)
        case.validate_response(response, checks=list(CHECKS))

    try:
        ask()
    except Unsatisfiable:
        pytest.skip("it takes nothing that could be wrong")


def test_the_description_names_everything(client: httpx.Client) -> None:
    found = client.get("openapi.json").json()
    assert found["openapi"].startswith("3.1")
    for path in found["paths"].values():
        for operation in path.values():
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            assert operation["summary"]
            assert operation["description"]
