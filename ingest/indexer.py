"""The indexer: keeps the indexes that this process can own up with the log, and does the jobs that need their owner.

Rounds over all live indexes; an index that another process owns is that process's business. It knows no files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ingest.chunking import chunk
from nvr_rag import indexes, indexing, jobs, verification
from nvr_rag.errors import NotFound, NvrError, StoreBusy
from nvr_rag.ids import new_id
from nvr_rag.upkeep import Lag, lags
from nvr_rag.workspace import Workspace

JOB_KINDS = ("verify",)


class Indexer:
    """One process's indexer. `step` does everything that is to do now; call it again and again."""

    def __init__(self, workspace: Workspace, stop: threading.Event | None = None) -> None:
        self._workspace = workspace
        self._stop = stop or threading.Event()
        self._worker = new_id()
        self.problems: dict[int, str] = {}  # by index id: why it cannot be kept up, in words
        self._serving: set[int] = set()  # ids of the indexes that searches are answered from

    def step(self) -> bool:
        """Drop what retired, catch up what lags, do one job; True when anything was done."""
        dropped = self._drop_retired()
        found = lags(self._workspace)
        self._serving = {lag.index.id for lag in found if lag.serves}
        moved = [self._follow(lag) for lag in found]
        return any([dropped, *moved, self._do_job()])

    @property
    def alarms(self) -> list[str]:
        """The problems of indexes that searches are answered from: those of a candidate harm nobody."""
        return [words for index_id, words in self.problems.items() if index_id in self._serving]

    def _follow(self, lag: Lag) -> bool:
        if self._stop.is_set() or (lag.caught_up and lag.index.id not in self.problems):
            return False
        try:
            index = self._workspace.index(lag.index.id)
            if not lag.serves and index.maintenance.locked():
                return False  # a lap in this process builds it: what serves must not wait behind that
            # One that is being built takes a round at a time, so that what serves is never kept waiting.
            rounds = None if lag.serves else 1
            indexing.catch_up(self._workspace.database, index, chunk, stop=self._stop, rounds=rounds)
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
            retired = [info.id for info in indexes.retired(connection)]
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
