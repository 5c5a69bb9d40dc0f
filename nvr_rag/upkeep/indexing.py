"""How an index follows the log: changes in, points out, and never a step that a crash could make wrong.

One round: cut what is new, encode what is new, upsert, flush, *then* advance `applied_seq`, *then* delete what went
stale and advance `purged_seq`. Every step may be repeated: upserts are idempotent, and a point whose hashes match is
left alone, so a round that died half-way costs only what it had not finished. A round ends at a change, after so many
changes or so much text, whichever comes first, so that what waits behind it need not wait long.

Within a round, groups of chunks overlap: while one is encoded, a second thread stores the one before it, and cuts,
reads and looks up the next. No group is stored before its chunks are in the log for good, and the round goes on to its
flush only when all of them are stored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import Any, TypeVar

from nvr_rag import chunks, corpus, indexes
from nvr_rag.chunkings import Chunker
from nvr_rag.chunks import PlacedChunk, Version
from nvr_rag.collections import head_seq
from nvr_rag.db.session import Database
from nvr_rag.indexes import LiveIndex
from nvr_rag.stores.base import Vector
from nvr_rag.upkeep import pace, writing
from nvr_rag.upkeep.aside import Aside
from nvr_rag.upkeep.cutting import cut_new
from nvr_rag.upkeep.pace import Pace
from nvr_rag.upkeep.writing import Group, Work, collection_of, write_group

CHANGES_A_ROUND = 128
CHARACTERS_A_ROUND = 500_000  # about 500 chunks; a single longer document is a round
CHARACTERS_A_CUT = 100_000  # cut and in the log for good before any of it is written
CHUNKS_A_GROUP = 256
CHUNKS_A_TURN = 256  # of an index that must not keep others waiting
MEASURED_CHUNKS = 1000  # encoded, after which an encoder's speed is known
FASTER = 4  # at most so many times as much in a round and in a group, for a fast encoder
TELL_SECONDS = 1.0  # between two words on how a build goes, within a round

Item = TypeVar("Item")


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where an index stands, told after every group of chunks."""

    applied_seq: int
    head_seq: int
    work: Work = field(default_factory=Work)
    pace: Pace | None = None


Report = Callable[[Progress], None]


def catch_up(
    database: Database,
    index: LiveIndex,
    chunker: Chunker,
    *,
    report: Report | None = None,
    stop: threading.Event | None = None,
    rounds: int | None = None,
) -> Work:
    """Apply and purge until the index has everything that the log has, or for so many rounds, short ones then; `stop`
    ends it early between two groups."""
    work, budget = Work(), None if rounds is None else CHUNKS_A_TURN
    for _ in count() if rounds is None else range(rounds):
        if stop and stop.is_set():
            break
        with index.maintenance:
            index.hold()
            moved = apply_round(database, index, chunker, work=work, report=report, stop=stop, budget=budget)
            purged = purge_round(database, index, work=work)
        if not moved and not purged:
            index.rest()
            break
    return work


def _times(work: Work) -> int:
    """How many times the usual a round holds, so that a group takes a fast encoder about a second, too: only many texts
    at once keep a GPU busy, and every round waits for a disk."""
    if work.encoded < MEASURED_CHUNKS or not work.seconds["encode"]:
        return 1
    return max(1, min(FASTER, int(work.encoded / work.seconds["encode"]) // CHUNKS_A_GROUP))


def apply_round(
    database: Database,
    index: LiveIndex,
    chunker: Chunker,
    *,
    work: Work,
    report: Report | None = None,
    stop: threading.Event | None = None,
    budget: int | None = None,
) -> bool:
    """Bring the next changes of the log into the index; False when there are none or `stop` came first.

    With a `budget` it ends once so many chunks are written, in the middle of a long document if need be: then nothing
    is advanced, and the next round passes over what is there already. What `work` says of the rounds before decides how
    much one without a budget holds.
    """
    times = 1 if budget is not None else _times(work)
    with work.timed("database"):
        found = _next_round(database, index, times)
    if found is None:
        return False
    size = CHUNKS_A_GROUP * times
    job = _Job(database=database, index=index, chunker=chunker, round=found, work=work, size=size)
    clock, before = _Clock(database, found, work, report), work.written
    with closing(_overlapping(job) if budget is None else _in_turn(job)) as groups:
        for _ in groups:
            ends = budget is not None and work.written - before >= budget
            clock.tell(surely=ends)
            if stop and stop.is_set():
                return False
            if ends:
                return True
    with work.timed("flush"):
        index.points.flush()
    with work.timed("database"), database.write() as connection:
        applied = (found.info.applied_seq, found.upto)
        indexes.advance(connection, found.info.id, applied=applied, progress=clock.ended())
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """The changes that come next, and what an index that has them shows of the documents that they touch."""

    info: indexes.IndexInfo
    upto: int  # number of the last of them
    head: int  # of the log
    versions: Sequence[Version]
    lengths: Mapping[int, int]  # characters, by version id


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A round, and with what it is done."""

    database: Database
    index: LiveIndex
    chunker: Chunker
    round: _Round
    work: Work
    size: int  # of a group, in chunks

    def groups(self) -> Generator[list[PlacedChunk]]:
        """The chunks of the round, cut where they were not; in order, so many at a time."""
        return grouped(self._chunks(), self.size)

    def _chunks(self) -> Iterator[PlacedChunk]:
        chunking_id = self.round.info.chunking_id
        for versions in _portions(self.round.versions, self.round.lengths):
            with self.work.timed("cut"):
                cut_new(self.database, self.index, versions, self.chunker)
            for version in versions:
                with self.database.read() as connection:
                    yield from chunks.chunks_of(connection, version, chunking_id)


def _portions(versions: Sequence[Version], lengths: Mapping[int, int]) -> Iterator[list[Version]]:
    """The versions in order, so many at a time that a portion has text enough to be worth a durable transaction."""
    portion: list[Version] = []
    held = 0
    for version in versions:
        portion.append(version)
        held += lengths[version.id]
        if held >= CHARACTERS_A_CUT:
            yield portion
            portion, held = [], 0
    if portion:
        yield portion


def _in_turn(job: _Job) -> Generator[None]:
    """Write one group after another, and say so after each: for turns that are to end after so many chunks."""
    for group in job.groups():
        write_group(job.database, job.index, group, job.work)
        yield


def _overlapping(job: _Job) -> Generator[None]:
    """The same while others are looked up and stored. At most three groups are in memory."""
    groups = job.groups()
    stored: Future[None] | None = None
    before: Mapping[str, Vector] = {}
    with closing(groups), Aside("indexing") as aside:
        coming = aside.do(partial(_next_group, job, groups))
        while group := coming.result():
            coming = aside.do(partial(_next_group, job, groups))
            writing.encode(job.index, group, job.work, before)
            before = group.vectors
            last, stored = stored, aside.do(partial(writing.store, job.index, group, job.work))
            if last is not None:
                last.result()
                yield
        if stored is not None:
            stored.result()
            yield


def _next_group(job: _Job, groups: Iterator[list[PlacedChunk]]) -> Group | None:
    begun, cut = time.perf_counter(), job.work.seconds["cut"]
    group = next(groups, None)
    cut = job.work.seconds["cut"] - cut  # a part of the group may have had to be cut first
    job.work.spend("database", time.perf_counter() - begun - cut)
    return None if group is None else writing.look_up(job.database, job.index, group, job.work)


def _next_round(database: Database, index: LiveIndex, times: int) -> _Round | None:
    """What is to be applied next, in one state of the log; None when the index has everything."""
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
        collection_id, since, most = collection_of(info), info.applied_seq, CHANGES_A_ROUND * times
        document_ids, upto = corpus.changed_since(connection, collection_id, since, most)
        versions = chunks.versions_at(connection, document_ids, upto)
        lengths = chunks.characters(connection, versions)
        end = _end(lengths, versions, upto, CHARACTERS_A_ROUND * times)
        if end < upto:
            document_ids, upto = corpus.changed_since(connection, collection_id, since, most, until=end)
            versions = chunks.versions_at(connection, document_ids, upto)
            lengths = chunks.characters(connection, versions)
        head = head_seq(connection, collection_id)
    if upto <= since:
        return None
    return _Round(info=info, upto=upto, head=head, versions=versions, lengths=lengths)


def _end(lengths: Mapping[int, int], versions: Sequence[Version], upto: int, enough: int) -> int:
    """The number of the change with which there is text enough for a round."""
    total = 0
    for version in versions:
        total += lengths[version.id]
        if total >= enough:
            return version.seq
    return upto


class _Clock:
    """Tells whoever watches, and now and then the index's row, how a round goes."""

    def __init__(self, database: Database, of: _Round, work: Work, report: Report | None) -> None:
        self._database, self._of, self._work, self._report = database, of, work, report
        self._stretch = pace.resumed(of.info.progress, of.info.applied_seq)
        self._written, self._told = work.written, time.monotonic()
        self._spent = dict(work.seconds)

    def tell(self, *, surely: bool) -> None:
        """A group is written."""
        self._count()
        if surely or time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            with self._database.write(durable=False) as connection:
                indexes.tell_progress(connection, self._of.info.id, self._stretch.as_json())
        self._say(self._of.info.applied_seq)

    def ended(self) -> dict[str, Any] | None:
        """The round is done; what the row is to say of the build: nothing once it is level with the log."""
        self._count()
        self._say(self._of.upto)
        return self._stretch.as_json() if self._of.upto < self._of.head else None

    def _count(self) -> None:
        spent = dict(self._work.seconds)
        new = {stage: seconds - self._spent[stage] for stage, seconds in spent.items()}
        self._stretch = self._stretch.wrote(self._work.written - self._written, new)
        self._written, self._spent = self._work.written, spent

    def _say(self, applied_seq: int) -> None:
        if self._report:
            head = self._of.head
            going = pace.pace(self._stretch.as_json(), applied_seq, head)
            self._report(Progress(applied_seq=applied_seq, head_seq=head, work=self._work, pace=going))


def purge_round(database: Database, index: LiveIndex, *, work: Work) -> bool:
    """Delete what the next applied changes made stale; False when everything applied is purged."""
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
        if info.purged_seq >= info.applied_seq:
            return False
        document_ids, upto = corpus.changed_since(connection, collection_of(info), info.purged_seq, CHANGES_A_ROUND)
        upto = min(upto, info.applied_seq)
        stale = chunks.stale_chunks(
            connection, document_ids, info.chunking_id, purged=info.purged_seq, applied=info.applied_seq
        )
    if stale:
        index.hold()
        with work.timed("upsert"):
            index.points.delete(stale)
        with work.timed("flush"):
            index.points.flush()
        work.deleted += len(stale)
    with database.write() as connection:
        indexes.set_purged(connection, info.id, upto)
    return True


def grouped(items: Iterable[Item], size: int) -> Generator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
