"""Vectors over HTTP are the model's own, in our form and for OpenAI's real client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from serving import KEY, encoded, serving

from costream.encoders.dual import DualEncoder
from costream.serve.keys import KeyRing
from costream.serve.settings import ServeSettings

TEXTS = ["red", "a green field", "日本語", "a" * 500]


@pytest.fixture(scope="module")
def openai_client(shared_index_dir: Path, tiny_model_dir: Path) -> Iterator[openai.OpenAI]:
    settings = ServeSettings(port=0, keys=KeyRing([KEY]))
    with (
        serving(shared_index_dir, tiny_model_dir, settings) as client,
        openai.OpenAI(api_key=KEY, base_url=f"{client.base_url}v1", max_retries=0) as made,
    ):
        yield made


def test_vectors_are_the_models(client: httpx.Client, tiny_model: DualEncoder) -> None:
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green")]
    answer = client.post(
        "embed", json={"texts": TEXTS, "images": [encoded(picture) for picture in pictures]}
    ).json()
    np.testing.assert_allclose(answer["texts"], tiny_model.encode_texts(TEXTS), atol=1e-4)
    np.testing.assert_allclose(answer["images"], tiny_model.encode_images(pictures), atol=1e-4)
    assert answer["space"]["weights_hash"] == tiny_model.space.weights_hash
    assert client.post("embed", json={"texts": ["red"]}).json()["images"] == []


def test_a_text_alone_is_the_text_in_company(client: httpx.Client) -> None:
    texts = [f"green {n}" for n in range(50)]
    together = client.post("embed", json={"texts": texts}).json()["texts"]
    for text, vector in zip(texts[:5], together, strict=False):
        alone = client.post("embed", json={"texts": [f"{text} "]}).json()["texts"][0]
        np.testing.assert_allclose(alone, vector, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [{}, {"texts": []}, {"texts": "red"}, {"texts": [""]}, {"texts": ["a"] * 257}, {"images": [1]}],
)
def test_nonsense_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("embed", json=body).status_code == 422


# --- OpenAI's client ---


def test_the_client_of_openai_works(openai_client: openai.OpenAI, tiny_model: DualEncoder) -> None:
    wanted = tiny_model.encode_texts(TEXTS)
    for form in ("float", "base64"):
        found = openai_client.embeddings.create(input=TEXTS, model="tiny", encoding_format=form)
        vectors = [each.embedding for each in found.data]
        if form == "base64":
            vectors = [
                v if isinstance(v, list) else np.frombuffer(base64.b64decode(v), "<f4").tolist()
                for v in vectors
            ]
        np.testing.assert_allclose(vectors, wanted, atol=1e-4)
        assert [each.index for each in found.data] == [0, 1, 2, 3]
        assert found.model == "tiny"
        assert found.usage.prompt_tokens == found.usage.total_tokens > len(TEXTS)
    one = openai_client.embeddings.create(input="red", model="tiny")  # base64 on the wire
    np.testing.assert_allclose(one.data[0].embedding, wanted[0], atol=1e-4)
    assert [model.id for model in openai_client.models.list()] == ["tiny"]


def test_fewer_dimensions_are_the_first_ones_made_unit(openai_client: openai.OpenAI) -> None:
    whole = openai_client.embeddings.create(input="red", model="tiny").data[0].embedding
    short = openai_client.embeddings.create(input="red", model="tiny", dimensions=5)
    cut = np.array(whole[:5]) / np.linalg.norm(whole[:5])
    np.testing.assert_allclose(short.data[0].embedding, cut, atol=1e-6)


def test_errors_reach_the_client_of_openai_in_words(openai_client: openai.OpenAI) -> None:
    create = openai_client.embeddings.create
    with pytest.raises(openai.NotFoundError, match="expected 'tiny'"):
        create(input="red", model="text-embedding-3-small")
    with pytest.raises(openai.UnprocessableEntityError, match="at most 16"):
        create(input="red", model="tiny", dimensions=17)
    for wrong in ("", [], [""], ["a"] * 257, [[1, 2, 3]]):
        with pytest.raises(openai.UnprocessableEntityError):
            create(input=wrong, model="tiny")
    with (
        openai.OpenAI(api_key="wrong-wrong-wrong", base_url=openai_client.base_url) as stranger,
        pytest.raises(openai.AuthenticationError, match="unknown API key"),
    ):
        stranger.embeddings.create(input="red", model="tiny")
