"""Tools over stdin and stdout, as the Model Context Protocol has it."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import anyio
from anyio import to_thread
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp.types import Tool as ToolEntry
from pydantic import ValidationError

from costream.errors import ConfigError, CostreamError
from costream.serve.mcp.arguments import told
from costream.serve.mcp.library import Library, Load
from costream.serve.mcp.tools import Told, Tool, all_tools
from costream.suggest import did_you_mean

_log = logging.getLogger("costream.mcp")

_ABOUT = (
    "Search a local collection of pictures (and videos) by what they show. Begin with search; "
    "ask for pictures (with_pictures, show_pictures) when you need to see what was found. "
    "nothing_relevant means that the collection seems to have nothing of the kind."
)


def serve(place: str, load: Load) -> None:
    """Answer on stdin and stdout until stdin is closed.

    Args:
        place: Folder of the index, or the address of its database. It may be made later.
        load: Makes what answers questions to an index.
    """
    library = Library(place, load)
    try:
        anyio.run(_serve, all_tools(library))
    finally:
        library.close()


async def _serve(tools: tuple[Tool, ...]) -> None:
    by_name = {tool.name: tool for tool in tools}

    async def list_tools(_: Any, __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_entry(tool) for tool in tools])

    async def call_tool(_: Any, asked: CallToolRequestParams) -> CallToolResult:
        return await to_thread.run_sync(_called, by_name, asked.name, asked.arguments or {})

    server = Server(
        "costream",
        version=_version(),
        title="costream",
        instructions=_ABOUT,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    async with stdio_server() as (received, sent):
        await server.run(received, sent, server.create_initialization_options())


def _entry(tool: Tool) -> ToolEntry:
    schema = tool.arguments.model_json_schema()
    for said_elsewhere in ("title", "description"):
        del schema[said_elsewhere]
    return ToolEntry(
        name=tool.name,
        description=tool.about,
        input_schema=schema,
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


def _called(tools: Mapping[str, Tool], name: str, arguments: dict[str, Any]) -> CallToolResult:
    """What a call gives; whatever goes wrong in it is told, and ends nothing."""
    try:
        if name not in tools:
            raise ConfigError(
                f"there is no tool {name!r}{did_you_mean(name, tools)}, expected {', '.join(tools)}"
            )
        tool = tools[name]
        try:
            checked = tool.arguments.model_validate(arguments)
        except ValidationError as error:
            raise told(error, name) from error
        return _result(tool.call(checked))
    except CostreamError as error:
        _log.info("%s: %s", name, error)
        return _refusal(str(error))
    except Exception as error:
        _log.exception("%s failed", name)
        return _refusal(
            f"{name} failed ({type(error).__name__}): a defect of costream, see its log"
        )


def _result(answer: Told) -> CallToolResult:
    text = _plain(json.dumps(answer.facts, ensure_ascii=False, default=str))
    content: list[TextContent | ImageContent] = [TextContent(text=text)]
    for picture in answer.pictures:
        content.append(TextContent(text=_plain(picture.label)))
        if picture.jpeg:
            data = base64.b64encode(picture.jpeg).decode("ascii")
            content.append(ImageContent(data=data, mime_type="image/jpeg"))
    return CallToolResult(content=list(content), structured_content=json.loads(text))


def _refusal(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=_plain(text))], is_error=True)


def _plain(text: str) -> str:
    """Text that can be sent: names of files may hold what is no character."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _version() -> str:
    try:
        return version("costream")
    except PackageNotFoundError:
        return ""
