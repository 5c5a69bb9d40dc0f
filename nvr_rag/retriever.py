"""From a query to hits: encode, ask the index for candidates, fuse, and let the log decide what is shown.

Queries enter, results leave; it knows no HTTP and writes nothing (logging is the caller's job). The index proposes, the
log disposes: candidates are ids, and their text comes from the log under the visibility rule of `chunks`. The steps
stand in `nvr_rag.searching`:

    the ranking of what may be shown  >  of each document its best  >  reranked  >  cut at min_score  >  made diverse  >
    the first k  >  with what stands around them, and why
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvr_rag import chunks, deployments, indexes
from nvr_rag.chunks import View
from nvr_rag.db.session import Database
from nvr_rag.deployments import Deployment
from nvr_rag.errors import IndexClosed, InvalidFilter, InvalidInput, NotFound, StoreError
from nvr_rag.filters import MAX_VALUES, listed_values, parse_filter
from nvr_rag.indexes import LiveIndex
from nvr_rag.searching import hits, ordering
from nvr_rag.searching.candidates import Asked, encode
from nvr_rag.searching.context import Neighbours, around
from nvr_rag.searching.explaining import explain, sides
from nvr_rag.searching.footing import Footing, footing
from nvr_rag.searching.limits import (
    MAX_K,
    MAX_QUERY_CHARACTERS,
    check_context,
    check_query,
    numbered,
)
from nvr_rag.searching.ordering import Ordered
from nvr_rag.searching.pooling import Pool, Pooling, Task
from nvr_rag.searching.timing import Watch
from nvr_rag.storable import storable
from nvr_rag.stores.base import Vector
from nvr_rag.types import Context, DeploymentRef, Explanation, Hit, Mode, Passage, Query, Reader, SearchResult
from nvr_rag.upkeep import painting

if TYPE_CHECKING:
    from nvr_rag.reranking import Reranker

__all__ = ["MAX_K", "MAX_QUERY_CHARACTERS", "Retriever", "check_query"]

RERANK_DEPTH = 50  # candidates that are reranked, where nobody says how many
_REOPENED = 3  # times that a search is done again because its index was closed under it: it may be rebuilt


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Who is to answer, and what that stood on when it was looked up."""

    deployment: Deployment
    footing: Footing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoded:
    """The dense vector of a query, made before."""

    encoder: str  # fingerprint
    vector: Vector


class Retriever:
    """Searches collections through the deployments that serve them. Safe to share between threads."""

    def __init__(
        self,
        database: Database,
        open_index: Callable[[int], LiveIndex],
        *,
        reranker: Callable[[], Reranker | None] = lambda: None,
        rerank_depth: int = RERANK_DEPTH,
    ) -> None:
        """`open_index` gives the open index with an id, opening it the first time; `reranker` the cross-encoder, if
        there is one, which puts the first `rerank_depth` candidates in order."""
        self._database = database
        self._open_index = open_index
        self._reranker = reranker
        self._rerank_depth = rerank_depth

    def search(self, query: Query, *, deployment_id: int | None = None, deadline: float | None = None) -> SearchResult:
        """At most `query.k` hits, best first; ties by chunk id. The serving deployment answers, or the one asked for.

        Scores are the side's own in dense (inner product) and lexical (BM25) mode, fused ones in hybrid mode, and the
        cross-encoder's where that was asked. Raises InvalidInput, InvalidFilter, NotFound (collection), TimedOut once
        time.monotonic() is past the deadline, StoreBusy and StoreUnavailable (retry), IndexMissing and IndexDamaged
        until the index is repaired.
        """
        task = self._task(query, deadline)
        return self._answer(task, self._place(query.collection, deployment_id), deployment_id)

    def search_many(self, queries: Sequence[Query], *, deadline: float | None = None) -> list[SearchResult]:
        """The answers to several queries, which are encoded together. Raises as `search`: all are answered, or none;
        what is wrong with one names it, as searches[3].k."""
        tasks, places, values = [], [], 0
        for number, query in enumerate(queries):
            with numbered(number):
                tasks.append(self._task(query, deadline))
                values += listed_values(tasks[-1].where)
                if values > MAX_VALUES:
                    raise InvalidFilter(
                        f'the "in" lists of all filters together have at most {MAX_VALUES} values; send fewer searches '
                        "at a time"
                    )
                places.append(self._place(query.collection, None))
        encoded = self._encode_together(tasks, places)
        return [self._answer(tasks[i], places[i], None, encoded.get(i)) for i in range(len(tasks))]

    def passage(self, collection: str, chunk_id: str, *, reader: Reader, context: int = 0) -> Passage:
        """A chunk as a search would show it now, with its neighbours. Raises NotFound, InvalidInput."""
        check_context(context)
        with self._database.read() as connection:
            deployment = deployments.serving(connection, collection)
            index = indexes.get(connection, deployment.index_id)
            seq = indexes.answers_at(connection, index.id)
            view = View(chunking_id=index.chunking_id, since=seq, until=seq, reader=reader)
            held = chunks.held(connection, deployment.collection_id, index.chunking_id, seq, [chunk_id])
            for chunk in chunks.visible(connection, sorted(held), view):
                wanted = Neighbours(chunking_id=index.chunking_id, count=context, reader=reader)
                beside = around(connection, [chunk], wanted)[0] if context else None
                return hits.passage(chunk, beside)
        raise NotFound(f"no chunk {chunk_id[:80]!r} in the collection; its document may have changed: search again")

    def _task(self, query: Query, deadline: float | None) -> Task:
        check_query(query)
        where = parse_filter(query.filter)
        pool = query.k
        if query.rerank:
            self._cross_encoder()
            pool = max(pool, self._rerank_depth)
        elif query.mmr is not None:
            pool = max(pool, query.mmr.candidates)
        return Task(query=query, where=where, pool=pool, watch=Watch(deadline))

    def _cross_encoder(self) -> Reranker:
        found = self._reranker()
        if found is None:
            raise InvalidInput(
                "there is no reranker here: set NVR_RERANKER to the directory or the hub id of a cross-encoder and "
                "start again, or leave rerank out",
                field="rerank",
            )
        return found

    def _place(self, collection: str, deployment_id: int | None) -> _Place:
        with self._database.read() as connection:
            if deployment_id is None:
                deployment = deployments.serving(connection, collection)
            else:
                deployment = deployments.get(connection, deployment_id)
            return _Place(deployment=deployment, footing=footing(connection, deployment.index_id))

    def _encode_together(self, tasks: Sequence[Task], places: Sequence[_Place]) -> dict[int, _Encoded]:
        """The dense vectors of the queries by position, in one call of the encoder for each index. Those of an index
        that cannot be opened are left out: whoever answers meets the same, and knows what to do."""
        groups: dict[int, list[int]] = {}
        for position, (task, place) in enumerate(zip(tasks, places, strict=True)):
            if (task.query.mode or place.deployment.mode) != Mode.LEXICAL:
                groups.setdefault(place.deployment.index_id, []).append(position)
        encoded: dict[int, _Encoded] = {}
        for index_id, positions in groups.items():
            with suppress(StoreError, NotFound), tasks[positions[0]].watch.timed("encode"):
                encoder = self._open_index(index_id).encoder
                vectors = encoder.encode_queries([storable(tasks[position].query.text) for position in positions])
                made = [_Encoded(encoder=encoder.fingerprint, vector=vector) for vector in vectors]
                encoded.update(zip(positions, made, strict=True))
        return encoded

    def _answer(
        self, task: Task, place: _Place, deployment_id: int | None, encoded: _Encoded | None = None
    ) -> SearchResult:
        reopened = 0
        while True:
            try:
                return self._attempt(task, place, encoded)
            except (StoreError, NotFound) as error:
                # Another deployment may serve by now, and the index of this one be gone, or have been opened anew.
                asked = place.deployment.id
                place = self._place(task.query.collection, deployment_id)
                if place.deployment.id == asked:
                    if not isinstance(error, IndexClosed) or reopened == _REOPENED:
                        raise
                    reopened += 1

    def _attempt(self, task: Task, place: _Place, encoded: _Encoded | None) -> SearchResult:
        deployment, query = place.deployment, task.query
        index = self._open_index(deployment.index_id)
        painting.check(self._database, index, task.where)
        mode = query.mode or deployment.mode
        with task.watch.timed("encode"):
            same = encoded is not None and encoded.encoder == index.info.encoder
            known = encoded.vector if encoded is not None and same else None
            asked = encode(index, storable(query.text), mode, known)
        pool = Pooling(self._database, index, deployment.fusion, task, asked).run(place.footing)
        ref = DeploymentRef(
            id=deployment.id,
            collection_id=deployment.collection_id,
            index=index.info.name,
            encoder=index.info.encoder,
            mode=deployment.mode,
            applied_seq=pool.seq,
        )
        items = self._order(task, pool)
        contexts = self._around(task, index, items) if query.context else [None] * len(items)
        found = [
            self._hit(rank, item, beside, (deployment, task, asked, pool))
            for rank, (item, beside) in enumerate(zip(items, contexts, strict=True), start=1)
        ]
        return SearchResult(hits=found, deployment=ref, mode=mode, seconds=task.watch.seconds)

    def _order(self, task: Task, pool: Pool) -> Sequence[Ordered]:
        query, items = task.query, ordering.ranked(pool.shown)
        if query.rerank:
            items = ordering.reranked(self._cross_encoder(), query.text, items, task.watch)
        kept = ordering.at_least(items, query.min_score)
        if query.mmr is not None:
            kept = ordering.diverse(kept, pool.vectors, query.k, query.mmr)
        return kept[: query.k]

    def _around(self, task: Task, index: LiveIndex, items: Sequence[Ordered]) -> Sequence[Context | None]:
        wanted = Neighbours(chunking_id=index.info.chunking_id, count=task.query.context, reader=task.reader)
        with task.watch.timed("hydrate"), self._database.read() as connection:
            return around(connection, [item.chunk for item in items], wanted)

    def _hit(self, rank: int, item: Ordered, beside: Context | None, of: tuple[Deployment, Task, Asked, Pool]) -> Hit:
        deployment, task, asked, pool = of
        why: Explanation | None = None
        if task.query.explain:
            both = sides(item.chunk.chunk_id, asked, pool.candidates, pool.beyond)
            fusion = deployment.fusion if asked.fused else None
            why = explain(both, item.ranking, fusion, rerank=item.rerank, mmr=item.mmr)
        return hits.hit(rank, item, pool.candidates, context=beside, explain=why)
