"""Work that one process asks another to do, through the database. At least once: a dead worker's job is taken over.

What is asked for, and what has become of it, enters and leaves; who does it, and how, is the business of
nvr_rag.running.working. A worker keeps the lease of its job by heartbeats, and learns from them that it has lost it, or
is to stop. All moments are those of the one clock of nvr_rag.db.clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select, true, update

from nvr_rag import collections, retries
from nvr_rag.access.callers import Caller
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import Conflict, JobThere
from nvr_rag.job_rows import COLUMNS, ENDED, about, as_job, one, read
from nvr_rag.job_rows import Job as Job
from nvr_rag.job_rows import Status as Status
from nvr_rag.retries import RetryDecision
from nvr_rag.storable import storable

LEASE_SECONDS = 60.0
MAX_ATTEMPTS = retries.JOBS.attempts  # after which a job whose worker dies is not taken over any more
MAX_FAILURES = 10  # remembered of a job
MAX_WORDS = 2000  # characters of an error that are kept
CANCELLED = "cancelled"
DIED = "its worker died"


class Hold(Enum):
    """What a heartbeat tells a worker of its job."""

    MINE = "goes on"
    LOST = "was taken away, or has ended"  # whatever is still written about it changes nothing
    CANCEL = "is to stop"  # somebody has cancelled it


def enqueue(database: Database, kind: str, payload: Mapping[str, Any], *, due_at: datetime | None = None) -> int:
    """Ask for a job, to be done at once or not before `due_at`; returns its id."""
    with database.write() as connection:
        return add(connection, kind, payload, due_at=due_at)


def add(
    connection: Connection,
    kind: str,
    payload: Mapping[str, Any],
    *,
    due_at: datetime | None = None,
    by: Caller | None = None,
) -> int:
    """The same inside a transaction: the job is there if and only if that commits. `by` asks for it over HTTP."""
    values: dict[str, Any] = {"kind": kind, "payload": dict(payload), "due_at": due_at}
    if by is not None and by.key_id is not None:
        values |= {"key_id": by.key_id, "asker": by.asker}
    return int(connection.execute(insert(t.Job).values(**values).returning(t.Job.id)).scalar_one())


def enqueue_alone(
    database: Database, kind: str, collection: str, payload: Mapping[str, Any], *, by: Caller | None = None
) -> int:
    """Ask for a job of which a collection has one at a time; returns its id. Raises JobThere while there is one."""
    with database.write() as connection:
        return add_alone(connection, kind, collection, payload, by=by)


def add_alone(
    connection: Connection, kind: str, collection: str, payload: Mapping[str, Any], *, by: Caller | None = None
) -> int:
    """The same inside a transaction.

    A payload with a `source`, a path, is about that part of the collection only: jobs whose sources do not lie in each
    other may be there at once. Raises NotFound, JobThere.
    """
    collections.find(connection, collection, lock=True)  # two who ask at once, ask one after the other
    _check_alone(connection, kind, collection, payload.get("source"))
    return add(connection, kind, {**payload, "collection": collection}, by=by)


def get(database: Database, job_id: int) -> Job:
    """One job. Raises NotFound."""
    with database.read() as connection:
        return one(connection, select(*COLUMNS), job_id)


def unfinished(database: Database) -> list[Job]:
    """Jobs that wait or run, oldest first."""
    with database.read() as connection:
        return read(connection, select(*COLUMNS).where(t.Job.state.not_in(ENDED)).order_by(t.Job.id))


def of_collection(database: Database, kind: str, collection: str) -> list[Job]:
    """The jobs of a kind that are about a collection, oldest first."""
    with database.read() as connection:
        return read(connection, about(kind, collection).order_by(t.Job.id))


def listed(
    database: Database,
    *,
    kind: str | None = None,
    status: Status | None = None,
    collection: str | None = None,
    limit: int = 50,
) -> list[Job]:
    """At most `limit` jobs, newest first; of one kind, status or collection where that is given."""
    j = t.Job
    statement = select(*COLUMNS).order_by(j.id.desc()).limit(limit)
    if kind is not None:
        statement = statement.where(j.kind == kind)
    if collection is not None:
        statement = statement.where(j.payload["collection"].as_string() == collection)
    if status in (Status.CANCELLING, Status.CANCELLED):
        state = "running" if status is Status.CANCELLING else "failed"
        statement = statement.where(j.state == state, j.cancel_at.is_not(None))
    elif status is not None:
        statement = statement.where(j.state == status.value)
        if status in (Status.RUNNING, Status.FAILED):
            statement = statement.where(j.cancel_at.is_(None))
    with database.read() as connection:
        return read(connection, statement)


def claim(
    database: Database, worker: str, kinds: Sequence[str], *, job_id: int | None = None, skip: Collection[int] = ()
) -> Job | None:
    """Take the oldest job that is due, or whose worker has died, but none of `skip`; None when there is none.

    With `job_id` only that one, due or not. A job whose worker has died in its last attempt, or after it was cancelled,
    is ended instead of being tried again. Workers on PostgreSQL pass over what another one is just taking.
    """
    with database.read() as connection:  # idle workers ask often, and must not stand in the way of writers
        ready = _ready(clock.now(connection), kinds, job_id, skip)
        if connection.scalar(select(t.Job.id).where(ready).limit(1)) is None:
            return None
    with database.write() as connection:
        moment = clock.now(connection)
        ready = _ready(moment, kinds, job_id, skip)
        oldest = select(*COLUMNS).where(ready).order_by(t.Job.id).limit(1).with_for_update(skip_locked=True)
        while found := read(connection, oldest):
            taken = _take(connection, found[0], worker, moment)
            if taken is not None:
                return taken
        return None


def heartbeat(
    database: Database, job_id: int, worker: str, progress: Mapping[str, Any] | None = None, *, advanced: bool = False
) -> Hold:
    """Extend the lease, tell how far it is, and learn whether to go on.

    `advanced`: something that need not be done again is done, so attempts that ended before it no longer count.
    """
    j = t.Job
    values: dict[str, Any] = {} if progress is None else {"progress": dict(progress)}
    if advanced:
        values["attempts"] = 1
    with database.write(durable=False) as connection:
        values["lease_until"] = clock.now(connection) + timedelta(seconds=LEASE_SECONDS)
        row = connection.execute(
            update(j).where(*_held(job_id, worker)).values(**values).returning(j.cancel_at)
        ).first()
    if row is None:
        return Hold.LOST
    return Hold.MINE if row.cancel_at is None else Hold.CANCEL


def finish(
    database: Database, job_id: int, worker: str, *, result: Mapping[str, Any] | None, error: str | None
) -> bool:
    """End a job, well (result) or not (error); False when it was taken away meanwhile."""
    if error is not None:
        return fail(database, job_id, worker, RetryDecision(again=False, delay_seconds=0.0, words=error))
    with database.write() as connection:
        values = _ending(clock.now(connection), "done", result=dict(result) if result is not None else None)
        return _update(connection, job_id, worker, values)


def fail(database: Database, job_id: int, worker: str, decision: RetryDecision) -> bool:
    """Note that an attempt has failed, and queue the job again or end it, as was decided; one that was cancelled ends.

    False when it was taken away meanwhile.
    """
    with database.write() as connection:
        job = _mine(connection, job_id, worker)
        if job is None:
            return False
        moment = clock.now(connection)
        failures = _with_failure(job, moment, decision.words, inside=decision.inside)
        if job.cancel_at is not None:
            values = _ending(moment, "failed", error=CANCELLED)
        elif decision.again:
            values = _waiting(due_at=moment + timedelta(seconds=decision.delay_seconds))
        else:
            values = _ending(moment, "failed", error=_kept(decision.words))
        return _update(connection, job_id, worker, {**values, "failures": failures})


def release(database: Database, job_id: int, worker: str, *, reason: str | None = None) -> bool:
    """Put a job back that this worker does not finish, as if it had not begun; one that was cancelled ends instead.

    `reason` is remembered among its failures, unless it is the last one already. False when the job was taken away
    meanwhile.
    """
    with database.write() as connection:
        job = _mine(connection, job_id, worker)
        if job is None:
            return False
        moment = clock.now(connection)
        cancelled = job.cancel_at is not None
        values = (
            _ending(moment, "failed", error=CANCELLED) if cancelled else _waiting(attempts=max(0, job.attempts - 1))
        )
        if reason is not None and (not job.failures or job.failures[-1]["error"] != _kept(reason)):
            values["failures"] = _with_failure(job, moment, reason)
        return _update(connection, job_id, worker, values)


def cancel(database: Database, job_id: int) -> Job:
    """End a job that waits, or whose worker has died, at once; ask the worker of one that runs to stop. Doing it again
    is fine. Raises NotFound, Conflict for one that has ended otherwise."""
    with database.write() as connection:
        job = one(connection, select(*COLUMNS).with_for_update(), job_id)
        if job.finished and job.status is not Status.CANCELLED:
            raise Conflict(f"{job.kind} job {job_id} has ended already ({job.status}): there is nothing to cancel")
        moment = clock.now(connection)
        if job.state == "queued" or job.lapsed:
            values = _ending(moment, "failed", error=CANCELLED)
            connection.execute(update(t.Job).where(t.Job.id == job_id).values(cancel_at=moment, **values))
        elif job.cancel_at is None:
            connection.execute(update(t.Job).where(t.Job.id == job_id).values(cancel_at=moment))
        return one(connection, select(*COLUMNS), job_id)


def retry(database: Database, job_id: int) -> Job:
    """Queue a job again that has failed or was cancelled, with all its attempts before it.

    Raises NotFound, Conflict for any other, and while its collection has another one of its kind.
    """
    with database.write() as connection:
        job = one(connection, select(*COLUMNS).with_for_update(), job_id)
        if job.state != "failed":
            what = "it has ended well" if job.state == "done" else "it goes on by itself; nvr-rag jobs cancel stops it"
            raise Conflict(f"{job.kind} job {job_id} is {job.status}: {what}; only a failed one can be tried again")
        if job.collection is not None:
            collections.find(connection, job.collection, lock=True)
            _check_alone(connection, job.kind, job.collection, job.payload.get("source"))
        _requeue(connection, job_id)
        return one(connection, select(*COLUMNS), job_id)


def requeue(database: Database, job_id: int) -> bool:
    """Let somebody try again: a job that has failed, or one whose worker is known to have died. False for any other."""
    with database.write() as connection:
        return _requeue(connection, job_id)


def forget_finished(database: Database, older_than: timedelta) -> int:
    """Delete jobs that ended longer ago than that; how many there were. The newest one of a kind and collection stays:
    what it has left is cleared away by the one after it."""
    j, named = t.Job, t.Job.payload["collection"].as_string()
    newest = select(func.max(j.id)).group_by(j.kind, named)
    with database.write() as connection:
        before = clock.now(connection) - older_than
        old = j.state.in_(ENDED) & (func.coalesce(j.finished_at, j.created_at) < before)
        return connection.execute(delete(j).where(old, j.id.not_in(newest))).rowcount


def _ready(moment: datetime, kinds: Sequence[str], job_id: int | None, skip: Collection[int]) -> Any:
    j = t.Job
    due = true() if job_id is not None else or_(j.due_at.is_(None), j.due_at <= moment)
    free = or_((j.state == "queued") & due, (j.state == "running") & (j.lease_until < moment))
    wanted = j.id.not_in(sorted(skip)) if job_id is None else j.id == job_id
    return j.state.in_(("queued", "running")) & j.kind.in_(kinds) & free & wanted  # the states by themselves: the index


def _take(connection: Connection, job: Job, worker: str, moment: datetime) -> Job | None:
    """Give a free job to a worker; None when it has come to its end instead."""
    values: dict[str, Any] = {}
    if job.state == "running":
        values["failures"] = _with_failure(job, moment, DIED)
    if job.state == "running" and (job.cancel_at is not None or job.attempts >= MAX_ATTEMPTS):
        error = f"{DIED} (given up after {job.attempts} attempts)" if job.cancel_at is None else CANCELLED
        connection.execute(
            update(t.Job).where(t.Job.id == job.id).values(**_ending(moment, "failed", error=error), **values)
        )
        return None
    values |= {"state": "running", "worker": worker, "attempts": job.attempts + 1, "due_at": None}
    values["lease_until"] = moment + timedelta(seconds=LEASE_SECONDS)
    row = connection.execute(update(t.Job).where(t.Job.id == job.id).values(**values).returning(*COLUMNS)).one()
    return as_job(row, moment)


def _ending(moment: datetime, state: str, **values: Any) -> dict[str, Any]:
    return {"state": state, "lease_until": None, "due_at": None, "finished_at": moment, **values}


def _waiting(**values: Any) -> dict[str, Any]:
    return {"state": "queued", "lease_until": None, "worker": None, **values}


def _requeue(connection: Connection, job_id: int) -> bool:
    fresh = {"attempts": 0, "error": None, "due_at": None, "cancel_at": None, "finished_at": None}
    there = (t.Job.id == job_id) & t.Job.state.in_(("failed", "running"))
    return connection.execute(update(t.Job).where(there).values(**_waiting(**fresh))).rowcount == 1


def _with_failure(job: Job, moment: datetime, words: str, *, inside: bool = True) -> list[Any]:
    at = moment.isoformat(timespec="seconds")
    failure = {"attempt": job.attempts, "at": at, "error": _kept(words), "inside": inside}
    return [*job.failures, failure][-MAX_FAILURES:]


def _kept(words: str) -> str:
    return storable(words)[:MAX_WORDS]


def _held(job_id: int, worker: str) -> tuple[Any, ...]:
    return t.Job.id == job_id, t.Job.worker == worker, t.Job.state == "running"


def _mine(connection: Connection, job_id: int, worker: str) -> Job | None:
    """A worker's job, locked; None when it is not its own any more."""
    found = read(connection, select(*COLUMNS).where(*_held(job_id, worker)).with_for_update())
    return found[0] if found else None


def _update(connection: Connection, job_id: int, worker: str, values: Mapping[str, Any]) -> bool:
    return connection.execute(update(t.Job).where(*_held(job_id, worker)).values(**values)).rowcount == 1


def _check_alone(connection: Connection, kind: str, collection: str, source: object) -> None:
    """Raise JobThere while a collection has an unfinished job of a kind about the same source."""
    unfinished = read(connection, about(kind, collection).where(t.Job.state.not_in(ENDED)).order_by(t.Job.id))
    there = [job for job in unfinished if _overlap(source, job.payload.get("source"))]
    if there:
        already = f"the collection {collection!r} has a job of this kind already"
        raise JobThere(
            f"{already}: {kind} job {there[0].id} is "
            f"{there[0].status}; wait until it has finished (nvr-rag jobs show {there[0].id} says how far it is), or "
            f"cancel it (nvr-rag jobs cancel {there[0].id})",
            job_id=there[0].id,
            without_job=f"{already}, one at a time; ask again later",
        )


def _overlap(one: object, other: object) -> bool:
    """Whether two sources are the same, or one lies in the other; no source is the whole collection."""
    if not isinstance(one, str) or not isinstance(other, str):
        return True
    first, second = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return first.startswith(second) or second.startswith(first)
