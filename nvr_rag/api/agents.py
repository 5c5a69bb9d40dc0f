"""MCP over HTTP at /mcp: for agents, behind the same doors as everything else. The tools are in nvr_rag.mcp.

Every request stands for itself, so any process of a server can answer it. Where the SDK is not installed, the path says
so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nvr_rag import mcp
from nvr_rag.api.dependencies import Parts
from nvr_rag.errors import ConfigurationError, NotFound
from nvr_rag.mcp.desk import Desk
from nvr_rag.mcp.local import LocalDesk

PATH = "/mcp"

Running = Callable[[], AbstractAsyncContextManager[None]]


def mount(app: FastAPI, *, max_body_bytes: int) -> Running:
    """Add the path to an app; what is returned has to be entered while the app runs, once."""
    try:
        manager = mcp.protocol().over_http(_desk, max_body_bytes=max_body_bytes)
    except ConfigurationError as error:
        app.router.routes.append(Route(PATH, _Missing(str(error))))
        return nullcontext
    # A client that asks for a stream of what the server has to say of itself is told that there is none (405).
    app.router.routes.append(Route(PATH, _Endpoint(manager.handle_request), methods=["POST"]))
    running: Running = manager.run
    return running


def _desk(request: Request) -> Desk:
    parts: Parts = request.app.state.parts
    seconds = parts.workspace.settings.api.timeout_seconds
    return LocalDesk(parts.workspace, parts.query_log, request.state.caller, timeout_seconds=seconds)


class _Endpoint:
    """An ASGI application that Starlette does not take for a function of a request."""

    def __init__(self, app: Callable[..., object]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)  # type: ignore[misc]


class _Missing:
    """What answers where the SDK is not installed."""

    def __init__(self, words: str) -> None:
        self._words = words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFound(self._words)
