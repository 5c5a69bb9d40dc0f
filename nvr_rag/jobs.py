"""Work that one process asks another to do, through the database. At least once: a dead worker's job is taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, insert, or_, select, true, update

from nvr_rag import collections
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import Conflict, NotFound

LEASE_SECONDS = 60.0
MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as it stands."""

    id: int
    kind: str
    payload: Mapping[str, Any]
    state: str  # see the table job
    attempts: int
    progress: Mapping[str, Any]
    result: Mapping[str, Any] | None
    error: str | None
    created_at: datetime
    lease_until: datetime | None  # of a job that is running

    @property
    def lapsed(self) -> bool:
        """Its worker has died, or is out of reach."""
        return self.lease_until is not None and self.lease_until < t.now()

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed")


def enqueue(database: Database, kind: str, payload: Mapping[str, Any]) -> int:
    """Ask for a job; returns its id."""
    with database.write() as connection:
        row = connection.execute(insert(t.Job).values(kind=kind, payload=dict(payload)).returning(t.Job.id))
        return int(row.scalar_one())


def enqueue_alone(database: Database, kind: str, collection: str, payload: Mapping[str, Any]) -> int:
    """Ask for a job of which a collection has one at a time; returns its id. Raises Conflict while there is one."""
    with database.write() as connection:
        collections.find(connection, collection, lock=True)  # two who ask at once, ask one after the other
        there = [job for job in _of_collection(connection, kind, collection) if not job.finished]
        if there:
            raise Conflict(
                f"the collection {collection!r} has a job of this kind already: {kind} job {there[0].id} is "
                f"{there[0].state}; wait until it has finished (nvr-rag status shows how far it is)"
            )
        values = {"kind": kind, "payload": {**payload, "collection": collection}}
        return int(connection.execute(insert(t.Job).values(**values).returning(t.Job.id)).scalar_one())


def of_collection(database: Database, kind: str, collection: str) -> list[Job]:
    """The jobs of a kind of which a collection has one at a time, oldest first."""
    with database.read() as connection:
        return _of_collection(connection, kind, collection)


def requeue(database: Database, job_id: int) -> bool:
    """Let somebody try again: a job that has failed, or one whose worker is known to have died. False for any other."""
    j = t.Job
    with database.write() as connection:
        done = connection.execute(
            update(j)
            .where(j.id == job_id, j.state.in_(("failed", "running")))
            .values(state="queued", lease_until=None, worker=None, attempts=0, error=None)
        )
        return done.rowcount == 1


def release(database: Database, job_id: int, worker: str) -> bool:
    """Put a job back that this worker does not finish, no death of it; False when it was taken away meanwhile."""
    values = {"state": "queued", "lease_until": None, "worker": None, "attempts": t.Job.attempts - 1}
    return _update(database, job_id, worker, values)


def get(database: Database, job_id: int) -> Job:
    """One job. Raises NotFound."""
    with database.read() as connection:
        row = connection.execute(_jobs().where(t.Job.id == job_id)).first()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return Job(**row._mapping)


def unfinished(database: Database) -> list[Job]:
    """Jobs that wait or run, oldest first."""
    with database.read() as connection:
        rows = connection.execute(_jobs().where(t.Job.state.in_(("queued", "running"))).order_by(t.Job.id))
        return [Job(**row._mapping) for row in rows]


def claim(database: Database, worker: str, kinds: Sequence[str], *, job_id: int | None = None) -> Job | None:
    """Take the oldest job that is waiting, or whose worker has died, or only `job_id`; None when there is none.

    A job that has killed its worker MAX_ATTEMPTS times is failed instead of being tried again.
    """
    j = t.Job
    mine = true() if job_id is None else j.id == job_id
    ready = mine & j.kind.in_(kinds) & or_(j.state == "queued", (j.state == "running") & (j.lease_until < t.now()))
    with database.read() as connection:  # idle workers ask often, and must not stand in the way of writers
        if connection.scalar(select(j.id).where(ready).limit(1)) is None:
            return None
    with database.write() as connection:
        connection.execute(
            update(j)
            .where(j.state == "running", j.lease_until < t.now(), j.attempts >= MAX_ATTEMPTS)
            .values(state="failed", lease_until=None, error=f"its worker died {MAX_ATTEMPTS} times")
        )
        found = connection.scalar(select(j.id).where(ready).order_by(j.id).limit(1).with_for_update(skip_locked=True))
        if found is None:
            return None
        connection.execute(
            update(j)
            .where(j.id == found)
            .values(state="running", worker=worker, attempts=j.attempts + 1, lease_until=_lease())
        )
    return get(database, found)


def heartbeat(
    database: Database, job_id: int, worker: str, progress: Mapping[str, Any] | None = None, *, advanced: bool = False
) -> bool:
    """Extend the lease and tell how far it is; False when the job was taken away meanwhile.

    `advanced`: something that need not be done again is done, so workers that died before it no longer count.
    """
    values: dict[str, Any] = {"lease_until": _lease()}
    if progress is not None:
        values["progress"] = dict(progress)
    if advanced:
        values["attempts"] = 1
    return _update(database, job_id, worker, values)


def finish(
    database: Database, job_id: int, worker: str, *, result: Mapping[str, Any] | None, error: str | None
) -> bool:
    """End a job, well (result) or not (error); False when it was taken away meanwhile."""
    state = "failed" if error else "done"
    values = {"state": state, "lease_until": None, "result": dict(result) if result else None, "error": error}
    return _update(database, job_id, worker, values)


def _update(database: Database, job_id: int, worker: str, values: Mapping[str, Any]) -> bool:
    j = t.Job
    with database.write() as connection:
        done = connection.execute(
            update(j).where(j.id == job_id, j.worker == worker, j.state == "running").values(**values)
        )
        return done.rowcount == 1


def _jobs() -> Select[Any]:
    j = t.Job
    return select(
        j.id, j.kind, j.payload, j.state, j.attempts, j.progress, j.result, j.error, j.created_at, j.lease_until
    )


def _of_collection(connection: Connection, kind: str, collection: str) -> list[Job]:
    rows = connection.execute(_jobs().where(t.Job.kind == kind).order_by(t.Job.id))
    found = [Job(**row._mapping) for row in rows]
    return [job for job in found if job.payload.get("collection") == collection]


def _lease() -> Any:
    return t.now() + timedelta(seconds=LEASE_SECONDS)
