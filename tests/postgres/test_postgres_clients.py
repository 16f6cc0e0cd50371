"""Whatever searches works with an index in PostgreSQL as it does with one in a folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from llama_index.core.schema import QueryBundle
from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.types import CallToolResult
from servers import Server, servers

import costream
from costream.adapters.langchain import CostreamRetriever as LangchainRetriever
from costream.adapters.llama_index import CostreamRetriever as LlamaRetriever
from costream.encoders.dual import DualEncoder
from costream.index import Index, Item, SearchIndex, open_index, parse_filter
from costream.search import Query, Searcher, Words

GALLERY = Path(costream.__file__).parent / "assets" / "gallery"
NAMES = ("husky", "orange", "red_car", "kitten", "castle_in_park", "people_on_beach")
CONDITIONS = [
    [],
    ["tag=animal"],
    [f"path={GALLERY}/k"],
    ["modality=image", "after=2021"],
    ["camera.iso=400"],
    ["tag=nothing"],
]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return costream.load("cots-mini")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with servers(1) as (started,):
        yield started


@pytest.fixture(scope="module")
def places(
    server: Server, model: DualEncoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """The same items in a folder and in a database."""
    folder = tmp_path_factory.mktemp("clients") / "index"
    paths = [GALLERY / f"{name}.jpg" for name in NAMES]
    items = [
        Item(
            id=name,
            path=str(path),
            date=1_577_836_800.0 + 31_536_000 * year,
            tags=("animal",) if name in {"husky", "kitten"} else (),
            meta={"camera": {"iso": 400 if year % 2 else 100}},
        )
        for year, (name, path) in enumerate(zip(NAMES, paths, strict=True))
    ]
    vectors = model.encode_images(paths)
    for place in (folder, server.url):
        with open_index(place, create=True) as index:
            index.add(items, vectors, model.space)
    return str(folder), server.url


@pytest.fixture
def both(places: tuple[str, str]) -> Iterator[list[SearchIndex]]:
    with open_index(places[0]) as folder, open_index(places[1]) as database:
        assert isinstance(folder, Index) and not isinstance(database, Index)
        yield [folder, database]


@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
def test_retrievers_find_the_same_in_both(
    conditions: list[str], both: list[SearchIndex], model: DualEncoder
) -> None:
    where = parse_filter(conditions)
    asked = "a dog with blue eyes"
    wanted = Searcher(both[0], model).answer(Query(terms=(Words(asked),), where=where)).results
    ids = [result.id for result in wanted]
    assert len(ids) == both[0].count(where)
    for index in both:
        searcher = Searcher(index, model)
        documents = LangchainRetriever(searcher=searcher, where=where).invoke(asked)
        assert [document.id for document in documents] == ids
        nodes = LlamaRetriever(searcher, where=where).retrieve(asked)
        assert [node.node.node_id for node in nodes] == ids
        assert [node.score for node in nodes] == pytest.approx([one.score for one in wanted])


def test_a_retriever_asked_by_a_picture_finds_it_in_both(
    both: list[SearchIndex], model: DualEncoder
) -> None:
    seen = QueryBundle("", image_path=str(GALLERY / "orange.jpg"))
    for index in both:
        (node,) = LlamaRetriever(Searcher(index, model), top=1).retrieve(seen)
        assert node.node.node_id == "orange"


def test_tools_find_the_same_in_both(places: tuple[str, str], server: Server) -> None:
    calls = [("search", {"words": "a dog", "where": where}) for where in CONDITIONS]
    calls += [("find_similar", {"id": "husky", "with_pictures": True}), ("list_items", {})]
    calls += [("show_pictures", {"ids": list(NAMES)}), ("search", {"words": "x", "where": ["y"]})]

    async def ask(place: str) -> list[CallToolResult]:
        words = ["-m", "costream", "mcp", "--index", place]
        program = StdioServerParameters(command=sys.executable, args=words, env=dict(os.environ))
        async with stdio_client(program) as streams, ClientSession(*streams) as session:
            await session.initialize()
            before = [await session.call_tool(*call) for call in calls]
            if place == server.url:
                # A server that was restarted meanwhile is connected to again.
                await anyio.to_thread.run_sync(server.stop)
                await anyio.to_thread.run_sync(server.start)
                after = [await session.call_tool(*call) for call in calls]
                assert [each.content for each in after] == [each.content for each in before]
            return before

    folder, database = (anyio.run(ask, place) for place in places)
    assert [each.is_error for each in database] == [False] * (len(calls) - 1) + [True]
    assert [told(each) for each in database] == [told(each) for each in folder]
    assert len(database[6].content) == 1 + 2 * (len(NAMES) - 1)


def told(done: CallToolResult) -> list[object]:
    """What was told, with scores as far as two ways of adding agree."""
    facts = done.content[0].text if done.is_error else json.loads(done.content[0].text)
    if not done.is_error:
        for result in facts.get("results", ()):
            result["score"] = pytest.approx(result["score"], abs=2e-4)
            result["relevance"] = pytest.approx(result.get("relevance", 0.0), abs=1e-3)
    return [facts, *done.content[1:]]
