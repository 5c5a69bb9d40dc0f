"""Work that one process asks another to do, through the database. At least once: a dead worker's job is taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, insert, or_, select, update

from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import NotFound

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

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed")


def enqueue(database: Database, kind: str, payload: Mapping[str, Any]) -> int:
    """Ask for a job; returns its id."""
    with database.write() as connection:
        row = connection.execute(insert(t.Job).values(kind=kind, payload=dict(payload)).returning(t.Job.id))
        return int(row.scalar_one())


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


def claim(database: Database, worker: str, kinds: Sequence[str]) -> Job | None:
    """Take the oldest job that is waiting, or whose worker has died; None when there is none.

    A job that has killed its worker MAX_ATTEMPTS times is failed instead of being tried again.
    """
    j = t.Job
    ready = j.kind.in_(kinds) & or_(j.state == "queued", (j.state == "running") & (j.lease_until < t.now()))
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


def heartbeat(database: Database, job_id: int, worker: str, progress: Mapping[str, Any] | None = None) -> bool:
    """Extend the lease and tell how far it is; False when the job was taken away meanwhile."""
    values: dict[str, Any] = {"lease_until": _lease()}
    if progress is not None:
        values["progress"] = dict(progress)
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
    return select(j.id, j.kind, j.payload, j.state, j.attempts, j.progress, j.result, j.error)


def _lease() -> Any:
    return t.now() + timedelta(seconds=LEASE_SECONDS)
