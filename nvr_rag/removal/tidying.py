"""Pruning beside other work: now and then, a little at a time. What goes is decided by nvr_rag.removal.retention."""

from __future__ import annotations

import logging
import threading
import time

from nvr_rag.removal.retention import prune
from nvr_rag.workspace import Workspace

EVERY_SECONDS = 3600.0  # between two prunings
AT_A_TIME_SECONDS, REST_SECONDS = 2.0, 60.0  # that one may take before the rest is left for later; until then

log = logging.getLogger(__name__)


class Tidier:
    """Prunes for one process. Call `step` whenever there is nothing else to do."""

    def __init__(self, workspace: Workspace, stop: threading.Event) -> None:
        self._workspace, self._stop = workspace, stop
        self._due = 0.0  # by the monotonic clock

    def step(self) -> None:
        """Prune if it is time to."""
        begun = time.monotonic()
        if begun < self._due:
            return
        late = begun + AT_A_TIME_SECONDS
        paused = False

        def pause() -> bool:
            nonlocal paused
            paused = self._stop.is_set() or time.monotonic() > late
            return paused

        self._due = begun + EVERY_SECONDS
        for one in prune(self._workspace, pause=pause):
            if one.count:
                log.info("pruned %s %s: %s", one.count, one.rule, one.why)
        if paused:
            self._due = begun + REST_SECONDS
