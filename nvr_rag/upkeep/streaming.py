"""Rounds of an index, one after another without a gap: the encoder goes on while everything else is done beside it.

A second thread looks up the next group of chunks, stores the last one, and ends rounds, strictly in this order:

    look up a | look up b | look up c | store a | look up d | store b | end the round of a and b | look up e ...
                encode a -----------------------| encode c -------------------------- ...
                            encode b ---------------------| encode d ---------------- ...

So what a round is said to have is in the store for good before its number advances, and nothing of the next one is
stored before that. The next one is however looked up before, and must not see what the one before it is about to
change: rounds that touch the same document never overlap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from nvr_rag.chunkings import Chunker
from nvr_rag.chunks import PlacedChunk
from nvr_rag.db.session import Database
from nvr_rag.indexes import LiveIndex
from nvr_rag.upkeep import rounds, writing
from nvr_rag.upkeep.aside import Aside
from nvr_rag.upkeep.encoding import Encoding
from nvr_rag.upkeep.progress import Clock, Report
from nvr_rag.upkeep.rounds import Round
from nvr_rag.upkeep.writing import Group, Work

LOOK_SECONDS = 0.2  # after which there may be more to do, while a group is encoded; then twice as long each time


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An index that is to follow its log, and with what."""

    database: Database
    index: LiveIndex
    chunker: Chunker
    work: Work
    report: Report | None = None
    stop: threading.Event | None = None

    def stopped(self) -> bool:
        """Whether somebody wants it to end."""
        return self.stop is not None and self.stop.is_set()


def stream(job: Job, end: Callable[[Round, Clock], None], *, most: int | None = None) -> bool:
    """Apply round after round, `most` of them at most, until the index has everything, `stop` is set, or somebody
    waits for the index; True when there were any. Each that is stored is given to `end`.

    What ends it early costs only what was not stored yet.
    """
    line = _Line(job, end, most)
    with closing(line), Aside("indexing") as aside, Encoding(job.index, job.work, aside) as encoding:
        pause = LOOK_SECONDS
        while (step := aside.do(line.next).result()) is not None or encoding.wait(pause):
            pause = LOOK_SECONDS if step is not None else 2 * pause
            for done in step.ended if step is not None else ():
                encoding.then(partial(line.end, done))
            if step is not None and step.group is not None:
                encoding.make_room()
                if not job.stopped():  # then this one is left to the next run
                    encoding.begin(step.group, partial(line.store, step))
            del step
    return line.begun > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """What comes next: the rounds all groups of which came before, and a group, looked up."""

    ended: Sequence[Round] = ()
    group: Group | None = None
    of: Round | None = None  # of the group


@dataclass(kw_only=True, slots=True)
class _Open:
    """A round whose groups are handed out."""

    round: Round
    groups: Generator[list[PlacedChunk]]
    any: bool = False  # were handed out


class _Line:
    """The second thread's part, step by step."""

    def __init__(self, job: Job, end: Callable[[Round, Clock], None], most: int | None) -> None:
        self.begun = 0  # rounds
        self._job, self._end, self._most = job, end, most
        self._open: _Open | None = None
        self._since: int | None = None  # up to which change rounds were begun
        self._touched: set[str] = set()  # documents of rounds that were begun and are not ended
        self._clock: Clock | None = None

    def next(self) -> _Step | None:
        """The next step; None when there is none."""
        job, ended = self._job, list[Round]()
        while not job.stopped() and (opened := self._open or self._begin()) is not None:
            chunks = next(opened.groups, None)
            if chunks is not None:
                opened.any = True
                group = writing.look_up(job.database, job.index, chunks, job.work)
                return _Step(ended=ended, group=group, of=opened.round)
            self._open = None
            ended.append(opened.round)
            if not opened.any:  # many that only delete must not wait for a group to come
                break
        return _Step(ended=ended) if ended else None

    def _begin(self) -> _Open | None:
        """The next round, if it may be begun now."""
        job = self._job
        if self.begun == self._most or (self.begun and job.index.maintenance.wanted):
            return None
        with job.work.timed("database"):
            found = rounds.next_round(job.database, job.index, job.work, since=self._since)
        if found is None or not self._touched.isdisjoint(found.document_ids):
            return None
        if self._clock is None:
            self._clock = Clock(job.database, found, job.work, job.report)
        self.begun, self._since = self.begun + 1, found.upto
        self._touched |= found.document_ids
        groups = rounds.groups(job.database, job.index, found, job.chunker, job.work)
        self._open = _Open(round=found, groups=groups)
        return self._open

    def close(self) -> None:
        """Hand out no more: the groups that are left hold a connection."""
        if self._open is not None:
            self._open.groups.close()

    def store(self, step: _Step) -> None:
        """Write a group that is encoded."""
        assert step.group is not None
        assert step.of is not None
        assert self._clock is not None
        writing.store(self._job.index, step.group, self._job.work)
        self._clock.tell(step.of)

    def end(self, done: Round) -> None:
        """A round is stored."""
        assert self._clock is not None
        self._end(done, self._clock)
        self._touched -= done.document_ids
