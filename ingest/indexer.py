"""The indexer: keeps the indexes that this process can own up with the log, and does the jobs that need their owner.

Rounds over all live indexes; an index that another process owns is that process's business. It knows no files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ingest.chunking import chunk
from nvr_rag import indexes, indexing, jobs, verification
from nvr_rag.collections import head_seq
from nvr_rag.errors import NotFound, NvrError, StoreBusy
from nvr_rag.ids import new_id
from nvr_rag.indexes import IndexInfo
from nvr_rag.indexing import Progress, Work
from nvr_rag.workspace import Workspace

JOB_KINDS = ("verify",)
STALLED_SECONDS = 900.0  # after which one stops waiting for another process
TAKE_OVER_SECONDS = 1.0  # between two tries to own an index that another process has


@dataclass(frozen=True, kw_only=True, slots=True)
class Lag:
    """How far an index is behind its collection's log."""

    index: IndexInfo
    head_seq: int

    @property
    def caught_up(self) -> bool:
        return self.index.applied_seq >= self.head_seq and self.index.purged_seq >= self.index.applied_seq


def lags(workspace: Workspace, collection_id: int | None = None) -> list[Lag]:
    """Every live index, or those of one collection, with the head of its log."""
    with workspace.database.read() as connection:
        live = [info for info in indexes.all_infos(connection, collection_id) if info.state == "live"]
        heads = {key: head_seq(connection, key) for key in {info.collection_id for info in live} if key is not None}
    return [Lag(index=info, head_seq=heads[info.collection_id]) for info in live if info.collection_id is not None]


class Indexer:
    """One process's indexer. `step` does everything that is to do now; call it again and again."""

    def __init__(self, workspace: Workspace, stop: threading.Event | None = None) -> None:
        self._workspace = workspace
        self._stop = stop or threading.Event()
        self._worker = new_id()
        self.problems: dict[int, str] = {}  # by index id: why it cannot be kept up, in words

    def step(self) -> bool:
        """Drop what retired, catch up what lags, do one job; True when anything was done."""
        dropped = self._drop_retired()
        moved = [self._follow(lag) for lag in lags(self._workspace)]
        return dropped or any(moved) or self._do_job()

    def _follow(self, lag: Lag) -> bool:
        if self._stop.is_set() or (lag.caught_up and lag.index.id not in self.problems):
            return False
        try:
            index = self._workspace.index(lag.index.id)
            indexing.catch_up(self._workspace.database, index, chunk, stop=self._stop)
            self.problems.pop(lag.index.id, None)
        except NotFound:  # its collection was deleted meanwhile
            self.problems.pop(lag.index.id, None)
            return False
        except NvrError as error:
            self.problems[lag.index.id] = str(error)
            return False
        return not lag.caught_up

    def _drop_retired(self) -> bool:
        with self._workspace.database.read() as connection:
            retired = [info.id for info in indexes.all_infos(connection) if info.state == "retired"]
        dropped = False
        for index_id in retired:
            self._workspace.close_index(index_id)
            self.problems.pop(index_id, None)
            try:
                indexes.drop_retired(self._workspace.database, self._workspace.store, index_id)
                dropped = True
            except StoreBusy:
                continue
        return dropped

    def _do_job(self) -> bool:
        database = self._workspace.database
        job = jobs.claim(database, self._worker, JOB_KINDS)
        if job is None:
            return False
        beat = _Heartbeat(lambda checked: jobs.heartbeat(database, job.id, self._worker, {"checked": checked}))
        try:
            index_id, repair = int(job.payload["index_id"]), bool(job.payload.get("repair"))
            found = verification.verify_or_rebuild(self._workspace, index_id, chunk, repair=repair, report=beat)
        except (NvrError, KeyError, TypeError, ValueError) as error:
            jobs.finish(database, job.id, self._worker, result=None, error=str(error))
        else:
            jobs.finish(database, job.id, self._worker, result=found.as_json(), error=None)
        return True


class _Heartbeat:
    """Passes on what it is told, but not more often than every few seconds."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._tell = tell
        self._last = time.monotonic()

    def __call__(self, checked: int) -> None:
        if time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            self._tell(checked)


def settle(
    workspace: Workspace,
    collection_id: int,
    *,
    finished: threading.Event,
    stop: threading.Event,
    report: Callable[[Progress], None] | None = None,
) -> Work:
    """Bring a collection's indexes up with its log until `finished` is set and nothing lags, or `stop` is set.

    An index that another process owns is watched, and taken over when that process lets go of it. Returns what was done
    here. Raises the first error that waiting does not mend, StoreBusy when the other process is stuck.
    """
    work, owner_checked = Work(), 0.0
    moved, stand = time.monotonic(), 0
    while not stop.is_set():
        done = finished.is_set()  # read before the lags: what is committed later is seen in the next round
        behind = [lag for lag in lags(workspace, collection_id) if not lag.caught_up]
        if done and not behind:
            break
        busy = False
        if not behind or stand != (stand := sum(lag.index.applied_seq + lag.head_seq for lag in behind)):
            moved = time.monotonic()
        elif time.monotonic() - moved > STALLED_SECONDS:
            raise StoreBusy(
                "the documents are stored, but the process that owns the index has not indexed any of them for "
                f"{STALLED_SECONDS / 60:.0f} minutes; see what is wrong with it (GET /readyz), or stop it and try again"
            )
        for lag in behind:
            if time.monotonic() - owner_checked < TAKE_OVER_SECONDS:
                busy = True
            else:
                try:
                    index = workspace.index(lag.index.id)
                    _add(work, indexing.catch_up(workspace.database, index, chunk, report=report, stop=stop))
                except StoreBusy:
                    busy, owner_checked = True, time.monotonic()
            if busy and report:
                report(Progress(applied_seq=lag.index.applied_seq, head_seq=lag.head_seq, work=work))
        if busy or not behind:
            stop.wait(0.1)
    return work


def _add(total: Work, part: Work) -> None:
    for name in ("encoded", "reused", "repainted", "kept", "deleted"):
        setattr(total, name, getattr(total, name) + getattr(part, name))
