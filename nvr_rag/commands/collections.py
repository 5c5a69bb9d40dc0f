"""`nvr-rag collections`: list, create, configure, delete."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput
from nvr_rag.types import DocumentState, Mode

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from nvr_rag.workspace import Workspace

app = typer.Typer(help="List, create, configure and delete collections.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection's name.")]


class Method(StrEnum):
    """How both sides become one ranking."""

    RRF = "rrf"
    WEIGHTED = "weighted"


@app.command("list")
def list_collections(as_json: common.AsJson = False) -> None:
    """List the collections."""
    from nvr_rag import collections

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        found = [_described(connection, info.name) for info in collections.all_infos(connection)]
    if as_json:
        output.emit({"collections": found})
    elif found:
        _show(found)
    else:
        output.say("No collections yet: nvr-rag ingest PATH makes one.")


@app.command("create")
def create(
    name: Name,
    language: Annotated[str, typer.Option(help="Of the texts, for lexical search.")] = "english",
    mode: Annotated[Mode, typer.Option(help="Which sides of the index answer.")] = Mode.HYBRID,
    as_json: common.AsJson = False,
) -> None:
    """Create an empty collection."""
    with common.open_workspace() as workspace:
        workspace.create_collection(name, language=language, mode=mode)
        _tell(workspace, name, "Created", as_json=as_json)


@app.command("configure")
def configure(
    name: Name,
    mode: Annotated[Mode | None, typer.Option(help="Which sides of the index answer.")] = None,
    dense_weight: Annotated[float | None, typer.Option(help="Of the dense side, in hybrid mode.")] = None,
    lexical_weight: Annotated[float | None, typer.Option(help="Of the lexical side, in hybrid mode.")] = None,
    method: Annotated[Method | None, typer.Option(help="How both sides become one ranking.")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Change how a collection answers, at once and for every process."""
    from nvr_rag import collections, deployments

    weights = {"dense_weight": dense_weight, "lexical_weight": lexical_weight, "method": method and method.value}
    changes: dict[str, Any] = {key: value for key, value in weights.items() if value is not None}
    if mode is None and not changes:
        raise InvalidInput("nothing to change; give --mode, --dense-weight, --lexical-weight or --method")
    with common.open_workspace() as workspace:
        with workspace.database.write() as connection:
            collections.find(connection, name, lock=True)
            now = deployments.serving(connection, name)
            wanted = mode or now.mode, replace(now.fusion, **changes)
            if wanted != (now.mode, now.fusion):
                deployments.serve(connection, now.collection_id, now.index_id, *wanted)
        _tell(workspace, name, "Configured", as_json=as_json)


@app.command("delete")
def delete(
    name: Name,
    yes: common.Yes = False,
    as_json: common.AsJson = False,
) -> None:
    """Delete a collection with its documents, queries and feedback."""
    from nvr_rag import collections, indexes

    with common.open_workspace() as workspace:
        with workspace.database.read() as connection:
            info = collections.info(connection, name)
        if not yes:
            common.confirm(f"Delete the collection {name} with {info.documents[DocumentState.READY]} documents?")
        with workspace.database.write() as connection:
            orphans = indexes.all_infos(connection, collections.find(connection, name))
            collections.remove(connection, name)
        left = [index.name for index in orphans if not common.dropped(workspace, index.id)]
    if left:
        output.note("The index's owner, or the next server, removes what is left of it on the disk.")
    if as_json:
        output.emit({"deleted": name, "documents": info.documents, "indexes_left": left})
    else:
        output.say(f"Deleted {name}.")


def _tell(workspace: Workspace, name: str, done: str, *, as_json: bool) -> None:
    with workspace.database.read() as connection:
        found = _described(connection, name)
    if as_json:
        output.emit({"collection": found})
    else:
        output.say(f"{done} {name}.")
        _show([found])


def _described(connection: Connection, name: str) -> dict[str, Any]:
    from nvr_rag import collections, deployments
    from nvr_rag.errors import NotFound

    info = collections.info(connection, name)
    serving = None
    with suppress(NotFound):
        serving = deployments.serving(connection, name)
    return {
        "name": info.name,
        "language": info.language,
        "created_at": info.created_at,
        "documents": info.documents,
        "mode": serving.mode if serving else None,
        "fusion": serving.fusion.as_json() if serving else None,
    }


def _show(found: list[dict[str, Any]]) -> None:
    columns = ("name", "language", "mode", "method", "dense", "lexical", *DocumentState)
    rows = []
    for one in found:
        fusion = one["fusion"] or {}
        how = [fusion.get(key) for key in ("method", "dense_weight", "lexical_weight")]
        rows.append([one["name"], one["language"], one["mode"], *how, *(one["documents"][s] for s in DocumentState)])
    output.table(columns, rows)
