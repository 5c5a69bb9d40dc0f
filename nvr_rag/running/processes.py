"""Which servers and workers run on this data: heartbeat rows, so that a command finds the server and its address, sees
which deployments it has loaded, and knows whether anybody takes a job."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update

from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import StoreBusy
from nvr_rag.ids import new_id

SERVER, WORKER = "serve", "worker"
HEARTBEAT_SECONDS = 2.0
DEAD_AFTER_SECONDS = 15.0
FORGOTTEN_AFTER_SECONDS = 7 * 86400.0  # not sooner: a machine that slept wakes up and goes on


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessInfo:
    """A process that was alive a moment ago."""

    id: str
    kind: str
    pid: int
    host: str
    url: str | None
    heartbeat_at: datetime
    prepared: Mapping[str, str | None]  # deployment id -> None once loaded, or why it cannot be
    job_kinds: Sequence[str] | None  # that it takes; None = a server of the release before, which does not say


def announce(database: Database, kind: str, url: str | None = None, *, job_kinds: Sequence[str] | None = None) -> str:
    """Add a row for this process, clear those of the long dead, and return the id."""
    process_id = new_id()
    with database.write() as connection:
        moment = clock.now(connection)
        long_dead = moment - timedelta(seconds=FORGOTTEN_AFTER_SECONDS)
        connection.execute(delete(t.Process).where(t.Process.heartbeat_at < long_dead))
        values = {"id": process_id, "kind": kind, "url": url, "heartbeat_at": moment}
        kinds = None if job_kinds is None else list(job_kinds)
        connection.execute(
            insert(t.Process).values(**values, job_kinds=kinds, pid=os.getpid(), host=socket.gethostname())
        )
    return process_id


def beat(database: Database, process_id: str, prepared: Mapping[int, str | None] | None = None) -> None:
    """Say that the process is alive, and, if given, which deployments it has loaded."""
    values: dict[str, Any] = {}
    if prepared is not None:
        values["prepared"] = {str(key): error for key, error in prepared.items()}
    with database.write(durable=False) as connection:
        values["heartbeat_at"] = clock.now(connection)
        connection.execute(update(t.Process).where(t.Process.id == process_id).values(**values))


def withdraw(database: Database, process_id: str) -> None:
    """Remove the row: the process ends in order."""
    with database.write(durable=False) as connection:
        connection.execute(delete(t.Process).where(t.Process.id == process_id))


def alive(database: Database, kind: str) -> list[ProcessInfo]:
    """Processes of a kind whose heartbeat is fresh, latest first."""
    p = t.Process
    with database.read() as connection:
        rows = connection.execute(
            select(*p.__table__.c)
            .where(p.kind == kind, p.heartbeat_at > clock.now(connection) - timedelta(seconds=DEAD_AFTER_SECONDS))
            .order_by(p.heartbeat_at.desc())
        )
        return [ProcessInfo(**row._mapping) for row in rows]


def taking(database: Database, job_kind: str) -> list[ProcessInfo]:
    """Servers and workers that are alive and take jobs of a kind; those that do not say count among them."""
    found = [*alive(database, SERVER), *alive(database, WORKER)]
    return [one for one in found if one.job_kinds is None or job_kind in one.job_kinds]


def busy(database: Database, error: StoreBusy) -> StoreBusy:
    """The same error in words that say which process it is about."""
    found = [*alive(database, SERVER), *alive(database, WORKER)]
    if found:
        owner, kind = found[0], "server" if found[0].kind == SERVER else "worker"
        who = f"the {kind} with process id {owner.pid} on {owner.host}" + (f" ({owner.url})" if owner.url else "")
        return StoreBusy(f"{error}: probably in {who}, which did not answer; try again, or stop it")
    return StoreBusy(
        f"{error}. No server is running on this data folder, so another nvr-rag command is at work; try again when it "
        "has finished"
    )
