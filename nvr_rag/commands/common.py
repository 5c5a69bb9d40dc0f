"""What commands share: their common options, the data folder they work on, questions, and how an index is shown."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import disk, output
from nvr_rag.errors import InvalidInput, NvrError

if TYPE_CHECKING:
    from datetime import datetime

    from nvr_rag.indexes import IndexInfo
    from nvr_rag.workspace import Workspace

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout and nothing else.")]
InCollection = Annotated[str, typer.Option("--collection", "-c", help="The collection to work on.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def open_workspace() -> Workspace:
    """The data folder that the environment names (--home sets NVR_HOME). Raises ConfigurationError and others."""
    from nvr_rag.settings import load_settings
    from nvr_rag.workspace import Workspace

    return Workspace(load_settings())


def confirm(question: str) -> None:
    """Ask before something that cannot be undone. Raises Abort for a no, InvalidInput where nobody can be asked."""
    if not is_watched():
        raise InvalidInput("this needs a confirmation, and there is no terminal to ask at; say --yes", field="yes")
    typer.confirm(question, abort=True, err=True)


def is_watched() -> bool:
    """Whether a person can answer."""
    return sys.stdin.isatty()


def moment(when: datetime | None) -> str | None:
    """A time of the database for a person: to the second, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S}" if when else None


def index_as_json(workspace: Workspace, index: IndexInfo, head_seq: int) -> dict[str, Any]:
    """Where an index stands, and what it takes on this disk (None: it is elsewhere)."""
    from nvr_rag.upkeep.pace import pace

    going = pace(index.progress, index.applied_seq, head_seq)
    elsewhere = workspace.settings.qdrant.url is not None
    return {
        "id": index.id,
        "name": index.name,
        "encoder": index.encoder,
        "applied_seq": index.applied_seq,
        "head_seq": head_seq,
        "lag": head_seq - index.applied_seq,
        "copied_from": index.copied_from,
        "pace": going.as_json() if going else None,  # None: nobody is at it, or nothing is known yet
        "bytes_on_disk": None if elsewhere else disk.allocated(workspace.home / "indexes" / index.name),
    }


def pace_in_words(pace: dict[str, Any] | None) -> str | None:
    """How fast an index is built, from what `index_as_json` tells of it."""
    return output.pace(pace["chunks_per_second"], pace["seconds_left"]) if pace else None


def dropped(workspace: Workspace, index_id: int) -> bool:
    """Drop a retired index, unless it is another process's or something is in the way: then its owner will."""
    from nvr_rag import indexes

    with suppress(NvrError):
        indexes.drop_retired(workspace.database, workspace.store, index_id)
        return True
    return False
