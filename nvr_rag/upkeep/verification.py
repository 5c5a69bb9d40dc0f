"""Does an index hold exactly what the log says? Both sides are walked in pages, in bounded memory.

First the log, in its own order: what should be there is read back whole and compared, point by point. Then the store,
ids only: what else is there is foreign. No order of ids is needed, so none can differ between the two; and every page
is a transaction of its own, so that a comparison that takes an hour holds up neither the checkpoints of SQLite nor the
vacuum of PostgreSQL. What changes meanwhile is left out of the judgment: see _Comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from nvr_rag import chunks, indexes, jobs
from nvr_rag.chunkings import Chunker
from nvr_rag.chunks import PlacedChunk
from nvr_rag.db.session import Database
from nvr_rag.errors import IndexDamaged, IndexMismatch, IndexMissing, Maintained, StoreBusy, StoreUnavailable
from nvr_rag.ids import sha256_json
from nvr_rag.indexes import LiveIndex
from nvr_rag.removal import erasure
from nvr_rag.running import processes
from nvr_rag.stores.base import Point, SparseVector
from nvr_rag.stores.points import HASHES
from nvr_rag.upkeep.indexing import catch_up, purge_round
from nvr_rag.upkeep.writing import Work, collection_of, want, write_group
from nvr_rag.workspace import Workspace

Item = TypeVar("Item")

KIND = "verify"  # of the job that asks an index's owner

_EXAMPLES = 5
_REPORT_EVERY = 1000  # chunks
_CHUNKS_A_GROUP = 256
_IDS_A_PAGE = 1000
_POLL_SECONDS = 0.2


@dataclass(kw_only=True, slots=True)
class Verification:
    """What a comparison found, counted in points."""

    index: str
    applied_seq: int = 0
    checked: int = 0  # chunks that should be there
    missing: int = 0  # should be there and are not
    stale: int = 0  # there, made from another input or with other filterable fields
    corrupt: int = 0  # there, with contents that are not what they say they are
    foreign: int = 0  # there, and should not be
    repaired: bool = False  # what was found has been mended
    rebuilt: bool = False  # it was lost or damaged, and built again before it was compared
    unfinished: bool = False  # it was lost, and nobody has finished to build it again
    examples: list[str] = field(default_factory=list)  # ids of a few wrong points

    @property
    def clean(self) -> bool:
        """Nothing is wrong, or nothing is any more."""
        return self.repaired or not (self.unfinished or self.wrong)

    @property
    def wrong(self) -> int:
        """Points that differ from what they should be."""
        return self.missing + self.stale + self.corrupt + self.foreign

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
    """Open an index and compare it with the log; with `repair`, one that is lost or damaged is built again from the log
    first, also when that comes out only while it is compared.

    Raises what opening an index raises: without `repair` also IndexMissing, IndexDamaged and IndexMismatch.
    """
    rebuilt = repair and workspace.rebuild_if_lost(index_id)
    try:
        found = _opened_and_verified(workspace, index_id, chunker, repair=repair, report=report)
    except (IndexMissing, IndexMismatch):
        if rebuilt or not repair:
            raise
        workspace.rebuild(index_id)
        rebuilt = True
        found = _opened_and_verified(workspace, index_id, chunker, repair=repair, report=report)
    found.rebuilt = rebuilt
    return found


def _opened_and_verified(
    workspace: Workspace, index_id: int, chunker: Chunker, *, repair: bool, report: Callable[[int], None] | None
) -> Verification:
    index = workspace.index(index_id)
    tell = (lambda progress: report(progress.work.chunks)) if report else None
    while repair and _unfinished(workspace.database, index_id):  # no further: documents may come in without end
        catch_up(workspace.database, index, chunker, report=tell, turns=1)
    found = verify(workspace.database, index, repair=repair, report=report)
    found.unfinished = _unfinished(workspace.database, index_id)
    return found


def _unfinished(database: Database, index_id: int) -> bool:
    with database.read() as connection:
        info = indexes.get(connection, index_id)
    return info.applied_seq < (info.rebuilt_to or 0)


def verify_by_owner(
    workspace: Workspace,
    index_id: int,
    chunker: Chunker,
    *,
    repair: bool = False,
    report: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """What `verify_or_rebuild` finds, as JSON, done here or by the server that owns the index. One that the store has
    lost has no owner to be seen: it is left to the process that takes such jobs, where there is one.

    Raises StoreBusy when neither can be, StoreUnavailable when the server stops or fails meanwhile.
    """
    database = workspace.database
    try:
        if processes.taking(database, KIND):
            workspace.index(index_id).points.get([indexes.NOBODY])
        return verify_or_rebuild(workspace, index_id, chunker, repair=repair, report=report).as_json()
    except (StoreBusy, IndexMissing, IndexMismatch) as error:
        if not processes.taking(database, KIND):
            raise processes.busy(database, error) if isinstance(error, StoreBusy) else error from error
        job_id = jobs.enqueue(database, KIND, {"index_id": index_id, "repair": repair})
        return _followed(database, job_id, report or (lambda _checked: None))


def _followed(database: Database, job_id: int, report: Callable[[int], None]) -> dict[str, Any]:
    while not (job := jobs.get(database, job_id)).finished:
        report(int(job.progress.get("checked", 0)))
        if not processes.taking(database, KIND):
            raise StoreUnavailable("the server that owned the index stopped before it had finished; verify again")
        time.sleep(_POLL_SECONDS)
    if job.result is None:
        raise StoreUnavailable(f"the server could not verify the index: {job.error}")
    return dict(job.result)


def verify(
    database: Database, index: LiveIndex, *, repair: bool = False, report: Callable[[int], None] | None = None
) -> Verification:
    """Compare what the index should hold with what it holds; with `repair`, write what is wrong and delete the rest.

    `report` is told now and then how many chunks have been checked. Nothing is applied to the index meanwhile by this
    process. Raises IndexDamaged when the store cannot read its own files, or does not keep what is written.
    """
    with index.maintenance:
        with suppress(Maintained):  # another process purges, and applies: that is no reason not to look
            while purge_round(database, index, work=Work()):
                pass
        index.points.flush()  # a shard whose files have gone says so here
        with database.read() as connection:
            info = indexes.get(connection, index.info.id)
        found = Verification(index=info.name, applied_seq=info.applied_seq)
        comparison = _Comparison(database, index, found, repair=repair)
        comparison.walk_log(report or (lambda _checked: None))
        comparison.walk_store(info.purged_seq)
        if repair:
            index.points.flush()
            with database.write() as connection:
                indexes.paint(connection, info.id, None)
            index.rest()
            found.repaired = True
        return found


class _Comparison:
    """One walk over both sides: what differs is judged, counted and, if wanted, mended, page by page.

    The log changes meanwhile, and where the store is shared another process may even bring the index up. So a
    difference counts only if its document has not changed since the page was read (for foreign points: since the
    index was last purged): the index is, or was, on its way to such a change. A point that is missing counts all the
    same as long as the index has not moved: until then it has to show what it showed.
    """

    def __init__(self, database: Database, index: LiveIndex, found: Verification, *, repair: bool) -> None:
        self._database, self._index, self._found, self._repair = database, index, found, repair

    def walk_log(self, report: Callable[[int], None]) -> None:
        """Compare every chunk that should be there."""
        place: chunks.Place | None = chunks.BEGINNING
        told = 0
        while place is not None:
            self._hold()
            with self._database.read() as connection:
                info = indexes.get(connection, self._index.info.id)
                page, place = chunks.next_chunks(
                    connection, collection_of(info), info.chunking_id, info.applied_seq, place
                )
            for group in _grouped(page, _CHUNKS_A_GROUP):
                self._compare(group, info.applied_seq)
                self._found.checked += len(group)
                if self._found.checked // _REPORT_EVERY > told:
                    told = self._found.checked // _REPORT_EVERY
                    report(self._found.checked)

    def walk_store(self, purged_seq: int) -> None:
        """Look for points that should not be there, in an index that was purged up to `purged_seq`."""
        for group in _grouped((point.id for point in self._index.points.scan()), _IDS_A_PAGE):
            self._hold()
            with self._database.read() as connection:
                info = indexes.get(connection, self._index.info.id)
                collection_id, applied = collection_of(info), info.applied_seq
                held = chunks.held(connection, collection_id, info.chunking_id, applied, group)
                strange = [key for key in group if key not in held]
                moving = chunks.unsettled(connection, collection_id, strange, purged_seq) if strange else set()
                moving |= erasure.pending_chunks(connection) if strange else set()
            foreign = [key for key in strange if key not in moving]
            self._found.foreign += len(foreign)
            self._note(foreign)
            if self._repair and foreign:
                self._index.points.delete(foreign)
                if self._index.points.get(foreign):
                    raise self._forgetful()

    def _compare(self, group: Sequence[PlacedChunk], seq: int) -> None:
        stored = self._index.points.read([chunk.chunk_id for chunk in group])
        faults = {chunk.chunk_id: _fault(self._index, chunk, stored.get(chunk.chunk_id)) for chunk in group}
        suspects = [key for key, fault in faults.items() if fault]
        if not suspects:
            return
        excused = self._excused(faults, suspects, seq)
        bad = [chunk for chunk in group if faults[chunk.chunk_id] and chunk.chunk_id not in excused]
        for chunk in bad:
            name = faults[chunk.chunk_id] or ""
            setattr(self._found, name, getattr(self._found, name) + 1)
        self._note([chunk.chunk_id for chunk in bad])
        if self._repair and bad:
            self._mend(bad, [chunk for chunk in bad if faults[chunk.chunk_id] == "corrupt"])

    def _excused(self, faults: Mapping[str, str | None], suspects: Sequence[str], seq: int) -> set[str]:
        """Those whose document has changed, or was erased, since the page was read at `seq`."""
        with self._database.read() as connection:
            info = indexes.get(connection, self._index.info.id)
            moving = chunks.unsettled(connection, collection_of(info), suspects, seq)
            known = chunks.known(connection, suspects)
        still = info.applied_seq == seq
        kept = {key for key in suspects if faults[key] == "corrupt" or (faults[key] == "missing" and still)}
        return (moving - kept) | (set(suspects) - known)

    def _mend(self, bad: Sequence[PlacedChunk], corrupt: Sequence[PlacedChunk]) -> None:
        """Write the points anew, and see whether the store keeps them."""
        self._hold()
        if corrupt:
            self._index.points.delete([chunk.chunk_id for chunk in corrupt])
        write_group(self._database, self._index, bad, Work())
        poor = self._still_wrong(bad)
        if poor:  # vectors were taken over from a point that is itself corrupt
            self._hold()
            self._index.points.upsert(_encoded(self._index, poor))
            poor = self._still_wrong(poor)
        if poor:
            raise self._forgetful()

    def _forgetful(self) -> IndexDamaged:
        return IndexDamaged(
            f"the index {self._index.info.name} does not keep what is written into it; "
            "nvr-rag verify --repair rebuilds it from the corpus log"
        )

    def _still_wrong(self, group: Sequence[PlacedChunk]) -> list[PlacedChunk]:
        stored = self._index.points.read([chunk.chunk_id for chunk in group])
        return [chunk for chunk in group if _fault(self._index, chunk, stored.get(chunk.chunk_id))]

    def _hold(self) -> None:
        if self._repair:
            self._index.hold()

    def _note(self, wrong: Sequence[str]) -> None:
        examples = self._found.examples
        examples += wrong[: max(0, _EXAMPLES - len(examples))]


def _fault(index: LiveIndex, chunk: PlacedChunk, point: Point | None) -> str | None:
    """What is wrong with the point of a chunk, by the name of its count."""
    if point is None:
        return "missing"
    wanted = want(index, chunk)
    fields = {name: value for name, value in point.payload.items() if name not in HASHES}
    if not all(isinstance(point.payload.get(name), str) for name in HASHES):
        return "corrupt"
    if [point.payload[name] for name in HASHES] != [wanted.input_hash, wanted.payload_hash]:
        return "stale"
    sound = (
        sha256_json(fields) == wanted.payload_hash
        and index.encoder.spec.fits(point.dense)
        and _same_terms(point.lexical, index.lexical.encode_document(wanted.text))
    )
    return None if sound else "corrupt"


def _same_terms(stored: SparseVector, wanted: SparseVector) -> bool:
    return list(stored.indices) == list(wanted.indices) and np.allclose(stored.values, wanted.values, rtol=1e-4)


def _encoded(index: LiveIndex, group: Sequence[PlacedChunk]) -> list[Point]:
    """Points that take nothing over from others."""
    wanted = [want(index, chunk) for chunk in group]
    vectors = index.encoder.encode_documents([item.text for item in wanted])
    return [
        Point(
            id=item.id,
            dense=vector,
            lexical=index.lexical.encode_document(item.text),
            payload={**item.payload, "input_hash": item.input_hash, "payload_hash": item.payload_hash},
        )
        for item, vector in zip(wanted, vectors, strict=True)
    ]


def _grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
