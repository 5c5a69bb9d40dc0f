"""The row that tells other processes of this one, kept fresh by a thread; see nvr_rag.running.processes.

What the process is, and what it has loaded, enters; nothing leaves but the row. It outlives a database that is away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from nvr_rag.db.session import Database
from nvr_rag.errors import NvrError
from nvr_rag.running import processes
from nvr_rag.running.patience import Patience

LOOK_SECONDS = 0.1  # between two looks at what is loaded

log = logging.getLogger(__name__)

Prepared = Callable[[], Mapping[int, str | None]]


class Presence:
    """Of one process, from `start` to `stop`."""

    def __init__(
        self, database: Database, kind: str, *, job_kinds: Sequence[str], prepared: Prepared | None = None
    ) -> None:
        """`prepared` says which deployments the process has loaded; see processes.beat."""
        self._database, self._kind, self._job_kinds, self._prepared = database, kind, job_kinds, prepared
        self._id: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self, url: str | None = None) -> None:
        """Announce the process, and where it answers."""
        self._id = processes.announce(self._database, self._kind, url, job_kinds=self._job_kinds)
        self._thread.start()

    def stop(self) -> None:
        """Sign off."""
        self._stop.set()
        if self._id is not None:
            self._thread.join()
            try:
                processes.withdraw(self._database, self._id)
            except NvrError as error:  # the row goes stale by itself
                log.warning("this process could not sign off: %s", error)

    def problem(self) -> str | None:
        """What is wrong while it should run: others would take the process for dead."""
        return None if self._thread.is_alive() else "the heartbeat has stopped; restart the process"

    def _beat(self) -> None:
        """A heartbeat now and then, and at once when something else is loaded: a promotion waits for it."""
        assert self._id is not None
        said: Mapping[int, str | None] | None = None
        beaten, patience = time.monotonic(), Patience("the heartbeat")
        while not self._stop.wait(LOOK_SECONDS):
            prepared = self._prepared() if self._prepared else None
            if prepared == said and time.monotonic() - beaten < processes.HEARTBEAT_SECONDS:
                continue
            try:
                processes.beat(self._database, self._id, prepared)
                said, beaten = prepared, time.monotonic()
                patience.succeeded()
            except Exception as error:  # the thread must outlive what nobody has foreseen
                self._stop.wait(min(patience.failed(error), processes.HEARTBEAT_SECONDS))
