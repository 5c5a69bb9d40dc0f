"""Jobs as they stand in the database: rows enter, records leave. What becomes of them is nvr_rag.jobs' business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.errors import NotFound

ENDED = ("done", "failed")  # states


class Status(StrEnum):
    """How a job stands, for people: what the table's states say, and whether it was cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"  # its worker is to stop, and has not done so yet
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as it stands."""

    id: int
    kind: str
    payload: Mapping[str, Any]
    state: str  # see the table job
    worker: str | None  # id of the one that has it, or had it last
    attempts: int  # begun since it was asked for; those that were put back do not count
    progress: Mapping[str, Any]
    result: Mapping[str, Any] | None
    error: str | None
    created_at: datetime
    due_at: datetime | None  # not before
    cancel_at: datetime | None  # when somebody asked to cancel it
    finished_at: datetime | None
    lease_until: datetime | None  # of a job that is running
    key_id: str | None  # of the API key that asked for it; None = nobody's
    asker: str | None  # who asked with it; see nvr_rag.access.callers
    failures: Sequence[Mapping[str, Any]]  # {"attempt", "at", "error", "inside"}, the last few, oldest first
    lapsed: bool  # it is running, and its worker has died or is out of reach

    @property
    def finished(self) -> bool:
        return self.state in ENDED

    @property
    def error_is_inside(self) -> bool:
        """Whether the words of its error are for who manages the server; the release before did not write it down."""
        if self.error is None or self.status is Status.CANCELLED:
            return False
        return not self.failures or bool(self.failures[-1].get("inside", True))

    @property
    def status(self) -> Status:
        if self.cancel_at is not None and self.state in ("running", "failed"):
            return Status.CANCELLING if self.state == "running" else Status.CANCELLED
        return Status(self.state)

    @property
    def collection(self) -> str | None:
        """The collection that it is about, where its payload names one."""
        named = self.payload.get("collection")
        return named if isinstance(named, str) else None


COLUMNS = [getattr(t.Job, field.name) for field in fields(Job) if field.name != "lapsed"]


def read(connection: Connection, statement: Select[Any]) -> list[Job]:
    """The jobs of a statement that selects COLUMNS."""
    rows = connection.execute(statement).all()
    moment = clock.now(connection) if rows else None
    return [as_job(row, moment) for row in rows]


def one(connection: Connection, statement: Select[Any], job_id: int) -> Job:
    """The same for one job. Raises NotFound."""
    found = read(connection, statement.where(t.Job.id == job_id))
    if not found:
        raise missing(job_id)
    return found[0]


def missing(job_id: int) -> NotFound:
    """What whoever asks for a job that is not there, or is not for him, is told."""
    return NotFound(f"there is no job {job_id}; nvr-rag jobs list shows those that there are")


def about(kind: str, collection: str) -> Select[Any]:
    """The jobs of a kind that are about a collection."""
    return select(*COLUMNS).where(t.Job.kind == kind, t.Job.payload["collection"].as_string() == collection)


def as_job(row: Row[Any], moment: datetime | None) -> Job:
    """A row with COLUMNS, at a moment."""
    values = row._asdict()
    lapsed = values["lease_until"] is not None and moment is not None and values["lease_until"] < moment
    return Job(**values, lapsed=lapsed)
