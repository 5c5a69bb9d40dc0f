"""How an index follows the log: changes in, points out, and never a step that a crash could make wrong.

One round: cut what is new, encode what is new, upsert, flush, *then* advance `applied_seq`, *then* delete what went
stale and advance `purged_seq`. Every step may be repeated: upserts are idempotent, and a point whose hashes match is
left alone, so a round that died half-way costs only what it had not finished. No group of chunks is stored before its
chunks are in the log for good.

Rounds of an index that serves follow each other without a gap (see streaming.py); one that is only being built takes
turns, so that it keeps nobody waiting.
"""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import count

from nvr_rag import chunks, corpus, indexes
from nvr_rag.chunkings import Chunker
from nvr_rag.db.session import Database
from nvr_rag.indexes import LiveIndex
from nvr_rag.running import memory
from nvr_rag.upkeep import rounds
from nvr_rag.upkeep.progress import Clock, Report
from nvr_rag.upkeep.rounds import Round
from nvr_rag.upkeep.streaming import Job, stream
from nvr_rag.upkeep.writing import Work, collection_of, write_group

CHUNKS_A_TURN = 256  # of an index that must not keep others waiting


def catch_up(
    database: Database,
    index: LiveIndex,
    chunker: Chunker,
    *,
    report: Report | None = None,
    stop: threading.Event | None = None,
    turns: int | None = None,
) -> Work:
    """Apply and purge until the index has everything that the log has, or for so many short turns; `stop` ends it early
    between two groups."""
    work = Work()
    job = Job(database=database, index=index, chunker=chunker, work=work, report=report, stop=stop)
    for _ in count() if turns is None else range(turns):
        if job.stopped():
            break
        with index.maintenance:
            index.hold()
            moved = _follow(job) if turns is None else _turn(job)
        if job.stopped() or not moved:
            index.rest()
            break
    return work


def _follow(job: Job) -> bool:
    """Everything that there is, unless somebody wants the index meanwhile; False when there was nothing."""

    def end(done: Round, clock: Clock) -> None:
        _end_round(job, done, clock)
        _purge(job)

    purged = _purge(job)  # a round looks at what is there, and what is stale must have gone by then
    return stream(job, end) or purged


def _purge(job: Job) -> bool:
    """Purge everything that is applied; False when there was nothing."""
    found = False
    while not job.stopped() and purge_round(job.database, job.index, work=job.work):
        found = True
    return found


def _turn(job: Job) -> bool:
    moved = apply_turn(job, CHUNKS_A_TURN)
    purged = purge_round(job.database, job.index, work=job.work)
    return moved or purged


def apply_round(job: Job) -> bool:
    """Bring the next changes of the log into the index, and purge nothing; False when there are none or `stop` came
    first. What the job's `work` says of the rounds before decides how much one holds."""
    ended: list[Round] = []

    def end(done: Round, clock: Clock) -> None:
        _end_round(job, done, clock)
        ended.append(done)

    return stream(job, end, most=1) and bool(ended)


def apply_turn(job: Job, budget: int) -> bool:
    """The same, one group after another, until so many chunks are written, in the middle of a long document if need be:
    then nothing is advanced, and the next turn passes over what is there already."""
    work = job.work
    with work.timed("database"):
        found = rounds.next_round(job.database, job.index, None)
    if found is None:
        return False
    clock, before = Clock(job.database, found, work, job.report), work.written
    with closing(rounds.groups(job.database, job.index, found, job.chunker, work)) as groups:
        for group in groups:
            write_group(job.database, job.index, group, work)
            ends = work.written - before >= budget
            clock.tell(found, surely=ends)
            if job.stopped():
                return False
            if ends:
                return True
    _end_round(job, found, clock)
    return True


def _end_round(job: Job, done: Round, clock: Clock) -> None:
    with job.work.timed("flush"):
        job.index.points.flush()
    with job.work.timed("database"), job.database.write() as connection:
        applied = (done.since, done.upto)
        indexes.advance(connection, done.info.id, applied=applied, progress=clock.ended(done))
    memory.give_back()


def purge_round(database: Database, index: LiveIndex, *, work: Work) -> bool:
    """Delete what the next applied changes made stale; False when everything applied is purged."""
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
        if info.purged_seq >= info.applied_seq:
            return False
        document_ids, upto = corpus.changed_since(
            connection, collection_of(info), info.purged_seq, rounds.CHANGES_A_ROUND, until=info.applied_seq
        )
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
