"""`costream mcp` as clients meet it: a real process, asked by the real `mcp` client over stdio.

Laws: the tools find what the `Searcher` finds; whatever a model sends, it gets an answer that says
what to do, and the server lives on; stdout holds messages of the protocol and nothing else; when
stdin is closed the process ends.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.types import CallToolResult
from PIL import Image

from clip_maker import clip_bytes, cuts
from costream.encoders.dual import DualEncoder
from costream.encoders.storage import load
from costream.index import Filter, Index, Item, update_index
from costream.search import Like, Query, Searcher, Words

TOOLS = {"search", "find_similar", "show_pictures", "get_item", "list_items", "describe_index"}

Talk = Callable[[ClientSession], Awaitable[None]]


def command(index: Path | str, model: Path | None) -> list[str]:
    chosen = [] if model is None else ["--model", str(model)]
    return [sys.executable, "-m", "costream", "mcp", "--index", str(index), *chosen]


def talk(index: Path | str, model: Path | None, say: Talk) -> None:
    """Start the program, talk to it, close its stdin; it has to end by itself."""
    (program, *words) = command(index, model)
    parameters = StdioServerParameters(command=program, args=words, env=dict(os.environ))

    async def run() -> None:
        with anyio.fail_after(120):
            async with (
                stdio_client(parameters) as (received, sent),
                ClientSession(received, sent) as session,
            ):
                await session.initialize()
                await say(session)

    anyio.run(run)


def facts(done: CallToolResult) -> dict[str, Any]:
    """What a tool told, which it tells twice."""
    assert not done.is_error, done.content
    told = json.loads(done.content[0].text)
    assert told == done.structured_content
    return dict(told)


def refusal(done: CallToolResult) -> str:
    assert done.is_error, done.content
    return str(done.content[0].text)


def pictures(done: CallToolResult) -> list[Image.Image]:
    blocks = [block for block in done.content if block.type == "image"]
    assert all(block.mime_type == "image/jpeg" for block in blocks)
    return [Image.open(io.BytesIO(base64.b64decode(block.data))) for block in blocks]


def pairs(told: dict[str, Any]) -> list[tuple[str, float]]:
    return [(result["id"], result["score"]) for result in told["results"]]


def test_the_tools_find_what_the_searcher_finds(
    shared_index_dir: Path, tiny_model: DualEncoder, tiny_model_dir: Path
) -> None:
    with Index.open(shared_index_dir) as index:
        searcher = Searcher(index, tiny_model)
        ids = index.ids()

        def wanted(*terms: Words | Like, where: Filter | None = None) -> list[tuple[str, float]]:
            answer = searcher.answer(Query(terms=terms, where=where))
            return [(result.id, round(result.score, 4)) for result in answer.results]

        async def say(session: ClientSession) -> None:
            listed = (await session.list_tools()).tools
            assert {tool.name for tool in listed} == TOOLS
            for tool in listed:
                assert tool.description
                assert tool.input_schema["additionalProperties"] is False
                assert tool.annotations is not None and tool.annotations.read_only_hint

            async def found(name: str, **arguments: Any) -> list[tuple[str, float]]:
                return pairs(facts(await session.call_tool(name, arguments)))

            assert await found("search", words="red") == wanted(Words("red"))
            plus = await found("search", words="red", plus=["a dog"], minus=["blue"])
            assert plus == wanted(Words("red"), Words("a dog"), Words("blue", weight=-1.0))
            like = await found("search", like=[ids[0]], minus_like=[ids[1]])
            assert like == wanted(Like(ids[0]), Like(ids[1], weight=-1.0))
            assert await found("find_similar", id=ids[0]) == wanted(Like(ids[0]))
            narrow = await found("search", words="red", where=[f"id={ids[2]}"])
            assert narrow == wanted(Words("red"), where=Filter(ids=frozenset((ids[2],))))
            first = await found("search", words="red", top=1)
            second = await found("search", words="red", top=2, offset=1)
            assert first + second == wanted(Words("red"))

        talk(shared_index_dir, tiny_model_dir, say)


def test_what_is_in_the_index_can_be_listed_and_looked_at(
    tmp_path: Path, index_dir: Path, tiny_model: DualEncoder, tiny_model_dir: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(clip_bytes(cuts(["husky", "orange"], 1.0), "mp4"))
    odd = os.fsdecode(b"caf\xe9")
    more = [
        Item(id="clip", path=str(clip), modality="video", date=1.0),
        Item(id="note", caption="a red note", tags=("paper", "red"), meta={"camera": {"iso": 4}}),
        Item(id=odd, tags=("red",)),
    ]
    with Index.open(index_dir) as index:
        index.add(more, tiny_model.encode_texts(["a", "b", "c"]), tiny_model.space)
        ids = index.ids()

    async def say(session: ClientSession) -> None:
        held = facts(await session.call_tool("describe_index", {}))
        assert held["items"] == 6
        assert held["by_modality"] == {"image": 5, "video": 1}
        assert held["tags"] == {"red": 2, "paper": 1}
        assert "camera.iso" in held["metadata_fields"]
        page = facts(await session.call_tool("list_items", {"top": 2}))
        assert page["total"] == 6 and len(page["items"]) == 2
        assert page["items"][0]["id"].endswith("blue.png"), "not the newest first"
        tagged = facts(await session.call_tool("list_items", {"where": ["tag=paper"]}))
        assert [item["id"] for item in tagged["items"]] == ["note"]
        note = facts(await session.call_tool("get_item", {"id": "note"}))
        assert note["caption"] == "a red note" and note["meta"] == {"camera": {"iso": 4}}
        # Bytes that are no text come escaped, and are known again.
        strange = facts(await session.call_tool("list_items", {"where": ["tag=red"]}))
        (shown,) = {item["id"] for item in strange["items"]} - {"note"}
        assert shown == "caf\\xe9"
        assert facts(await session.call_tool("get_item", {"id": shown}))["id"] == shown

        asked = {"id": ids[0], "with_picture": True}
        (picture,) = pictures(await session.call_tool("get_item", asked))
        assert max(picture.size) <= 512
        several = {"ids": [ids[0], "note", "clip"], "longest_side": 64, "at_s": 1.5}
        done = await session.call_tool("show_pictures", several)
        first, moment = pictures(done)
        assert max(first.size) == max(moment.size) == 64
        assert facts(done) == {"shown": 2, "asked_for": 3}
        assert "no picture: has no file" in "".join(
            b.text for b in done.content if b.type == "text"
        )
        orange = np.asarray(moment, dtype=np.float64).mean(axis=(0, 1))
        assert orange[0] > orange[2] + 30, "not the moment that was asked for"
        found = await session.call_tool("search", {"words": "red", "with_pictures": True})
        assert len(pictures(found)) == 4

    talk(index_dir, tiny_model_dir, say)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such tool": ("serach", {"words": "x"}, "did you mean 'search'"),
    "nothing asked": ("search", {}, "give words"),
    "blank words": ("search", {"words": "  "}, "words"),
    "misspelt": ("search", {"wrods": "a dog"}, "wrods: there is no such argument"),
    "no number": ("search", {"words": "a", "top": "many"}, "got 'many'"),
    "too many": ("search", {"words": "a", "top": 10_000}, "100"),
    "negative": ("search", {"words": "a", "offset": -1}, "offset"),
    "relevance": ("search", {"words": "a", "min_relevance": 7}, "min_relevance"),
    "no filter": ("search", {"words": "a", "where": ["beach"]}, "KEY=VALUE"),
    "no date": ("search", {"words": "a", "where": ["after=soon"]}, "2024-06-30"),
    "cancelled": ("search", {"words": "a", "minus": ["a"]}, "cancel"),
    "unknown like": ("search", {"like": ["/etc/passwd"]}, "take ids from"),
    "unknown id": ("get_item", {"id": "../../etc/passwd"}, "take ids from"),
    "unknown one": ("find_similar", {"id": "x"}, "take ids from"),
    "unknown among": ("show_pictures", {"ids": ["x"]}, "take ids from"),
    "no ids": ("show_pictures", {"ids": []}, "ids"),
    "odd type": ("get_item", {"id": {"a": [1]}}, "string"),
    "surplus": ("describe_index", {"all": True}, "all: there is no such argument"),
}


def test_bad_input_is_answered_with_what_to_do(
    shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    async def say(session: ClientSession) -> None:
        for what, (name, arguments, remedy) in BAD.items():
            told = refusal(await session.call_tool(name, arguments))
            assert remedy in told, f"{what}: {told}"
            assert "Traceback" not in told and "defect" not in told, told
        assert len(facts(await session.call_tool("search", {"words": "red"}))["results"]) == 3

    talk(shared_index_dir, tiny_model_dir, say)


def test_an_index_may_be_made_emptied_replaced_and_migrated_meanwhile(
    tmp_path: Path,
    index_dir: Path,
    tiny_model: DualEncoder,
    tiny_model_dir: Path,
    other_model_dir: Path,
) -> None:
    folder = tmp_path / "later"
    asked = {"words": "red"}

    async def say(session: ClientSession) -> None:
        async def count() -> int:
            return len(facts(await session.call_tool("search", asked))["results"])

        assert "costream index" in refusal(await session.call_tool("search", asked))
        Index.open(folder, create=True).close()
        assert "is empty" in refusal(await session.call_tool("search", asked))
        held = facts(await session.call_tool("describe_index", {}))
        assert (held["items"], held["earliest"], held["model"]) == (0, None, None)
        assert facts(await session.call_tool("list_items", {}))["total"] == 0

        found = sorted((tmp_path / "pictures").iterdir())
        with Index.open(folder) as index:
            update_index(index, tiny_model, found[:2])
        (folder / "model.json").write_text(json.dumps({"model": str(tiny_model_dir)}))
        assert await count() == 2
        # Replaced as a whole, as restoring a backup does.
        shutil.rmtree(folder)
        shutil.copytree(index_dir, folder)
        (folder / "model.json").write_text(json.dumps({"model": str(tiny_model_dir)}))
        assert await count() == 3
        # Another model takes over.
        other = load(other_model_dir)
        with Index.open(folder) as index:
            index.begin_space(other.space)
            items = index.items()
            images = other.encode_images([item.path for item in items if item.path])
            index.fill_space(items, images, other.space)
            index.switch_space(other.space)
        (folder / "model.json").write_text(json.dumps({"model": str(other_model_dir)}))
        assert await count() == 3

    talk(folder, None, say)


def test_calls_at_the_same_time_get_what_they_get_alone(
    shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    async def say(session: ClientSession) -> None:
        calls = [{"words": f"red {number}", "with_pictures": True} for number in range(24)]
        alone = [await session.call_tool("search", call) for call in calls]
        results: list[CallToolResult | None] = [None] * len(calls)

        async def ask(number: int) -> None:
            results[number] = await session.call_tool("search", calls[number])

        async with anyio.create_task_group() as group:
            for number in range(len(calls)):
                group.start_soon(ask, number)
        together = [result for result in results if result is not None]
        assert [pairs(facts(one)) for one in together] == [pairs(facts(one)) for one in alone]
        assert [one.content[2:] for one in together] == [one.content[2:] for one in alone]

    talk(shared_index_dir, tiny_model_dir, say)


def request(number: int, method: str, **parameters: Any) -> bytes:
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}
    return json.dumps(message).encode() + b"\n"


def test_stdout_is_the_protocol_only_and_the_end_of_stdin_is_the_end(
    shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    async def run() -> tuple[list[bytes], bytes, int | None]:
        process = await asyncio.create_subprocess_exec(
            *command(shared_index_dir, tiny_model_dir),
            "--verbose",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        hello = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "0"},
        }
        process.stdin.write(request(1, "initialize", **hello))
        process.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        process.stdin.write(b"this is no message\n\xff\xfe\n{}\n[]\n")
        process.stdin.write(request(2, "no/such/method"))
        process.stdin.write(request(3, "tools/call", name="get_item", arguments={"id": "x"}))
        process.stdin.write(request(4, "tools/call", name="search", arguments={"words": "red"}))
        lines = []
        while not any(b'"id":4' in line for line in lines):
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            assert line, "the server ended"
            lines.append(line)
        process.stdin.close()
        said, logged = await asyncio.wait_for(process.communicate(), 20)
        return lines + said.splitlines(), logged, process.returncode

    lines, logged, code = asyncio.run(run())
    answers = {message.get("id"): message for message in map(json.loads, lines)}
    assert code == 0
    assert "error" in answers[2]
    assert answers[3]["result"]["isError"] is True
    assert answers[4]["result"]["isError"] is False
    assert b"there is no item" in logged, "refusals are logged to stderr when asked for"


def test_ctrl_c_ends_it_at_once(shared_index_dir: Path, tiny_model_dir: Path) -> None:
    with subprocess.Popen(
        command(shared_index_dir, tiny_model_dir),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(request(1, "ping"))
        process.stdin.flush()
        assert b'"id":1' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        # Its stdin is still open.
        assert process.wait(20) in (130, -signal.SIGINT)
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("place", "remedy"),
    [("mysql://somewhere/else", "postgresql://"), ("no/such/folder", "costream index")],
)
def test_an_index_that_is_not_there_is_told_by_the_tools(
    place: str, remedy: str, tiny_model_dir: Path
) -> None:
    async def say(session: ClientSession) -> None:
        for name in ("describe_index", "list_items"):
            assert remedy in refusal(await session.call_tool(name, {}))

    talk(place, tiny_model_dir, say)
