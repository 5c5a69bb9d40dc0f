"""Deployments: how a collection answers. One serves; replacing it is one transaction, and so is going back.

Every function works in the caller's transaction. Whoever changes what serves locks the collection's row first, so that
two changes happen one after the other. The states and their transitions stand at the table `deployment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, update

from nvr_rag import collections, documents
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, NotFound
from nvr_rag.fusion import FusionSettings
from nvr_rag.types import Mode

WAITING = ("candidate", "prepared")  # may serve one day
READY = ("serving", "previous")  # every API process has these loaded
SWITCHABLE = ("prepared", "previous")  # can serve from one moment to the next
OTHER_INDEXES_KEPT = 1  # beside the serving deployment's own


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
    stopped_at: datetime | None  # when it last stopped serving; None while it serves, and before it did
    run: str | None  # the lap that made it


def serve(connection: Connection, collection_id: int, index_id: int, mode: Mode, fusion: FusionSettings) -> int:
    """Make a new deployment the serving one; what served before becomes `previous`."""
    _stop_serving(connection, collection_id)
    deployment_id = _insert(connection, collection_id, index_id, (mode, fusion), "serving", None)
    _release(connection, collection_id)
    return deployment_id


def propose(
    connection: Connection,
    collection_id: int,
    index_id: int,
    mode: Mode,
    fusion: FusionSettings,
    *,
    run: str | None = None,
) -> int:
    """Add a candidate; `run` names the lap that made it, which makes at most one."""
    return _insert(connection, collection_id, index_id, (mode, fusion), "candidate", run)


def adjust(connection: Connection, deployment_id: int, mode: Mode, fusion: FusionSettings) -> None:
    """Change how a candidate would answer. Raises Conflict once it is more than a candidate."""
    _move(connection, deployment_id, ("candidate",), mode=mode, fusion=fusion.as_json())


def prepare(connection: Connection, deployment_id: int) -> None:
    """Ask every API process to load a candidate. Raises Conflict unless it is one."""
    _move(connection, deployment_id, WAITING, state="prepared")


def unprepare(connection: Connection, deployment_id: int) -> None:
    """Make a prepared deployment a candidate again; any other stays what it is."""
    d = t.Deployment
    connection.execute(update(d).where(d.id == deployment_id, d.state == "prepared").values(state="candidate"))


def reject(connection: Connection, deployment_id: int) -> None:
    """Give up a deployment that never served; its index retires unless another one needs it."""
    _end(connection, deployment_id, WAITING, "rejected")


def retire(connection: Connection, deployment_id: int) -> None:
    """Let go of a previous deployment: it can no longer be gone back to."""
    _end(connection, deployment_id, ("previous",), "retired")


def switch(connection: Connection, deployment_id: int) -> Deployment:
    """Make a prepared or previous deployment the serving one; returns what served before, now `previous`.

    Raises Conflict when it is in another state, or when its index lags further than the serving one's.
    """
    _lock(connection, get(connection, deployment_id).collection_id)
    wanted = get(connection, deployment_id)  # as it is now that nobody else can change what serves
    if wanted.state not in SWITCHABLE:
        raise _wrong_state(wanted, SWITCHABLE)
    now = _serving_of(connection, wanted.collection_id)
    cut = _chunking(connection, now.index_id)
    lag = _applied(connection, now.index_id) - _applied(connection, wanted.index_id)
    if lag > 0:
        raise Conflict(
            f"the index of deployment {deployment_id} is {lag} changes behind the one that serves; wait until it has "
            f"caught up (nvr-rag index list shows it), or run nvr-rag index build --resume {wanted.index_id}"
        )
    _stop_serving(connection, wanted.collection_id)
    _move(connection, deployment_id, SWITCHABLE, state="serving", stopped_at=None)
    if _chunking(connection, wanted.index_id) != cut:
        documents.restate(connection, wanted.collection_id)
    _release(connection, wanted.collection_id)
    return get(connection, now.id)


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
    return (
        _select()
        .join(t.Collection, t.Collection.id == t.Deployment.collection_id)
        .where(t.Collection.name == bindparam("collection"), t.Deployment.state == "serving")
    )


def all_serving(connection: Connection) -> dict[str, Deployment]:
    """The serving deployment of every collection, by the collection's name."""
    rows = connection.execute(
        _select()
        .add_columns(t.Collection.name)
        .join(t.Collection, t.Collection.id == t.Deployment.collection_id)
        .where(t.Deployment.state == "serving")
        .order_by(t.Collection.name)
    )
    return {row.name: _deployment(row) for row in rows}


def get(connection: Connection, deployment_id: int) -> Deployment:
    """One deployment. Raises NotFound."""
    row = connection.execute(_select().where(t.Deployment.id == deployment_id)).first()
    if row is None:
        raise NotFound(f"no deployment {deployment_id}; nvr-rag deploy list shows all of them")
    return _deployment(row)


def of_run(connection: Connection, run: str) -> Deployment | None:
    """The deployment that a lap has made."""
    row = connection.execute(_select().where(t.Deployment.run == run)).first()
    return _deployment(row) if row is not None else None


def all_of(connection: Connection, collection_id: int, states: Sequence[str] | None = None) -> list[Deployment]:
    """The deployments of a collection, in any state or in one of these, oldest first."""
    statement = _select().where(t.Deployment.collection_id == collection_id).order_by(t.Deployment.id)
    if states is not None:
        statement = statement.where(t.Deployment.state.in_(states))
    return [_deployment(row) for row in connection.execute(statement)]


def to_load(connection: Connection) -> list[Deployment]:
    """What an API process keeps loaded: what serves, what did before, and what is about to."""
    statement = _select().where(t.Deployment.state.in_(("prepared", *READY))).order_by(t.Deployment.id)
    return [_deployment(row) for row in connection.execute(statement)]


def last(connection: Connection, collection_id: int) -> Deployment:
    """The deployment that served before the serving one. Raises NotFound when there is none to go back to."""
    kept = _newest_first(connection, collection_id)
    if not kept:
        raise NotFound("there is no previous deployment to go back to")
    return kept[0]


def _release(connection: Connection, collection_id: int) -> None:
    """Retire what is not kept ready any more: of each index only the newest previous deployment is, and of indexes
    beside the serving one only the newest; an index goes with its last deployment."""
    now = [one.index_id for one in all_of(connection, collection_id, ("serving",))]
    seen: set[int] = set()
    for deployment in _newest_first(connection, collection_id):
        others = seen - set(now)
        full = deployment.index_id not in (*now, *others) and len(others) >= OTHER_INDEXES_KEPT
        if deployment.index_id in seen or full:
            _move(connection, deployment.id, ("previous",), state="retired")
        seen |= set() if full else {deployment.index_id}
    needed = select(t.Deployment.index_id).where(t.Deployment.state.in_((*WAITING, *READY)))
    used = select(t.Deployment.index_id).where(t.Deployment.collection_id == collection_id)
    i = t.SearchIndex
    connection.execute(update(i).where(i.id.in_(used), i.id.not_in(needed), i.state == "live").values(state="retired"))


def _newest_first(connection: Connection, collection_id: int) -> list[Deployment]:
    """Previous deployments, the one that served last first."""
    found = all_of(connection, collection_id, ("previous",))
    return sorted(found, key=lambda one: (one.stopped_at or one.created_at, one.id), reverse=True)


def _insert(
    connection: Connection,
    collection_id: int,
    index_id: int,
    how: tuple[Mode, FusionSettings],
    state: str,
    run: str | None,
) -> int:
    mode, fusion = how
    row = connection.execute(
        insert(t.Deployment)
        .values(
            collection_id=collection_id, index_id=index_id, mode=mode, fusion=fusion.as_json(), state=state, run=run
        )
        .returning(t.Deployment.id)
    )
    return int(row.scalar_one())


def _stop_serving(connection: Connection, collection_id: int) -> None:
    d = t.Deployment
    connection.execute(
        update(d)
        .where(d.collection_id == collection_id, d.state == "serving")
        .values(state="previous", stopped_at=t.now())
    )


def _move(connection: Connection, deployment_id: int, states: Sequence[str], **values: Any) -> None:
    """Change a deployment that is in one of these states. Raises Conflict for one in another, NotFound."""
    d = t.Deployment
    done = connection.execute(update(d).where(d.id == deployment_id, d.state.in_(states)).values(**values))
    if done.rowcount != 1:
        raise _wrong_state(get(connection, deployment_id), states)


def _wrong_state(deployment: Deployment, states: Sequence[str]) -> Conflict:
    return Conflict(f"deployment {deployment.id} is {deployment.state}; this needs one that is {' or '.join(states)}")


def _end(connection: Connection, deployment_id: int, states: Sequence[str], state: str) -> None:
    """Move a deployment to a state that it does not leave, and its index out of the way."""
    collection_id = get(connection, deployment_id).collection_id
    _lock(connection, collection_id)
    _move(connection, deployment_id, states, state=state)
    _release(connection, collection_id)


def _lock(connection: Connection, collection_id: int) -> None:
    connection.execute(select(t.Collection.id).where(t.Collection.id == collection_id).with_for_update())


def _serving_of(connection: Connection, collection_id: int) -> Deployment:
    found = all_of(connection, collection_id, ("serving",))
    if not found:
        raise NotFound("nothing serves the collection")
    return found[0]


def _applied(connection: Connection, index_id: int) -> int:
    return int(connection.scalars(select(t.SearchIndex.applied_seq).where(t.SearchIndex.id == index_id)).one())


def _chunking(connection: Connection, index_id: int) -> int:
    return int(connection.scalars(select(t.SearchIndex.chunking_id).where(t.SearchIndex.id == index_id)).one())


def _select() -> Select[Any]:
    d = t.Deployment
    return select(d.id, d.collection_id, d.index_id, d.mode, d.fusion, d.state, d.created_at, d.stopped_at, d.run)


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(
        id=row.id,
        collection_id=row.collection_id,
        index_id=row.index_id,
        mode=Mode(row.mode),
        fusion=FusionSettings(**row.fusion),
        state=row.state,
        created_at=row.created_at,
        stopped_at=row.stopped_at,
        run=row.run,
    )
