"""The indexer as a part of a server or a worker: a thread that follows the log from start to stop, and one for jobs.

They are two so that no index waits for its documents while another one is verified.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ingest.handlers import HANDLERS
from ingest.indexer import Indexer
from nvr_rag.running.patience import Patience
from nvr_rag.running.working import JobLoop
from nvr_rag.workspace import Workspace

POLL_SECONDS = 0.2
BACK_OFF_SECONDS = 2.0  # while there are indexes that cannot be kept up
STOP_SECONDS = 30.0


class IndexerService:
    """Keeps indexes up with the log, and does the jobs of their owner; see nvr_rag.running.services."""

    name = "indexer"
    work = "index"

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._indexer: Indexer | None = None
        self._patience = Patience("the indexer")
        self._jobs = JobLoop("indexer's job thread", HANDLERS)

    @property
    def job_kinds(self) -> Sequence[str]:
        return self._jobs.job_kinds

    def check(self, workspace: Workspace, kind: str, payload: Mapping[str, Any]) -> None:
        """What can be wrong with these jobs is seen when they are done."""

    def start(self, workspace: Workspace) -> None:
        workspace.tended = True
        self._indexer = Indexer(workspace, self._stop, on_progress=self._patience.succeeded)
        self._thread = threading.Thread(target=self._run, args=(self._indexer,), name="indexer", daemon=True)
        self._thread.start()
        self._jobs.start(workspace)

    def stop(self) -> None:
        self._stop.set()
        self._jobs.stop()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def problem(self) -> str | None:
        if self._thread is None or not self._thread.is_alive():
            return "the indexer is not running"
        if self._patience.trouble is not None:
            return f"the indexer failed and tries again: {self._patience.trouble}"
        return "; ".join(self._indexer.alarms if self._indexer else ()) or self._jobs.problem()

    def _run(self, indexer: Indexer) -> None:
        while not self._stop.is_set():
            try:
                busy = indexer.step()
            except Exception as error:  # the thread must outlive what nobody has foreseen; readiness tells of it
                self._stop.wait(self._patience.failed(error))
                continue
            self._patience.succeeded()
            if not busy:
                self._stop.wait(POLL_SECONDS if not indexer.problems else BACK_OFF_SECONDS)
