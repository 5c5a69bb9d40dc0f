"""Deployments: how a collection answers. One serves; replacing it is one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from nvr_rag import collections
from nvr_rag.db import tables as t
from nvr_rag.errors import NotFound
from nvr_rag.fusion import FusionSettings
from nvr_rag.types import Mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A deployment and the index it answers from."""

    id: int
    collection_id: int
    index_id: int
    mode: Mode
    fusion: FusionSettings
    state: str  # see the table deployment
    created_at: datetime


def serve(connection: Connection, collection_id: int, index_id: int, mode: Mode, fusion: FusionSettings) -> int:
    """Make a new deployment the serving one, in the caller's transaction; what served before becomes `previous`."""
    connection.execute(
        update(t.Deployment)
        .where(t.Deployment.collection_id == collection_id, t.Deployment.state == "previous")
        .values(state="retired")
    )
    connection.execute(
        update(t.Deployment)
        .where(t.Deployment.collection_id == collection_id, t.Deployment.state == "serving")
        .values(state="previous")
    )
    row = connection.execute(
        insert(t.Deployment)
        .values(collection_id=collection_id, index_id=index_id, mode=mode, fusion=fusion.as_json(), state="serving")
        .returning(t.Deployment.id)
    )
    return int(row.scalar_one())


def serving(connection: Connection, collection: str) -> Deployment:
    """The deployment that answers for a collection. Raises NotFound for an unknown collection or one without any."""
    row = connection.execute(_serving(), {"collection": collection}).first()
    if row is None:
        collections.find(connection, collection)
        raise NotFound(f"nothing serves the collection {collection!r}")
    return _deployment(row)


@cache
def _serving() -> Any:
    """The statement of `serving`, made once: every search asks it."""
    d = t.Deployment
    return (
        select(d.id, d.collection_id, d.index_id, d.mode, d.fusion, d.state, d.created_at)
        .join(t.Collection, t.Collection.id == d.collection_id)
        .where(t.Collection.name == bindparam("collection"), d.state == "serving")
    )


def all_serving(connection: Connection) -> dict[str, Deployment]:
    """The serving deployment of every collection, by the collection's name."""
    d = t.Deployment
    rows = connection.execute(
        select(t.Collection.name, d.id, d.collection_id, d.index_id, d.mode, d.fusion, d.state, d.created_at)
        .join(t.Collection, t.Collection.id == d.collection_id)
        .where(d.state == "serving")
        .order_by(t.Collection.name)
    )
    return {row.name: _deployment(row) for row in rows}


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(
        id=row.id,
        collection_id=row.collection_id,
        index_id=row.index_id,
        mode=Mode(row.mode),
        fusion=FusionSettings(**row.fusion),
        state=row.state,
        created_at=row.created_at,
    )
