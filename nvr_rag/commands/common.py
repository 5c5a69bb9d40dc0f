"""What commands share: their common options, the data folder they work on, and who else works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nvr_rag.db.session import Database
    from nvr_rag.errors import StoreBusy
    from nvr_rag.workspace import Workspace

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout and nothing else.")]
InCollection = Annotated[str, typer.Option("--collection", "-c", help="The collection to work on.")]


def open_workspace() -> Workspace:
    """The data folder that the environment names (--home sets NVR_HOME). Raises ConfigurationError and others."""
    from nvr_rag.settings import load_settings
    from nvr_rag.workspace import Workspace

    return Workspace(load_settings())


def busy(database: Database, error: StoreBusy) -> StoreBusy:
    """The same error in words that say which process it is about."""
    from nvr_rag import processes
    from nvr_rag.errors import StoreBusy

    servers = processes.alive(database, "serve")
    if servers:
        owner = servers[0]
        who = f"the server with process id {owner.pid} on {owner.host}" + (f" ({owner.url})" if owner.url else "")
        return StoreBusy(f"{error}: probably in {who}, which did not answer; try again, or stop it")
    return StoreBusy(
        f"{error}. No server is running on this data folder, so another nvr-rag command is at work; try again when it "
        "has finished"
    )
