"""Search, fetch and feedback as tools for agents, over the Model Context Protocol.

shapes        what agents send and get
tools         arguments -> results, or an error in words
desk          what the tools need of whoever answers: `local`, `remote`, or for a data folder on this disk `embedded`
server        the protocol around the tools; needs the extra "mcp"
"""

from __future__ import annotations

from types import ModuleType

from nvr_rag.errors import ConfigurationError

_NEEDED = ("mcp", "mcp_types")


def protocol() -> ModuleType:
    """`nvr_rag.mcp.server`. Raises ConfigurationError where its SDK is not installed."""
    try:
        from nvr_rag.mcp import server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise ConfigurationError(
            "MCP needs a package that is not installed: pip install 'nvr-rag[mcp]', and start it again"
        ) from error
    return server
