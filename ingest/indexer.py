"""The indexer: keeps the indexes that this process can own up with the log.

Rounds over all live indexes; an index that another process owns is that process's business. It knows no files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ingest.chunking import chunk
from nvr_rag import indexes
from nvr_rag.errors import Maintained, NotFound, NvrError, StoreBusy
from nvr_rag.observing.meter import Meter
from nvr_rag.removal import erasing
from nvr_rag.removal.tidying import Tidier
from nvr_rag.upkeep import indexing, painting
from nvr_rag.upkeep.catching_up import Lag, lags
from nvr_rag.upkeep.progress import Progress
from nvr_rag.upkeep.writing import COUNTED, Work
from nvr_rag.workspace import Workspace

ERASE_SECONDS = 5.0  # between two looks for what was erased


class Indexer:
    """One process's indexer. `step` does everything that is to do now; call it again and again."""

    def __init__(
        self,
        workspace: Workspace,
        stop: threading.Event | None = None,
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_progress` is called while a step takes long, whenever a part of it is done."""
        self._workspace, self._on_progress = workspace, on_progress
        self._stop = stop or threading.Event()
        self._tidier = Tidier(workspace, self._stop)
        self.problems: dict[int, str] = {}  # by index id: why it cannot be kept up, in words
        self._erase_due = 0.0  # by the monotonic clock
        self._serving: set[int] = set()  # ids of the indexes that searches are answered from

    def step(self) -> bool:
        """Drop what retired, catch up what lags, tidy up when that is all; True when anything else was done."""
        dropped = self._drop_retired()
        found = lags(self._workspace)
        self._serving = {lag.index.id for lag in found if lag.serves}
        moved = [self._follow(lag) for lag in found]
        self._erase()
        busy = any([dropped, *moved])
        if not busy:
            self._tidier.step()
        return busy

    @property
    def alarms(self) -> list[str]:
        """The problems of indexes that searches are answered from: those of a candidate harm nobody."""
        return [words for index_id, words in self.problems.items() if index_id in self._serving]

    def _follow(self, lag: Lag) -> bool:
        if self._stop.is_set() or (lag.settled and lag.index.id not in self.problems):
            return False
        try:
            index = self._workspace.index(lag.index.id)
            if index.maintenance.locked():
                return False  # a lap or a job in this process is at it: the other indexes must not wait behind that
            # One that is being built takes a round at a time, so that what serves is never kept waiting.
            turns = None if lag.serves else 1
            told = _Told(self._workspace.meter)

            def report(progress: Progress) -> None:
                self._goes_on(lag.index.id)
                told.tell(progress.work)

            done = indexing.catch_up(
                self._workspace.database, index, chunk, report=report, stop=self._stop, turns=turns
            )
            told.tell(done)
            painting.step(self._workspace.database, index, Work())  # one at a time: the other indexes wait for it
            self.problems.pop(lag.index.id, None)
        except (NotFound, Maintained):  # its collection was deleted meanwhile, or somebody else is at it
            self.problems.pop(lag.index.id, None)
            return False
        except NvrError as error:
            self.problems[lag.index.id] = str(error)
            return False
        return not lag.settled

    def _goes_on(self, index_id: int) -> None:
        """What was wrong is over, although there may be much left to do, and more every moment."""
        self.problems.pop(index_id, None)
        self._on_progress()

    def _erase(self) -> None:
        """Now and then remove what was erased from what this process owns."""
        if time.monotonic() >= self._erase_due:
            erasing.settle(self._workspace, self._stop)
            self._erase_due = time.monotonic() + ERASE_SECONDS

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


class _Told:
    """Tells the meter what is new of a piece of work: a long one is told of while it goes on."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._seconds: dict[str, float] = {}
        self._chunks: dict[str, int] = {}

    def tell(self, work: Work) -> None:
        """Where the work is now."""
        seconds, chunks = dict(work.seconds), {name: getattr(work, name) for name in COUNTED}
        self._meter.indexed(
            {stage: spent - self._seconds.get(stage, 0.0) for stage, spent in seconds.items()},
            {name: count - self._chunks.get(name, 0) for name, count in chunks.items()},
        )
        self._seconds, self._chunks = seconds, chunks
