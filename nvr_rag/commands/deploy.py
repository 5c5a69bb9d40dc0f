"""`nvr-rag deploy`: list how a collection answers and could answer; promote, roll back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common

if TYPE_CHECKING:
    from nvr_rag.promotion import Switch

app = typer.Typer(help="List, promote and roll back deployments.", rich_markup_mode=None)

Number = Annotated[int, typer.Argument(metavar="N", help="The deployment's number; nvr-rag deploy list shows it.")]


@app.command("list")
def list_deployments(collection: common.InCollection = "default", as_json: common.AsJson = False) -> None:
    """List the deployments of a collection, oldest first."""
    from nvr_rag import collections, deployments, indexes

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        collection_id = collections.find(connection, collection)
        of_index = {info.id: info for info in indexes.all_infos(connection, collection_id)}
        found = [
            {
                "id": one.id,
                "state": one.state,
                "mode": one.mode,
                "fusion": one.fusion.as_json(),
                "index": one.index_id,
                "encoder": of_index[one.index_id].encoder,
                "run": one.run,
                "created_at": one.created_at,
                "stopped_at": one.stopped_at,
            }
            for one in deployments.all_of(connection, collection_id)
        ]
    if as_json:
        output.emit({"collection": collection, "deployments": found})
    else:
        _show(found)


@app.command("promote")
def promote(number: Number, collection: common.InCollection = "default", as_json: common.AsJson = False) -> None:
    """Make a deployment serve: its index is verified, every server loads it, then all switch at once."""
    from nvr_rag import promotion

    with common.open_workspace() as workspace:
        done = promotion.promote(workspace, number, collection=collection, tell=output.note)
    _tell(done, as_json=as_json)


@app.command("rollback")
def rollback(
    number: Annotated[
        int | None, typer.Argument(metavar="[N]", help="A previous deployment.  [default: the one that served before]")
    ] = None,
    collection: common.InCollection = "default",
    as_json: common.AsJson = False,
) -> None:
    """Make the deployment that served before serve again. Doing it twice undoes it."""
    from nvr_rag import promotion

    with common.open_workspace() as workspace:
        done = promotion.roll_back(workspace, number, collection=collection, tell=output.note)
    _tell(done, as_json=as_json)


def _tell(done: Switch, *, as_json: bool) -> None:
    undo = f"nvr-rag deploy rollback --collection {done.collection}"
    if as_json:
        output.emit({**done.as_json(), "undo": undo})
        return
    output.say(
        f"Deployment {done.serving} serves {done.collection} now, after {done.seconds:.1f} s; before it, deployment "
        f"{done.previous} did."
    )
    output.say(f"To undo: {undo}")


def _show(found: list[dict[str, Any]]) -> None:
    from nvr_rag.registry import SHORT

    columns = ("deployment", "state", "mode", "method", "dense", "lexical", "index", "model", "run")
    rows = [
        [
            one["id"],
            one["state"],
            one["mode"],
            *(one["fusion"][key] for key in ("method", "dense_weight", "lexical_weight")),
            one["index"],
            one["encoder"][:SHORT],
            one["run"],
            common.moment(one["created_at"]),
            common.moment(one["stopped_at"]),
        ]
        for one in found
    ]
    output.table((*columns, "made (UTC)", "stopped (UTC)"), rows)
