"""The official MCP client, as tests use it: connected to a running server, or to a process on a data folder."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

# nvr-rag with an encoder that needs no model, on the index that is in the data folder.
PROGRAM = """
from nvr_rag.commands import common
from nvr_rag.settings import load_settings
from nvr_rag.testing import HashEncoder
from nvr_rag.workspace import Workspace
common.open_workspace = lambda: Workspace(load_settings(), encoder=HashEncoder())
from nvr_rag.cli import main
main()
"""


@asynccontextmanager
async def over_http(url: Any, *, mode: str = "auto", **headers: str) -> AsyncIterator[Client]:
    """Connected to the server at this URL; `X_API_Key` in the arguments is the header X-API-Key."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx2.AsyncClient(headers=given, timeout=20) as http:
        transport = streamable_http_client(f"{url}".rstrip("/") + "/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


@asynccontextmanager
async def over_stdio(*arguments: str, mode: str = "auto", **environment: str) -> AsyncIterator[Client]:
    """Connected to `nvr-rag mcp` with these arguments."""
    command = ["-c", PROGRAM, "mcp", *arguments]
    started = StdioServerParameters(command=sys.executable, args=command, env={**os.environ, **environment})
    async with Client(started, mode=mode) as client:
        yield client


async def result_of(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool gives that does not fail."""
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


async def error_of(client: Client, tool: str, **arguments: Any) -> str:
    """What a tool says that fails."""
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, answer.content
    (content,) = answer.content
    return str(content.text)


async def texts_of(client: Client, query: str, **arguments: Any) -> list[str]:
    """Texts of the passages that a search finds."""
    found = await result_of(client, "search", query=query, **arguments)
    return [one["text"] for one in found["results"]]
