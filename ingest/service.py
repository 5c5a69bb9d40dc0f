"""Ingestion as a part of a server or a worker: threads that mirror folders and parse uploads, from start to stop.

Uploads have threads of their own, as many as files are parsed at a time, so that nobody who sends one file waits for a
folder of a million. What lies in the folder of uploads and belongs to nobody is deleted now and then, and so are
answers that are too old to be given again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ingest import mirroring
from ingest.uploading import Uploads
from nvr_rag import idempotency, uploads
from nvr_rag.errors import NvrError
from nvr_rag.running.working import JobLoop
from nvr_rag.uploads import Folder
from nvr_rag.workspace import Workspace

MAX_UPLOADS = 8  # jobs of uploads at a time; each has a thread that asks the database for another one
SWEEP_SECONDS = 600.0  # between two looks for files that nobody needs

log = logging.getLogger(__name__)


class IngestService:
    """Does the jobs of ingestion; see nvr_rag.running.services."""

    name = "ingester"
    work = "ingest"
    job_kinds: Sequence[str] = (mirroring.KIND, uploads.KIND)

    def __init__(self) -> None:
        self._loops: list[JobLoop] = []
        self._uploads: Uploads | None = None
        self._stop = threading.Event()
        self._sweeper: threading.Thread | None = None

    def check(self, workspace: Workspace, kind: str, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a path that nobody could mirror."""
        if kind == mirroring.KIND:
            mirroring.check(workspace, payload)

    def start(self, workspace: Workspace) -> None:
        at_once = min(workspace.settings.ingest.parsers, MAX_UPLOADS)
        self._uploads = Uploads(workspace.settings.ingest, children=at_once)
        self._loops.append(JobLoop("ingester", {mirroring.KIND: mirroring.mirror}))
        for number in range(at_once):
            self._loops.append(JobLoop(f"ingester of uploads {number + 1}", {uploads.KIND: self._uploads}))
        for loop in self._loops:
            loop.start(workspace)
        self._sweeper = threading.Thread(target=self._sweep, args=(workspace,), name="sweeper", daemon=True)
        self._sweeper.start()

    def stop(self) -> None:
        self._stop.set()
        for loop in self._loops:
            loop.tell_to_stop()
        if self._uploads is not None:
            self._uploads.close()
        for loop in self._loops:
            loop.stop()
        if self._sweeper is not None:
            self._sweeper.join()

    def problem(self) -> str | None:
        if not self._loops:
            return "the ingester is not running"
        found = [said for loop in self._loops if (said := loop.problem())]
        if self._sweeper is None or not self._sweeper.is_alive():
            found.append("uploads that nobody needs are not deleted any more")
        return "; ".join(found) or None

    def _sweep(self, workspace: Workspace) -> None:
        folder = Folder(workspace.home)
        while True:
            try:
                gone = uploads.sweep(workspace.database, folder)
                if gone:
                    log.info("deleted %s uploaded files that nobody needs", gone)
                with workspace.database.write(durable=False) as connection:
                    idempotency.forget(connection)
            except NvrError as error:  # the next round may do better
                log.info("uploads are swept later: %s", error)
            except Exception:  # the thread must outlive what nobody has foreseen
                log.exception("uploads could not be swept")
            if self._stop.wait(SWEEP_SECONDS):
                return
