"""What the database knows of the work: one bounded look at it in, figures out. Knows nothing of Prometheus.

Workers have no address that could be asked: what they do is seen here, in their jobs, in how far the indexes are, and
in what they note of a build.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, or_, select, text

from nvr_rag import deployments
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import NvrError
from nvr_rag.running.processes import DEAD_AFTER_SECONDS
from nvr_rag.upkeep.pace import pace

PATIENCE_SECONDS = 2.0  # that a scrape waits for the database
_COUNTED = ("queued", "running", "failed")  # states of jobs: those that ended well are many, and of no concern

Samples = Sequence[tuple[tuple[str, ...], float]]  # labels, and a number

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What one look has found."""

    processes: Samples  # (kind)
    jobs: Samples  # (kind, state)
    oldest: Samples  # (kind): seconds
    lags: Samples  # (collection, index): changes
    paces: Samples  # (collection, index): chunks a second
    build_seconds: Samples  # (collection, index, stage)
    serving: Sequence[tuple[str, ...]]  # (collection, deployment, index, encoder, mode)


class Stored:
    """Looks, and does not wait long: a database that hangs must not take the other figures with it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._door = threading.Lock()
        self._look: _Look | None = None  # the last one; it may still be at it

    def figures(self) -> Figures | None:
        """None when the database does not answer in time."""
        with self._door:
            look = self._look
            if look is None or not look.is_alive():
                look = self._look = _Look(self._database)
                look.start()
        look.join(PATIENCE_SECONDS)
        return None if look.is_alive() else look.found


class _Look(threading.Thread):
    """One look; several who ask at once share it."""

    def __init__(self, database: Database) -> None:
        super().__init__(name="metrics", daemon=True)
        self._database = database
        self.found: Figures | None = None

    def run(self) -> None:
        try:
            with self._database.read() as connection:
                self.found = look(connection)
        except NvrError as error:
            log.warning("the metrics lack what the database knows: %s", error)


def look(connection: Connection) -> Figures:
    """The figures as they are now. Raises DatabaseUnavailable."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL statement_timeout = {int(PATIENCE_SECONDS * 1000)}"))
    i = t.SearchIndex
    live = {row.id: row for row in connection.execute(select(i.id, i.name, i.encoder).where(i.state == "live"))}
    lags, paces, spent = _indexes(connection)
    return Figures(
        processes=_processes(connection),
        jobs=_jobs(connection),
        oldest=_oldest(connection),
        lags=lags,
        paces=paces,
        build_seconds=spent,
        serving=[
            (collection, str(one.id), live[one.index_id].name, live[one.index_id].encoder, str(one.mode))
            for collection, one in deployments.all_serving(connection).items()
        ],
    )


def _processes(connection: Connection) -> Samples:
    p = t.Process
    fresh = clock.now(connection) - timedelta(seconds=DEAD_AFTER_SECONDS)
    rows = connection.execute(select(p.kind, func.count()).where(p.heartbeat_at > fresh).group_by(p.kind))
    return sorted(((kind,), float(count)) for kind, count in rows)


def _jobs(connection: Connection) -> Samples:
    j = t.Job
    rows = connection.execute(
        select(j.kind, j.state, func.count()).where(j.state.in_(_COUNTED)).group_by(j.kind, j.state)
    )
    return sorted(((kind, state), float(count)) for kind, state, count in rows)


def _oldest(connection: Connection) -> Samples:
    j, now = t.Job, clock.now(connection)
    due = or_(j.due_at.is_(None), j.due_at <= now)
    since: Any = func.min(func.coalesce(j.due_at, j.created_at), type_=t.Job.created_at.type)
    rows = connection.execute(select(j.kind, since).where(j.state == "queued", due).group_by(j.kind))
    return sorted(((kind,), max(0.0, (now - begun).total_seconds())) for kind, begun in rows)


def _indexes(connection: Connection) -> tuple[Samples, Samples, Samples]:
    """Of every live index: how far it is behind, how fast it is brought up, and what took how long."""
    i, c = t.SearchIndex, t.Collection
    rows = connection.execute(
        select(c.name.label("collection"), i.name, i.applied_seq, i.progress, (c.next_seq - 1).label("head"))
        .join(c, c.id == i.collection_id)
        .where(i.state == "live")
        .order_by(c.name, i.id)
    ).all()
    lags = [((row.collection, row.name), float(row.head - row.applied_seq)) for row in rows]
    going = [(row, pace(row.progress, row.applied_seq, row.head)) for row in rows]
    paces = [((row.collection, row.name), found.chunks_per_second) for row, found in going if found is not None]
    spent = [
        ((row.collection, row.name, stage), float(seconds))
        for row in rows
        for stage, seconds in (row.progress or {}).get("seconds", {}).items()
    ]
    return lags, paces, spent
