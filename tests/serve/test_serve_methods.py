"""Models with methods, served: whoever is asked, the answer is that of `costream search`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from langchain_core.documents import Document
from mcp import ClientSession, StdioServerParameters, stdio_client
from serving import serving

from costream.adapters.langchain import CostreamRetriever as LangchainRetriever
from costream.adapters.llama_index import CostreamRetriever as LlamaRetriever
from costream.cli.search import answer_query
from costream.encoders.storage import save_model
from costream.index import Index, open_index, update_index
from costream.method import apply_methods, read_method
from costream.search import Answer, Like, Query, Words, load_searcher
from costream.system import load_system
from pooled_clips import make_pooled_clips
from tiny_world import tiny_model, write_scenes

ASKED = "a red circle"


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An index of clips, and a model with a scorer of pairs."""
    return make_pooled_clips(tmp_path_factory.mktemp("pooled"))


def by_program(place: Path, model: Path, text: str = ASKED) -> Answer:
    query = Query(terms=(Words(text),), hybrid=False)
    return answer_query(query, place, model_name=str(model))


def ids(answer: Answer) -> list[str]:
    return [result.id for result in answer.results]


def test_the_service_scores_pairs(pooled: tuple[Path, Path]) -> None:
    wanted = by_program(*pooled)
    first_stage = sorted(wanted.results, key=lambda result: -result.score)
    assert ids(wanted) != [result.id for result in first_stage]
    with serving(*pooled) as client:
        body = {"terms": [{"text": ASKED}], "hybrid": False}
        found = client.post("search", json=body).json()
        assert [one["name"] for one in found["results"]] == ids(wanted)
        for one, result in zip(found["results"], wanted.results, strict=True):
            assert one["reasons"]["steps"] == pytest.approx(result.reasons["steps"], abs=1e-4)
        like = {"id": found["results"][0]["id"]}
        alike = client.post("similar", json=like).json()
        query = Query(terms=(Like(wanted.results[0].id),))
        same = answer_query(query, pooled[0], model_name=str(pooled[1]))
        assert [one["name"] for one in alike["results"]] == ids(same)
        assert all("steps" not in one["reasons"] for one in alike["results"])
        assert client.get("ready").status_code == 200


def test_tools_of_language_models_score_pairs(pooled: tuple[Path, Path]) -> None:
    place, model = pooled
    words = ["-m", "costream", "mcp", "--index", str(place), "--model", str(model)]
    parameters = StdioServerParameters(command=sys.executable, args=words, env=dict(os.environ))
    told: dict[str, Any] = {}

    async def ask() -> None:
        with anyio.fail_after(120):
            async with (
                stdio_client(parameters) as (received, sent),
                ClientSession(received, sent) as session,
            ):
                await session.initialize()
                done = await session.call_tool("search", {"words": ASKED})
                told.update(json.loads(done.content[0].text))

    anyio.run(ask)
    assert [one["id"] for one in told["results"]] == ids(by_program(*pooled))


def test_retrievers_of_a_loaded_searcher_score_pairs(pooled: tuple[Path, Path]) -> None:
    wanted = ids(by_program(*pooled))
    with open_index(pooled[0]) as index:
        searcher = load_searcher(index, pooled[1])
        documents: list[Document] = LangchainRetriever(searcher=searcher).invoke(ASKED)
        assert [document.id for document in documents] == wanted
        nodes = LlamaRetriever(searcher).retrieve(ASKED)
        assert [one.node.node_id for one in nodes] == wanted


def test_an_index_of_several_vectors_an_item_is_served(tmp_path: Path) -> None:
    system = apply_methods(tiny_model(), [read_method("filip")])
    save_model(system.model, tmp_path / "model")
    form = load_system(tmp_path / "model").parts.index
    assert form is not None
    write_scenes(tmp_path / "scenes", 12)
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, form, tmp_path / "scenes")
    wanted = by_program(tmp_path / "index", tmp_path / "model")
    with serving(tmp_path / "index", tmp_path / "model") as client:
        assert client.get("ready").status_code == 200
        body = {"terms": [{"text": ASKED}], "hybrid": False}
        found = client.post("search", json=body).json()["results"]
        assert [one["score"] for one in found] == pytest.approx(
            [result.score for result in wanted.results], abs=1e-4
        )
        assert [one["name"] for one in found] == [Path(one).name for one in ids(wanted)]
        told = client.post("explain", json={"id": found[0]["id"], "terms": [{"text": ASKED}]})
        assert (told.status_code, told.json()["grid"]) == (200, None)
        assert told.json()["score"] == pytest.approx(found[0]["score"], abs=1e-3)
