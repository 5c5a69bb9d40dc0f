"""The loop as a part of a server: a thread that runs the laps that are asked for; see nvr_rag.services."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from nvr_rag import jobs
from nvr_rag.errors import NvrError
from nvr_rag.ids import new_id
from nvr_rag.workspace import Workspace
from training.running import KIND, missing_packages, run_job

POLL_SECONDS = 0.5
STOP_SECONDS = 30.0

log = logging.getLogger(__name__)


class TrainerService:
    """Runs laps beside the API, one at a time; the heavy steps are child processes."""

    name = "trainer"

    def __init__(self) -> None:
        self.job_kinds: Sequence[str] = () if missing_packages() else (KIND,)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._worker = new_id()

    def start(self, workspace: Workspace) -> None:
        self._thread = threading.Thread(target=self._run, args=(workspace,), name="trainer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def problem(self) -> str | None:
        if self._thread is None or not self._thread.is_alive():
            return "the trainer is not running"
        return None

    def _run(self, workspace: Workspace) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                job = jobs.claim(workspace.database, self._worker, self.job_kinds)
                if job is not None:
                    run_job(workspace, job, self._worker, stop=self._stop, serves=True)
            except NvrError as error:
                log.warning("a lap could not be run: %s", error)
            except Exception:  # the thread must outlive what nobody has foreseen
                log.exception("a lap failed")
