"""The indexer as a part of a server: a thread that follows the log from start to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from ingest.indexer import JOB_KINDS, Indexer
from nvr_rag.errors import NvrError
from nvr_rag.workspace import Workspace

POLL_SECONDS = 0.2
BACK_OFF_SECONDS = 2.0
STOP_SECONDS = 30.0

log = logging.getLogger(__name__)


class IndexerService:
    """Runs an indexer beside the API; see nvr_rag.services."""

    name = "indexer"
    job_kinds: Sequence[str] = JOB_KINDS

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._indexer: Indexer | None = None
        self._error: str | None = None

    def start(self, workspace: Workspace) -> None:
        self._indexer = Indexer(workspace, self._stop)
        self._thread = threading.Thread(target=self._run, args=(self._indexer,), name="indexer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def problem(self) -> str | None:
        if self._thread is None or not self._thread.is_alive():
            return "the indexer is not running"
        if self._error is not None:
            return f"the indexer failed and tries again: {self._error}"
        return "; ".join(self._indexer.alarms if self._indexer else ()) or None

    def _run(self, indexer: Indexer) -> None:
        while not self._stop.is_set():
            try:
                busy = indexer.step()
                self._error = None
            except NvrError as error:
                self._fail(error, str(error))
            except Exception as error:  # the thread must outlive what nobody has foreseen; readiness tells of it
                log.exception("the indexer failed")
                self._fail(error, type(error).__name__)
            else:
                if not busy:
                    self._stop.wait(POLL_SECONDS if not indexer.problems else BACK_OFF_SECONDS)

    def _fail(self, error: Exception, words: str) -> None:
        if words != self._error:
            log.warning("the indexer failed and tries again: %s", error)
        self._error = words
        self._stop.wait(BACK_OFF_SECONDS)
