"""What is told of an index while it is brought up with the log: to whoever watches, and now and then in its row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvr_rag import indexes
from nvr_rag.db.session import Database
from nvr_rag.upkeep import pace
from nvr_rag.upkeep.pace import Pace
from nvr_rag.upkeep.rounds import Round
from nvr_rag.upkeep.writing import Work

TELL_SECONDS = 1.0  # between two words in the row on how a build goes, within a round


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where an index stands, told after every group of chunks."""

    applied_seq: int
    head_seq: int
    work: Work = field(default_factory=Work)
    pace: Pace | None = None


Report = Callable[[Progress], None]


class Clock:
    """Tells how rounds go, one after another. For one thread at a time."""

    def __init__(self, database: Database, first: Round, work: Work, report: Report | None) -> None:
        self._database, self._work, self._report = database, work, report
        self._stretch = pace.resumed(first.info.progress, first.since)
        self._written, self._told = work.written, time.monotonic()
        self._spent = dict(work.seconds)

    def tell(self, of: Round, *, surely: bool = False) -> None:
        """A group of a round is written."""
        self._count()
        if surely or time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            with self._database.write(durable=False) as connection:
                indexes.tell_progress(connection, of.info.id, self._stretch.as_json())
        self._say(of.since, of.head)

    def ended(self, of: Round) -> dict[str, Any] | None:
        """A round is done; what the row is to say of the build: nothing once it is level with the log."""
        self._count()
        self._say(of.upto, of.head)
        return self._stretch.as_json() if of.upto < of.head else None

    def _count(self) -> None:
        spent = dict(self._work.seconds)
        new = {stage: seconds - self._spent[stage] for stage, seconds in spent.items()}
        self._stretch = self._stretch.wrote(self._work.written - self._written, new)
        self._written, self._spent = self._work.written, spent

    def _say(self, applied_seq: int, head: int) -> None:
        if self._report:
            going = pace.pace(self._stretch.as_json(), applied_seq, head)
            self._report(Progress(applied_seq=applied_seq, head_seq=head, work=self._work, pace=going))
