"""The tools over the Model Context Protocol, on stdin and stdout or over HTTP. The only module that imports its SDK.

Messages of the protocol enter and leave; whom a request may see is for the desk to say that answers it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from nvr_rag import __version__
from nvr_rag.mcp import tools
from nvr_rag.mcp.desk import Desk

DeskOf = Callable[[Any], Desk]  # of the HTTP request that a message came in; None on stdin


def make_server(desk_of: DeskOf) -> Server[Any]:
    """A server of the tools."""
    by_name = {tool.name: tool for tool in tools.TOOLS}
    listed = ListToolsResult(tools=[_described(tool) for tool in tools.TOOLS])

    async def list_tools(_context: Any, _params: PaginatedRequestParams | None) -> ListToolsResult:
        return listed

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:
        tool = by_name.get(params.name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"no tool {params.name[:80]!r}; there are: {', '.join(by_name)}")
        return await anyio.to_thread.run_sync(_called, tool, params.arguments, desk_of(context.request))

    server: Server[Any] = Server(
        "nvr-rag",
        version=__version__,
        title="nvr-rag",
        instructions=tools.INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema=lambda name: by_name[name].arguments.model_json_schema() if name in by_name else None,
    )
    server.middleware.clear()  # telemetry, which sends what requests contain wherever the environment says
    return server


def run_stdio(desk: Desk) -> None:
    """Answer on stdin and stdout until stdin ends. Whatever else is written to stdout meanwhile goes to stderr."""
    server = make_server(lambda _: desk)

    async def run() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)


def over_http(desk_of: DeskOf, *, max_body_bytes: int) -> StreamableHTTPSessionManager:
    """What answers over HTTP, each request for itself: it can be another process of ours that gets the next one.

    Who may ask at all, and by which name, is the business of what stands before it.
    """
    return StreamableHTTPSessionManager(
        make_server(desk_of),
        json_response=True,
        stateless=True,
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=max_body_bytes,
    )


def _called(tool: tools.Tool, arguments: Mapping[str, Any] | None, desk: Desk) -> CallToolResult:
    try:
        result = tools.call(tool, arguments, desk).model_dump(mode="json")
    except tools.ToolFailed as failure:
        return CallToolResult(content=[_text(str(failure))], is_error=True)
    # Clients that know nothing of structured results read the text, which is the same as JSON.
    return CallToolResult(content=[_text(json.dumps(result, ensure_ascii=False))], structured_content=result)


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _described(tool: tools.Tool) -> Tool:
    return Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=_plain(tool.arguments.model_json_schema()),
        output_schema=_plain(tool.result.model_json_schema()),
        annotations=ToolAnnotations(
            read_only_hint=tool.reads_only, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which not every client follows, and without what says only its own name."""
    definitions = schema.pop("$defs", {})
    schema.pop("description", None)

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolved(definitions[value["$ref"].rpartition("/")[2]])
        # A field may be called title as well: what it says of itself is an object then.
        return {key: resolved(item) for key, item in value.items() if key != "title" or isinstance(item, dict)}

    plain: dict[str, Any] = resolved(schema)
    return plain
