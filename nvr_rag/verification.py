"""Does an index hold exactly what the log says? A merge-join of both sides in id order, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from nvr_rag import chunks, indexes, jobs, processes
from nvr_rag.chunkings import Chunker
from nvr_rag.chunks import PlacedChunk
from nvr_rag.db.session import Database
from nvr_rag.errors import StoreBusy, StoreUnavailable
from nvr_rag.indexes import LiveIndex
from nvr_rag.indexing import CHUNKS_A_GROUP, catch_up, purge_round
from nvr_rag.stores.base import StoredPoint
from nvr_rag.workspace import Workspace
from nvr_rag.writing import Work, collection_of, want, write_group

_EXAMPLES = 5
_REPORT_EVERY = 1000  # chunks
_POLL_SECONDS = 0.2


@dataclass(kw_only=True, slots=True)
class Verification:
    """What a comparison found, counted in points."""

    index: str
    applied_seq: int = 0
    checked: int = 0  # chunks that should be there
    missing: int = 0  # should be there and are not
    stale: int = 0  # there, with another input or other filterable fields
    foreign: int = 0  # there, and should not be
    repaired: bool = False  # what was found has been mended
    rebuilt: bool = False  # it was lost, and built again before it was compared
    examples: list[str] = field(default_factory=list)  # ids of a few wrong points

    @property
    def clean(self) -> bool:
        """Nothing is wrong, or nothing is any more."""
        return self.repaired or self.missing + self.stale + self.foreign == 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "clean": self.clean}


def verify_or_rebuild(
    workspace: Workspace,
    index_id: int,
    chunker: Chunker,
    *,
    repair: bool = False,
    report: Callable[[int], None] | None = None,
) -> Verification:
    """Open an index and compare it with the log; with `repair`, one that is lost is built again from the log first.

    Raises what opening an index raises: without `repair` also IndexMissing and IndexMismatch.
    """
    rebuilt = repair and workspace.rebuild_if_lost(index_id)
    index = workspace.index(index_id)
    if rebuilt:
        tell = (lambda progress: report(progress.work.chunks)) if report else None
        catch_up(workspace.database, index, chunker, report=tell)
    found = verify(workspace.database, index, repair=repair, report=report)
    found.rebuilt = rebuilt
    return found


def verify_by_owner(
    workspace: Workspace,
    index_id: int,
    chunker: Chunker,
    *,
    repair: bool = False,
    report: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """What `verify_or_rebuild` finds, as JSON, done here or by the server that owns the index.

    Raises StoreBusy when neither can be, StoreUnavailable when the server stops or fails meanwhile.
    """
    try:
        return verify_or_rebuild(workspace, index_id, chunker, repair=repair, report=report).as_json()
    except StoreBusy as busy:
        database = workspace.database
        if not processes.alive(database, "serve"):
            raise processes.busy(database, busy) from busy
        job_id = jobs.enqueue(database, "verify", {"index_id": index_id, "repair": repair})
        return _followed(database, job_id, report or (lambda _checked: None))


def _followed(database: Database, job_id: int, report: Callable[[int], None]) -> dict[str, Any]:
    while not (job := jobs.get(database, job_id)).finished:
        report(int(job.progress.get("checked", 0)))
        if not processes.alive(database, "serve"):
            raise StoreUnavailable("the server that owned the index stopped before it had finished; verify again")
        time.sleep(_POLL_SECONDS)
    if job.result is None:
        raise StoreUnavailable(f"the server could not verify the index: {job.error}")
    return dict(job.result)


def verify(
    database: Database, index: LiveIndex, *, repair: bool = False, report: Callable[[int], None] | None = None
) -> Verification:
    """Compare ids and both hashes of every point; with `repair`, write what is missing or stale and delete the rest.

    `report` is told now and then how many chunks have been checked. Nothing is applied to the index meanwhile; the
    comparison is against the log as of the index's applied_seq. Points of a document that has changed since may be on
    their way to the change, and are wrong only when they are missing.
    """
    with index.maintenance:
        while purge_round(database, index, work=Work()):
            pass
        with database.read() as connection:
            info = indexes.get(connection, index.info.id)
        found = Verification(index=info.name, applied_seq=info.applied_seq)
        suspects = _Suspects(database, index, found, repair=repair)
        for chunk, point in _joined(database, index, info):
            if chunk is not None:
                found.checked += 1
                if report and found.checked % _REPORT_EVERY == 0:
                    report(found.checked)
            if not _agree(index, chunk, point):
                suspects.take(chunk, point)
        suspects.settle()
        if repair:
            index.points.flush()
            found.repaired = True
        return found


def _agree(index: LiveIndex, chunk: PlacedChunk | None, point: StoredPoint | None) -> bool:
    if chunk is None or point is None:
        return False
    wanted = want(index, chunk)
    return (point.input_hash, point.payload_hash) == (wanted.input_hash, wanted.payload_hash)


class _Suspects:
    """Pairs on which the sides differ, in groups: judged, counted and, if wanted, mended."""

    def __init__(self, database: Database, index: LiveIndex, found: Verification, *, repair: bool) -> None:
        self._database, self._index, self._found, self._repair = database, index, found, repair
        self._missing: list[PlacedChunk] = []
        self._stale: list[PlacedChunk] = []
        self._foreign: list[str] = []

    def take(self, chunk: PlacedChunk | None, point: StoredPoint | None) -> None:
        if chunk is not None:
            (self._missing if point is None else self._stale).append(chunk)
        elif point is not None:
            self._foreign.append(point.id)
        if len(self._missing) + len(self._stale) + len(self._foreign) >= CHUNKS_A_GROUP:
            self.settle()

    def settle(self) -> None:
        """Be done with the suspects so far."""
        found, moving = self._found, self._unsettled()
        stale = [chunk for chunk in self._stale if chunk.chunk_id not in moving]
        foreign = [key for key in self._foreign if key not in moving]
        found.missing += len(self._missing)
        found.stale += len(stale)
        found.foreign += len(foreign)
        wrong = [*(chunk.chunk_id for chunk in (*self._missing, *stale)), *foreign]
        found.examples += wrong[: max(0, _EXAMPLES - len(found.examples))]
        if self._repair:
            self._mend([*self._missing, *stale], foreign)
        self._missing, self._stale, self._foreign = [], [], []

    def _unsettled(self) -> set[str]:
        suspected = [*(chunk.chunk_id for chunk in self._stale), *self._foreign]
        if not suspected:
            return set()
        with self._database.read() as connection:
            info = indexes.get(connection, self._index.info.id)
            return chunks.unsettled(connection, collection_of(info), suspected, info.applied_seq)

    def _mend(self, bad: list[PlacedChunk], foreign: list[str]) -> None:
        if bad:
            write_group(self._database, self._index, bad, Work())
        if foreign:
            self._index.points.delete(foreign)


def _joined(
    database: Database, index: LiveIndex, info: indexes.IndexInfo
) -> Iterator[tuple[PlacedChunk | None, StoredPoint | None]]:
    """Pairs by id of what should be there and what is; None on the side that lacks it."""
    with database.read() as connection:
        log = chunks.all_chunks(connection, collection_of(info), info.chunking_id, info.applied_seq)
        store = index.points.scan()
        chunk, point = next(log, None), next(store, None)
        while chunk is not None or point is not None:
            if point is None or (chunk is not None and chunk.chunk_id < point.id):
                yield chunk, None
                chunk = next(log, None)
            elif chunk is None or point.id < chunk.chunk_id:
                yield None, point
                point = next(store, None)
            else:
                yield chunk, point
                chunk, point = next(log, None), next(store, None)
