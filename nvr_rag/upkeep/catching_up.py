"""Bringing indexes up with the log: by this process where it can own them, by watching their owner where it cannot.

Indexes that lag enter; what leaves is the work that was done here, once nothing lags any more. It knows no files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from nvr_rag import deployments, indexes
from nvr_rag.chunkings import Chunker
from nvr_rag.collections import head_seq
from nvr_rag.errors import NvrError, StoreBusy
from nvr_rag.indexes import IndexInfo
from nvr_rag.running import processes
from nvr_rag.upkeep import indexing
from nvr_rag.upkeep.pace import Pace
from nvr_rag.upkeep.pace import pace as pace_of
from nvr_rag.upkeep.progress import Progress
from nvr_rag.upkeep.writing import Work
from nvr_rag.workspace import Workspace

STALLED_SECONDS = 900.0  # after which one stops waiting for another process
SERVER_FIRST_SECONDS = 3.0  # in which a running server may take a new index: it is the one that stays
TAKE_OVER_SECONDS = 1.0  # between two tries to own an index that another process has
POLL_SECONDS = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lag:
    """How far an index is behind its collection's log."""

    index: IndexInfo
    head_seq: int
    serves: bool  # a deployment answers from it now
    ready: bool  # one answers from it, or may from one moment to the next; otherwise it waits to be built

    @property
    def caught_up(self) -> bool:
        return self.index.applied_seq >= self.head_seq and self.index.purged_seq >= self.index.applied_seq

    @property
    def settled(self) -> bool:
        """Nothing is left to do for whoever keeps the index up."""
        return self.caught_up and self.index.painted

    @property
    def pace(self) -> Pace | None:
        """How fast it is brought up, by whom ever."""
        return pace_of(self.index.progress, self.index.applied_seq, self.head_seq)


def lags(workspace: Workspace, collection_id: int | None = None) -> list[Lag]:
    """Every live index, or those of one collection, with the head of its log; those that serve come first, those of
    mere candidates last."""
    with workspace.database.read() as connection:
        live = [info for info in indexes.all_infos(connection, collection_id) if info.state == "live"]
        heads = {key: head_seq(connection, key) for key in {info.collection_id for info in live} if key is not None}
        loaded = deployments.to_load(connection)
    ready = {deployment.index_id for deployment in loaded}
    serving = {deployment.index_id for deployment in loaded if deployment.state == "serving"}
    found = [
        Lag(index=info, head_seq=heads[info.collection_id], serves=info.id in serving, ready=info.id in ready)
        for info in live
        if info.collection_id is not None
    ]
    return sorted(found, key=lambda lag: (not lag.serves, not lag.ready))


@dataclass(kw_only=True, slots=True)
class Upkeep:
    """Whose indexes are to be brought up, and by what means."""

    workspace: Workspace
    collection_id: int
    chunker: Chunker
    stop: threading.Event
    only: int | None = None  # an index id; None = those that are ready, as what is being built may take hours
    report: Callable[[Progress], None] | None = None
    news: threading.Event = field(default_factory=threading.Event)  # set by who has changed the log: look at once


def settle(upkeep: Upkeep, finished: threading.Event) -> Work:
    """Bring indexes up with the log until `finished` is set and nothing lags, or `stop` is set.

    An index that another process owns is watched, and taken over when that process lets go of it. Raises StoreBusy when
    the other process is stuck, and the first error that waiting does not mend of an index that serves or that was asked
    for; any other index is left behind with a warning.
    """
    work, watch, left = Work(), _Watch(_head_start(upkeep)), set[int]()
    _open_new(upkeep)
    while not upkeep.stop.is_set():
        upkeep.news.clear()
        done = finished.is_set()  # read before the lags: what is committed later is seen in the next round
        found = lags(upkeep.workspace, upkeep.collection_id)
        behind = [lag for lag in found if not lag.caught_up and lag.index.id not in left and _wanted(upkeep, lag)]
        if done and not behind:
            break
        watch.check(behind)
        busy = False
        for lag in behind:
            try:
                busy |= not _bring_up(upkeep, lag, work, watch)
            except NvrError as error:
                if lag.serves or upkeep.only is not None:
                    raise
                log.warning("index %s is left behind: %s", lag.index.id, error)
                left.add(lag.index.id)
        if busy or not behind:
            upkeep.news.wait(POLL_SECONDS)
    return work


def _open_new(upkeep: Upkeep) -> None:
    """Have the indexes of a collection without any document made while the first ones are still being read."""
    for lag in lags(upkeep.workspace, upkeep.collection_id):
        if not lag.head_seq and _wanted(upkeep, lag) and not _head_start(upkeep):
            with suppress(NvrError):  # it comes again when there is something to do
                upkeep.workspace.index(lag.index.id)


class _Watch:
    """Remembers when an index last moved, and when its owner was last asked to let go."""

    def __init__(self, head_start: float) -> None:
        self.owner_asked = time.monotonic() + head_start - TAKE_OVER_SECONDS
        self._moved, self._stand = time.monotonic(), 0

    def check(self, behind: list[Lag]) -> None:
        """Raise StoreBusy when nothing has moved for too long."""
        written = sum(int((lag.index.progress or {}).get("chunks", 0)) for lag in behind)  # a book is one change
        stand = sum(lag.index.applied_seq + lag.head_seq for lag in behind) + written
        if not behind or stand != self._stand:
            self._moved, self._stand = time.monotonic(), stand
        elif time.monotonic() - self._moved > STALLED_SECONDS:
            raise StoreBusy(
                "the documents are stored, but the process that owns the index has not indexed any of them for "
                f"{STALLED_SECONDS / 60:.0f} minutes; see what is wrong with it (GET /readyz), or stop it and try again"
            )


def _wanted(upkeep: Upkeep, lag: Lag) -> bool:
    return lag.ready if upkeep.only is None else lag.index.id == upkeep.only


def _head_start(upkeep: Upkeep) -> float:
    """Seconds in which an index that nobody owns yet is left to a server."""
    servers = upkeep.only is not None and processes.alive(upkeep.workspace.database, "serve")
    return SERVER_FIRST_SECONDS if servers else 0.0


def _bring_up(upkeep: Upkeep, lag: Lag, work: Work, watch: _Watch) -> bool:
    """Catch one index up; False while another process owns it."""
    if time.monotonic() - watch.owner_asked >= TAKE_OVER_SECONDS:
        try:
            index = upkeep.workspace.index(lag.index.id)
            done = indexing.catch_up(
                upkeep.workspace.database, index, upkeep.chunker, report=upkeep.report, stop=upkeep.stop
            )
            work.add(done)
            return True
        except StoreBusy:
            watch.owner_asked = time.monotonic()
    if upkeep.report:
        upkeep.report(Progress(applied_seq=lag.index.applied_seq, head_seq=lag.head_seq, work=work, pace=lag.pace))
    return False
