"""`nvr-rag mcp`: search, fetch and feedback as tools for an agent, whose program starts this and talks to it on stdin
and stdout."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput

if TYPE_CHECKING:
    from nvr_rag.access.callers import Caller
    from nvr_rag.mcp.desk import Desk


def mcp(
    url: Annotated[
        str | None, typer.Option(envvar="NVR_URL", help="A running server.  [default: the data folder]")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="NVR_API_KEY", help="The key that a server wants.", show_envvar=True)
    ] = None,
    principal: Annotated[
        list[str] | None,
        typer.Option(
            help="Read what this principal may; repeatable. Only where no server runs: there the key says it."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Read every document, where no server runs.")
    ] = False,
) -> None:
    """Offer search, fetch and feedback to an agent (MCP on stdin and stdout)."""
    from nvr_rag.mcp import protocol

    if url and everything:
        raise InvalidInput("--everything is for a data folder: what a server shows is said by the key")
    run_stdio = protocol().run_stdio
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")  # on stderr
    with ExitStack() as opened:
        if url:
            desk = _remote(url, api_key, principal or None, opened)
        else:
            desk = _embedded(_caller(principal or [], everything), api_key, opened)
        run_stdio(desk)


def _remote(url: str, api_key: str | None, principals: list[str] | None, opened: ExitStack) -> Desk:
    from nvr_rag.client import Client
    from nvr_rag.mcp.remote import RemoteDesk

    return RemoteDesk(opened.enter_context(Client(url, api_key=api_key, principals=principals)))


def _embedded(caller: Caller, api_key: str | None, opened: ExitStack) -> Desk:
    from nvr_rag.mcp.embedded import EmbeddedDesk

    workspace = opened.enter_context(common.open_workspace())
    return opened.enter_context(EmbeddedDesk(workspace, caller, api_key=api_key))


def _caller(principals: list[str], everything: bool) -> Caller:
    """Who asks where no server runs. Raises InvalidInput."""
    from nvr_rag.access.callers import Caller, Scope
    from nvr_rag.access.keys import check_principals
    from nvr_rag.types import Reader

    check_principals(principals)
    reader = Reader(principals=frozenset(principals), everything=everything)
    return Caller(scopes=frozenset({Scope.SEARCH, Scope.FEEDBACK}), reader=reader)
