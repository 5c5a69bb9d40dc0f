"""What commands share: their common options, and the data folder they work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nvr_rag.workspace import Workspace

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout and nothing else.")]
InCollection = Annotated[str, typer.Option("--collection", "-c", help="The collection to work on.")]


def open_workspace() -> Workspace:
    """The data folder that the environment names (--home sets NVR_HOME). Raises ConfigurationError and others."""
    from nvr_rag.settings import load_settings
    from nvr_rag.workspace import Workspace

    return Workspace(load_settings())
