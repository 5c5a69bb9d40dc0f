"""Collections: make, look at, change how they answer, delete."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Path
from sqlalchemy import Connection
from starlette.responses import Response

from nvr_rag import collections, deployments, indexes
from nvr_rag.access.callers import Caller
from nvr_rag.api.authorization import AdminCaller, AnyCaller
from nvr_rag.api.dependencies import PartsOf
from nvr_rag.api.limits import CollectionName
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import (
    CollectionChange,
    CollectionDetail,
    CollectionList,
    CollectionSummary,
    Deleted,
    FusionInfo,
    IndexState,
    NewCollection,
    ServingDeployment,
)
from nvr_rag.collections import CollectionInfo
from nvr_rag.errors import Forbidden, InvalidInput
from nvr_rag.workspace import Workspace

router = APIRouter(prefix="/v1/collections", tags=["collections"])

Name = Annotated[CollectionName, Path(description="Name of a collection.")]


@router.get("", summary="List collections", responses=problem_responses(503))
def list_collections(parts: PartsOf, caller: AnyCaller) -> CollectionList:
    """The collections that the caller may know of, by name."""
    with parts.workspace.database.read() as connection:
        infos = collections.all_infos(connection, caller.counts)
    known = [info for info in infos if caller.knows(info.name)]
    return CollectionList(collections=[CollectionSummary(**_summary(info, caller)) for info in known])


@router.post("", status_code=201, summary="Make a collection", responses=problem_responses(409, 422, 503, body=True))
def create_collection(body: NewCollection, parts: PartsOf, caller: AdminCaller, response: Response) -> CollectionDetail:
    """An empty collection, searchable at once."""
    if not caller.knows(body.name):  # said whether or not there is one
        raise Forbidden(f"this key is for the collections {', '.join(sorted(caller.collections or ()))} only")
    try:
        parts.workspace.create_collection(body.name, language=body.language, mode=body.mode)
    except InvalidInput as error:
        raise InvalidInput(str(error), field="name" if error.field == "collection" else error.field) from error
    response.headers["Location"] = f"{router.prefix}/{body.name}"
    return _detail(parts.workspace, body.name, caller)


@router.get("/{name}", summary="Look at a collection", responses=problem_responses(404, 422, 503))
def get_collection(name: Name, parts: PartsOf, caller: AnyCaller) -> CollectionDetail:
    """Its documents by state, the deployment that serves it, and how far each live index is."""
    return _detail(parts.workspace, name, caller)


@router.patch(
    "/{name}", summary="Change how a collection answers", responses=problem_responses(404, 422, 503, body=True)
)
def change_collection(name: Name, body: CollectionChange, parts: PartsOf, caller: AdminCaller) -> CollectionDetail:
    """A new deployment on the same index; the one that served before is kept as the previous one."""
    if body.mode is None and body.fusion is None:
        raise InvalidInput("nothing to change: send mode, fusion or both", field="mode")
    caller.check_collection(name)
    with parts.workspace.database.write() as connection:
        collections.find(connection, name, lock=True)
        now = deployments.serving(connection, name)
        changed = body.fusion.model_dump(exclude_none=True) if body.fusion else {}
        mode, fusion = body.mode or now.mode, replace(now.fusion, **changed)
        if (mode, fusion) != (now.mode, now.fusion):
            deployments.serve(connection, now.collection_id, now.index_id, mode, fusion)
    return _detail(parts.workspace, name, caller)


@router.delete("/{name}", summary="Delete a collection", responses=problem_responses(404, 422, 503))
def delete_collection(name: Name, parts: PartsOf, caller: AdminCaller) -> Deleted:
    """Its documents, queries and feedback go at once; the indexer drops its indexes from the disk a little later."""
    caller.check_collection(name)
    with parts.workspace.database.write() as connection:
        orphans = indexes.all_infos(connection, collections.find(connection, name))
        collections.remove(connection, name)
    for index in orphans:
        parts.workspace.close_index(index.id)
    return Deleted(deleted=[name])


def _detail(workspace: Workspace, name: str, caller: Caller) -> CollectionDetail:
    caller.check_collection(name)
    with workspace.database.read() as connection:
        info = collections.info(connection, name, caller.counts)
        every = indexes.all_infos(connection, info.id)
        deployment = _deployment(connection, name, every)
    states = [
        IndexState(
            name=index.name,
            encoder=index.encoder,
            applied_seq=index.applied_seq if caller.knows_all else None,
            lag=info.head_seq - index.applied_seq if caller.knows_all else None,
        )
        for index in every
        if index.state == "live"
    ]
    return CollectionDetail(**_summary(info, caller), deployment=deployment, indexes=states)


def _deployment(connection: Connection, name: str, every: list[indexes.IndexInfo]) -> ServingDeployment:
    serving = deployments.serving(connection, name)
    return ServingDeployment(
        id=serving.id,
        index=next(index.name for index in every if index.id == serving.index_id),
        mode=serving.mode,
        fusion=FusionInfo(**asdict(serving.fusion)),
        created_at=serving.created_at,
    )


def _summary(info: CollectionInfo, caller: Caller) -> dict[str, Any]:
    return {
        "name": info.name,
        "language": info.language,
        "head_seq": info.head_seq if caller.knows_all else None,
        "created_at": info.created_at,
        "documents": info.documents,
    }
