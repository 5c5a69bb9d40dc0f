"""The candidates among which an answer is chosen: the index is asked, and the log says what of it may be shown.

An index that stood still while it was asked gives the exact answer, so one that moved is asked again, a few times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from nvr_rag.chunks import View
from nvr_rag.db.session import Database
from nvr_rag.filters import And, Filter, In, Not
from nvr_rag.fusion import FusionSettings
from nvr_rag.indexes import LiveIndex
from nvr_rag.searching import hydration
from nvr_rag.searching.candidates import Asked, Candidates, Sides, ask, permitted, rank
from nvr_rag.searching.explaining import Beyond, look_beyond
from nvr_rag.searching.footing import Footing, footing
from nvr_rag.searching.hydration import SLACK, Shown, Wanted
from nvr_rag.searching.timing import Watch
from nvr_rag.stores.base import Vector
from nvr_rag.types import Query, Reader

_MOVES = 3  # times that a search is done again because its index was advanced meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A query that was checked, and how it is gone about."""

    query: Query
    where: Filter | None  # the query's own
    pool: int  # candidates that may be shown among which the answer is chosen
    watch: Watch

    def wanted(self, *, level: bool) -> Wanted:
        """Of an index that is level with the log nearly all candidates may be shown."""
        slack = 0 if level and self.query.group_by is None else SLACK
        return Wanted(count=self.pool, where=self.where, group_by=self.query.group_by, least=self.least, slack=slack)

    @property
    def enough(self) -> int:
        """So many, and it is not gone deeper: documents are further apart than chunks."""
        return self.pool if self.query.group_by is None else self.query.k

    @property
    def least(self) -> float | None:
        """The score of the ranking to reach; the cross-encoder's are others."""
        return None if self.query.rerank else self.query.min_score

    @property
    def reader(self) -> Reader:
        return self.query.reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """What may be shown, best first, and what the index says of it."""

    shown: Sequence[Shown]
    candidates: Candidates
    seq: int  # of the index when it was seen
    vectors: Mapping[str, Vector] = field(default_factory=dict)  # by chunk id, where they are needed
    beyond: Beyond = field(default_factory=Beyond)
    whole: bool = True  # the index had all of them when it was asked for more


class Pooling:
    """One index, asked for one task until there is enough or nothing left."""

    def __init__(self, database: Database, index: LiveIndex, fusion: FusionSettings, task: Task, asked: Asked) -> None:
        self._database, self._index, self._fusion, self._task, self._asked = database, index, fusion, task, asked

    def run(self, since: Footing) -> Pool:
        """Deeper and deeper; `since` is what the index stood on before it was asked. Raises TimedOut."""
        depth, moves = self._depth(), 0
        while True:
            with self._task.watch.timed("search"):
                # A restriction may have come and gone while the index moved.
                where = permitted(self._task.where, self._task.reader, since.restricted or moves > 0)
                sides = ask(self._index, self._asked, where, depth)
                candidates = rank(sides, self._asked, self._fusion)
            with self._task.watch.timed("hydrate"), self._database.read() as connection:
                until = footing(connection, self._index.info.id)
                if until.seq != since.seq and moves < _MOVES:
                    since, moves = until, moves + 1
                    continue
                candidates, shown = self._see(connection, sides, candidates, (since, until))
            if len(shown) < self._task.enough and not self._over(candidates, shown, where):
                depth *= 4
                continue
            pool = self._furnished(Pool(shown=shown, candidates=candidates, seq=since.seq))
            if pool.whole or moves == _MOVES:
                return pool
            moves += 1  # it has let go of what it has just proposed

    def _depth(self) -> int:
        # Both sides together have more than one alone: k makes no difference to what is fused until it must.
        pool = self._task.pool
        return max(self._fusion.depth, pool + SLACK) if self._asked.fused else 2 * pool + SLACK

    def _see(
        self, connection: Connection, sides: Sides, candidates: Candidates, during: tuple[Footing, Footing]
    ) -> tuple[Candidates, list[Shown]]:
        """What may be shown. Ranks and scores that are told must not count what may not be, which the index cannot
        know of while it lags or is of the release before: then both sides are ranked anew."""
        since, until = during
        task, known = self._task, None
        view = View(chunking_id=self._index.info.chunking_id, since=since.seq, until=until.seq, reader=task.reader)
        ids = sides.ids()
        if not task.reader.everything and _may_hide(connection, ids, during):
            known = hydration.allowed(connection, ids, task.where, view)
            candidates = rank(sides.only(known), self._asked, self._fusion)
        wanted = task.wanted(level=until.level)
        return candidates, hydration.visible(connection, candidates.ranked, wanted, view, known)

    def _over(self, candidates: Candidates, shown: Sequence[Shown], where: Filter | None) -> bool:
        """Nothing that is wanted lies deeper."""
        least, ranked = self._task.least, candidates.ranked
        if candidates.exhausted or (least is not None and bool(ranked) and ranked[-1][1] < least):
            return True
        return self._task.query.group_by is not None and bool(shown) and not self._more_documents(shown, where)

    def _more_documents(self, shown: Sequence[Shown], where: Filter | None) -> bool:
        """Whether any other document answers at all: or a few long ones are gone through to their ends for nothing."""
        seen = Not(part=In(field="document_id", values=tuple(item.chunk.document_id for item in shown)))
        with self._task.watch.timed("search"):
            others = ask(self._index, self._asked, seen if where is None else And(parts=(where, seen)), 1)
        return bool(others.dense or others.lexical)

    def _furnished(self, pool: Pool) -> Pool:
        """With what later steps need of the index."""
        query = self._task.query
        if query.mmr is None and not query.explain:
            return pool
        with self._task.watch.timed("search"):
            chunks = [item.chunk for item in pool.shown]
            points = self._index.points.get([chunk.chunk_id for chunk in chunks], with_vectors=True)
            vectors = {key: point.dense for key, point in points.items() if point.dense is not None}
            beyond = look_beyond(self._index, self._asked, pool.candidates, chunks, vectors) if query.explain else None
        whole = len(points) == len(chunks)
        return replace(pool, vectors=vectors, beyond=beyond or Beyond(), whole=whole)


def _may_hide(connection: Connection, ids: Sequence[str], during: tuple[Footing, Footing]) -> bool:
    """Whether an index may have proposed what is not for everybody without knowing it: while it moves or lags, and
    while it still has what the release before wrote, where what nobody may read looks like what everybody may.
    Where nothing is restricted any more, it may still show a version that is."""
    since, until = during
    restricted, moved = since.restricted or until.restricted, since.seq != until.seq
    if restricted and (moved or not since.painted):
        return True
    if until.level and not moved:
        return False
    return hydration.any_unsettled(connection, until.collection_id, ids, since.seq, once_restricted=not restricted)
