"""Vectors of texts and pictures, in our form and in OpenAI's."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from costream.serve.problems import Problem
from costream.serve.routes.common import (
    StrictRoute,
    decoded_picture,
    json_response,
    picture_bytes,
    service_of,
    until_gone,
)
from costream.serve.schema import (
    EmbedAnswer,
    EmbedRequest,
    OpenAIEmbeddingAnswer,
    OpenAIEmbeddingRequest,
)
from costream.serve.service import Service

router = APIRouter(route_class=StrictRoute, tags=["embed"])


@router.post("/embed", response_model=EmbedAnswer)
async def embed(request: Request, body: EmbedRequest) -> Response:
    """Vectors of texts and pictures, in the space of the index."""
    service = service_of(request)
    if not body.texts and not body.images:
        raise Problem(422, "got neither texts nor images, expected at least one")

    async def work() -> Response:
        pictures = [
            await service.with_files(
                lambda image=image: decoded_picture(picture_bytes(image), service)  # type: ignore[misc]
            )
            for image in body.images
        ]
        model = service.model
        answer = {
            "texts": await model.texts(body.texts),
            "images": await model.images(pictures),
            "space": asdict(model.space),
        }
        return json_response(answer)

    return await until_gone(request, work())


@router.post("/v1/embeddings", response_model=OpenAIEmbeddingAnswer)
async def openai_embeddings(request: Request, body: OpenAIEmbeddingRequest) -> Response:
    """Vectors of texts, as OpenAI's clients ask for them."""
    service = service_of(request)
    texts = [body.input] if isinstance(body.input, str) else body.input
    _check_model(body, service)

    async def work() -> Response:
        vectors = _shortened(await service.model.texts(texts), body.dimensions)
        tokens = await service.with_files(lambda: service.model.count_tokens(texts))
        answer = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": number, "embedding": each}
                for number, each in enumerate(_encoded(vectors, body.encoding_format))
            ],
            "model": service.model.space.encoder,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return json_response(answer)

    return await until_gone(request, work())


@router.get("/v1/models")
async def openai_models(request: Request) -> dict[str, Any]:
    """The one model that there is."""
    model = service_of(request).model.space.encoder
    one = {"id": model, "object": "model", "created": 0, "owned_by": "costream"}
    return {"object": "list", "data": [one]}


def _check_model(body: OpenAIEmbeddingRequest, service: Service) -> None:
    space = service.model.space
    if body.model != space.encoder:
        raise Problem(
            404,
            f"got the model {body.model[:100]!r}, expected {space.encoder!r}",
            hint="GET /v1/models names it",
        )
    if body.dimensions is not None and body.dimensions > space.dim:
        raise Problem(422, f"got dimensions={body.dimensions}, expected at most {space.dim}")


def _shortened(vectors: NDArray[np.float32], dim: int | None) -> NDArray[np.float32]:
    """The first numbers of each vector, of length 1 again, as OpenAI defines `dimensions`."""
    if dim is None or dim == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dim]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    shortened: NDArray[np.float32] = cut / np.maximum(lengths, np.float32(1e-12))
    return shortened


def _encoded(vectors: NDArray[np.float32], form: str) -> Sequence[Any]:
    if form == "float":
        return list(vectors)
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
