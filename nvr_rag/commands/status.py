"""`nvr-rag status`: what is stored, what runs on it, and what lags. Opens no index and loads no encoder."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nvr_rag import __version__, output
from nvr_rag.commands import common
from nvr_rag.types import DocumentState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from nvr_rag.collections import CollectionInfo
    from nvr_rag.workspace import Workspace


def status(as_json: common.AsJson = False) -> None:
    """Show the data folder: collections, indexes, servers, workers and jobs."""
    with common.open_workspace() as workspace:
        found = _gather(workspace)
    if as_json:
        output.emit(found)
    else:
        _show(found)


def _gather(workspace: Workspace) -> dict[str, Any]:
    from nvr_rag import collections, jobs
    from nvr_rag.db.migrate import revision
    from nvr_rag.running import processes

    with workspace.database.read() as connection:
        found = [_collection(workspace, connection, info) for info in collections.all_infos(connection)]
    servers = processes.alive(workspace.database, processes.SERVER)
    workers = processes.alive(workspace.database, processes.WORKER)
    return {
        "version": __version__,
        "home": str(workspace.home),
        "database": workspace.database.engine.url.render_as_string(hide_password=True),
        "schema": revision(workspace.database),
        "servers": [{"pid": p.pid, "host": p.host, "url": p.url, "heartbeat_at": p.heartbeat_at} for p in servers],
        "workers": [
            {"pid": p.pid, "host": p.host, "job_kinds": p.job_kinds, "heartbeat_at": p.heartbeat_at} for p in workers
        ],
        "collections": found,
        "jobs": [
            {
                "id": job.id,
                "kind": job.kind,
                "state": job.state,
                "status": job.status,
                "attempts": job.attempts,
                "progress": job.progress,
            }
            for job in jobs.unfinished(workspace.database)
        ],
    }


def _collection(workspace: Workspace, connection: Connection, info: CollectionInfo) -> dict[str, Any]:
    from nvr_rag import deployments, indexes
    from nvr_rag.errors import NotFound

    serving = None
    with suppress(NotFound):
        serving = deployments.serving(connection, info.name)
    live = [index for index in indexes.all_infos(connection, info.id) if index.state == "live"]
    return {
        "name": info.name,
        "language": info.language,
        "documents": info.documents,
        "head_seq": info.head_seq,
        "deployment": {
            "id": serving.id,
            "index": next((index.name for index in live if index.id == serving.index_id), None),
            "mode": serving.mode,
            "fusion": serving.fusion.as_json(),
        }
        if serving
        else None,
        "indexes": [common.index_as_json(workspace, index, info.head_seq) for index in live],
    }


def _show(found: dict[str, Any]) -> None:
    servers = ", ".join(f"{server['url']} (process {server['pid']})" for server in found["servers"])
    workers = (f"{', '.join(one['job_kinds'])} (process {one['pid']} on {one['host']})" for one in found["workers"])
    output.pairs(
        {
            "nvr-rag": found["version"],
            "data folder": found["home"],
            "database": f"{found['database']}, schema {found['schema']}",
            "servers": servers or "none",
            "workers": "; ".join(workers) or "none",
            "unfinished jobs": ", ".join(f"{job['kind']} {job['id']} {job['status']}" for job in found["jobs"])
            or "none",
        }
    )
    output.say()
    if not found["collections"]:
        output.say("No collections yet: nvr-rag ingest PATH makes one.")
        return
    of_index = ("index", "serves", "applied", "head", "lag", "disk", "building")
    columns = ("collection", "language", "mode", *DocumentState, *of_index)
    output.table(columns, [row for collection in found["collections"] for row in _rows(collection)])
    failed = [collection for collection in found["collections"] if collection["documents"][DocumentState.FAILED]]
    for collection in failed:
        output.note(
            f"{collection['documents'][DocumentState.FAILED]} documents of {collection['name']} failed; "
            f"nvr-rag documents list --collection {collection['name']} --state failed says why."
        )


def _rows(collection: dict[str, Any]) -> list[list[Any]]:
    """A row for each index of a collection; one without figures of an index when it has none."""
    serving = collection["deployment"] or {}
    states = [collection["documents"][state] for state in DocumentState]
    own = [collection["name"], collection["language"], serving.get("mode"), *states]
    rows = [
        [
            *own,
            index["id"],
            "yes" if index["name"] == serving.get("index") else "no",
            *(index[name] for name in ("applied_seq", "head_seq", "lag")),
            output.size(index["bytes_on_disk"]),
            common.pace_in_words(index["pace"]),
        ]
        for index in collection["indexes"]
    ]
    return rows or [[*own, *[None] * 7]]
