"""Does an index hold exactly what the log says? A merge-join of both sides in id order, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nvr_rag import chunks, indexes
from nvr_rag.chunks import PlacedChunk
from nvr_rag.db.session import Database
from nvr_rag.indexes import LiveIndex
from nvr_rag.indexing import CHUNKS_A_GROUP, Work, purge_round, want, write_group
from nvr_rag.stores.base import StoredPoint

_EXAMPLES = 5
_REPORT_EVERY = 1000  # chunks


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
    examples: list[str] = field(default_factory=list)  # ids of a few wrong points

    @property
    def clean(self) -> bool:
        """Nothing is wrong, or nothing is any more."""
        return self.repaired or self.missing + self.stale + self.foreign == 0


def verify(
    database: Database, index: LiveIndex, *, repair: bool = False, report: Callable[[int], None] | None = None
) -> Verification:
    """Compare ids and both hashes of every point; with `repair`, write what is missing or stale and delete the rest.

    `report` is told now and then how many chunks have been checked. Nothing is applied to the index meanwhile; the
    comparison is against the log as of the index's applied_seq.
    """
    with index.maintenance:
        while purge_round(database, index, work=Work()):
            pass
        with database.read() as connection:
            info = indexes.get(connection, index.info.id)
        found = Verification(index=info.name, applied_seq=info.applied_seq)
        mender = _Mender(database, index) if repair else None
        for chunk, point in _joined(database, index, info):
            if report and found.checked % _REPORT_EVERY == 0:
                report(found.checked)
            if _is_right(index, chunk, point, found):
                continue
            if len(found.examples) < _EXAMPLES:
                found.examples.append(_id(chunk, point))
            if mender:
                mender.take(chunk, point)
        if mender:
            mender.finish()
            found.repaired = True
        return found


def _is_right(index: LiveIndex, chunk: PlacedChunk | None, point: StoredPoint | None, found: Verification) -> bool:
    """Count one pair; True when both sides agree."""
    if chunk is None:
        found.foreign += 1
        return False
    found.checked += 1
    if point is None:
        found.missing += 1
        return False
    wanted = want(index, chunk)
    right = (point.input_hash, point.payload_hash) == (wanted.input_hash, wanted.payload_hash)
    found.stale += not right
    return right


class _Mender:
    """Writes what is missing or stale and deletes what is foreign, in groups."""

    def __init__(self, database: Database, index: LiveIndex) -> None:
        self._database, self._index = database, index
        self._bad: list[PlacedChunk] = []
        self._foreign: list[str] = []

    def take(self, chunk: PlacedChunk | None, point: StoredPoint | None) -> None:
        if chunk is not None:
            self._bad.append(chunk)
        elif point is not None:
            self._foreign.append(point.id)
        if len(self._bad) + len(self._foreign) >= CHUNKS_A_GROUP:
            self._write()

    def finish(self) -> None:
        self._write()
        self._index.points.flush()

    def _write(self) -> None:
        if self._bad:
            write_group(self._database, self._index, self._bad, Work())
        if self._foreign:
            self._index.points.delete(self._foreign)
        self._bad, self._foreign = [], []


def _id(chunk: PlacedChunk | None, point: StoredPoint | None) -> str:
    return chunk.chunk_id if chunk is not None else point.id if point is not None else ""


def _joined(
    database: Database, index: LiveIndex, info: indexes.IndexInfo
) -> Iterator[tuple[PlacedChunk | None, StoredPoint | None]]:
    """Pairs by id of what should be there and what is; None on the side that lacks it."""
    assert info.collection_id is not None
    with database.read() as connection:
        log = chunks.all_chunks(connection, info.collection_id, info.chunking_id, info.applied_seq)
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
