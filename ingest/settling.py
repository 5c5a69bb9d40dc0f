"""The indexes' side of a run: a thread that brings them up with the log while documents come in.

A collection enters; what was done to its indexes leaves, once they have everything. A store or database that is away is
waited for. It knows no files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ingest.chunking import chunk
from nvr_rag.errors import NvrError
from nvr_rag.running.patience import Patience
from nvr_rag.upkeep.catching_up import Upkeep, settle
from nvr_rag.upkeep.progress import Progress
from nvr_rag.upkeep.writing import Work
from nvr_rag.workspace import Workspace

PATIENCE_SECONDS = 120.0  # for which a store or database that is away is waited for, since it last did something


class Settling:
    """A context: on leaving, it waits until the indexes have caught up, or `stop` is set, and raises what went wrong
    unless the block itself did. It sets `stop` when it cannot go on."""

    def __init__(
        self,
        workspace: Workspace,
        collection_id: int,
        report: Callable[[Progress], None],
        *,
        stop: threading.Event,
        news: threading.Event,
    ) -> None:
        """`report` hears how far they are; `news` is set whenever there is something to do."""
        self._stop, self._told = stop, report
        self._upkeep = Upkeep(
            workspace=workspace, collection_id=collection_id, chunker=chunk, stop=stop, report=self._report, news=news
        )
        self._alive = time.monotonic()  # when it last did something
        self._failing = 0.0  # since when it has failed, if that is after it last did something
        self._finished = threading.Event()
        self._error: BaseException | None = None
        self.work = Work()
        self._thread = threading.Thread(target=self._run, name="indexing", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._stop.set()
        self._finished.set()
        try:
            while self._thread.is_alive():
                self._thread.join(0.2)  # in small steps, so that Ctrl-C is heard
        except BaseException:  # nobody waits any more, and nothing may go on behind their back
            self._stop.set()
            self._thread.join()
            raise
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        patience = Patience("indexing")
        try:
            while not self._settled(patience):
                continue
        except BaseException as error:  # raised again where the run ends
            self._error = error
            self._stop.set()

    def _settled(self, patience: Patience) -> bool:
        """Try once; False when it is to be tried again."""
        try:
            self.work.add(settle(self._upkeep, self._finished))
        except NvrError as error:
            now = time.monotonic()
            self._failing = now if self._failing < self._alive else self._failing
            if not error.retry or error.elsewhere or self._stop.is_set() or now - self._failing > PATIENCE_SECONDS:
                raise
            self._stop.wait(patience.failed(error))
            return False
        return True

    def _report(self, progress: Progress) -> None:
        self._alive = time.monotonic()
        self._told(progress)
