"""What was asked, what was shown, and what people said about it.

Queries are written by one thread in groups: a caller waits for its row, and rows that come together share a commit.
Feedback is durable against a power cut before it is acknowledged; a query row is durable against a killed process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select

from nvr_rag.db import tables as t
from nvr_rag.db.session import Database, insert_or_update
from nvr_rag.errors import DatabaseUnavailable, InvalidInput, NotFound
from nvr_rag.ids import new_id
from nvr_rag.observing import context
from nvr_rag.observing.meter import Meter
from nvr_rag.storable import storable
from nvr_rag.types import Feedback, FeedbackKind, Query, SearchResult

GROUP = 256  # rows in one commit, at most
WAIT_SECONDS = 40.0  # longer than the database itself waits for its lock
LOOK_SECONDS = 1.0  # between two looks whether there is still somebody who writes
MAX_GRADE = 1_000_000

_ABOUT_THE_ANSWER = (FeedbackKind.ANSWER_GOOD, FeedbackKind.ANSWER_BAD)


@dataclass(kw_only=True, slots=True)
class _Pending:
    row: dict[str, Any]
    written: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class QueryLog:
    """The log of one process. Safe to share between threads; `close` writes what is still waiting."""

    def __init__(self, database: Database, meter: Meter | None = None) -> None:
        self._database, self._meter = database, meter or Meter()
        self._pending: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._closed = False
        self._door = threading.Lock()  # nothing is put into the queue behind the None that ends it
        self._thread = threading.Thread(target=self._write_forever, name="query-log", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def record(self, query: Query, result: SearchResult) -> str:
        """Write one query with its hits and return its id once it is in the database. Raises DatabaseUnavailable."""
        (query_id,) = self.record_many([(query, result)])
        return query_id

    def record_many(self, answered: Sequence[tuple[Query, SearchResult]]) -> list[str]:
        """The same of several, which are written together."""
        rows = [_Pending(row=_row(query, result)) for query, result in answered]
        with self._door:
            if self._closed:
                raise DatabaseUnavailable("the query log is closed: the server is stopping")
            for pending in rows:
                self._pending.put(pending)
        for pending in rows:
            self._wait_for(pending)
        for (query, result), pending in zip(answered, rows, strict=True):
            context.note(query_id=str(pending.row["id"]), collection=query.collection)
            self._meter.searched(query.collection, result)
        return [str(pending.row["id"]) for pending in rows]

    def _wait_for(self, pending: _Pending) -> None:
        """Until its row is written. Raises DatabaseUnavailable when it cannot be, takes too long, or nobody does it."""
        until = time.monotonic() + WAIT_SECONDS
        while not pending.written.wait(LOOK_SECONDS):
            if not self.alive:
                raise DatabaseUnavailable("the query could not be logged: the log has stopped; restart the server")
            if time.monotonic() > until:
                raise DatabaseUnavailable("the query could not be logged in time; try again")
        if pending.error is not None:
            raise DatabaseUnavailable(f"the query could not be logged: {pending.error}") from pending.error

    def close(self) -> None:
        with self._door:
            if not self._closed:
                self._pending.put(None)
            self._closed = True
        self._thread.join(WAIT_SECONDS)

    def _write_forever(self) -> None:
        while (first := self._pending.get()) is not None:
            group, more = [first], True
            while more and len(group) < GROUP:
                try:
                    following = self._pending.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._pending.put(None)
                    more = False
                else:
                    group.append(following)
            self._meter.queued(len(group) + self._pending.qsize())
            self._write(group)
            self._meter.queued(self._pending.qsize())

    def _write(self, group: Sequence[_Pending]) -> None:
        error: Exception | None = None
        try:
            with self._database.write(durable=False) as connection:
                connection.execute(insert(t.QueryRow), [pending.row for pending in group])
        except Exception as failure:  # a thread that dies here would hang every search
            if len(group) > 1 and not isinstance(failure, DatabaseUnavailable):
                for pending in group:  # one bad row is no reason to lose the others
                    self._write([pending])
                return
            error = failure
        for pending in group:
            pending.error = error
            pending.written.set()


def record_feedback(connection: Connection, items: Sequence[Feedback], *, asker: str | None = None) -> int:
    """Store feedback; of one user about one hit the last word of each kind counts. Returns how many rows are new.

    With `asker` (see nvr_rag.access.callers) he knows only the queries whose answers he was shown. Raises NotFound for
    an unknown query, InvalidInput for a chunk that was not among its hits and for a bad grade.
    """
    shown = _shown(connection, {storable(item.query_id) for item in items}, asker)
    for item in items:
        _check(item, shown)
    before = _count(connection, shown)
    insert_or_update(
        connection,
        t.FeedbackRow,
        [
            {
                "query_id": item.query_id,
                "chunk_id": item.chunk_id or "",
                "kind": item.kind,
                "grade": item.grade,
                "user": storable(item.user or ""),
                "session": storable(item.session) if item.session else item.session,
                "created_at": t.now(),
            }
            for item in items
        ],
        key=("query_id", "chunk_id", "kind", "user"),
        values=("grade", "session", "created_at"),
    )
    return _count(connection, shown) - before


def _row(query: Query, result: SearchResult) -> dict[str, Any]:
    return {
        "id": new_id(),
        "collection_id": result.deployment.collection_id,
        "deployment_id": result.deployment.id,
        "text": storable(query.text),
        "k": query.k,
        "mode": result.mode,
        "filter": query.filter,
        "user": storable(query.user) if query.user else query.user,
        "session": storable(query.session) if query.session else query.session,
        "hits": [[hit.chunk_id, round(hit.score, 6)] for hit in result.hits],
        "asker": query.asker,
        "created_at": t.now(),
    }


def _shown(connection: Connection, query_ids: set[str], asker: str | None) -> dict[str, set[str]]:
    statement = select(t.QueryRow.id, t.QueryRow.hits).where(t.QueryRow.id.in_(query_ids))
    if asker is not None:
        statement = statement.where(t.QueryRow.asker == asker)
    rows = connection.execute(statement)
    return {row.id: {hit[0] for hit in row.hits} for row in rows}


def _check(item: Feedback, shown: dict[str, set[str]]) -> None:
    if item.query_id not in shown:
        raise no_query(item.query_id)
    check_grade(item)
    if item.chunk_id is None and item.kind not in _ABOUT_THE_ANSWER:
        raise InvalidInput(f"feedback of kind {item.kind} names the chunk_id of a hit", field="chunk_id")
    if item.chunk_id is not None and item.chunk_id not in shown[item.query_id]:
        raise InvalidInput(f"the chunk {item.chunk_id[:80]!r} was not among the hits of this query", field="chunk_id")


def no_query(query_id: str) -> NotFound:
    """What whoever says something about a query that is not there, or was not his, is told."""
    return NotFound(f"no query {query_id[:80]!r} in the log; send the query_id of a search answer")


def check_grade(item: Feedback) -> None:
    """Raise InvalidInput for a grade that is none."""
    if item.grade is not None and not 0 <= item.grade <= MAX_GRADE:
        raise InvalidInput(f"a grade is a number from 0 to {MAX_GRADE}, not {item.grade}", field="grade")


def _count(connection: Connection, shown: dict[str, set[str]]) -> int:
    return len(connection.scalars(select(t.FeedbackRow.id).where(t.FeedbackRow.query_id.in_(shown))).all())
