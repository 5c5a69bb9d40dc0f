"""From a query to hits: encode, ask the index for candidates, fuse, and let the log decide what is shown.

Queries enter, results leave; it knows no HTTP and writes nothing (logging is the caller's job). The index proposes, the
log disposes: candidates are ids, and their text comes from the log under the visibility rule of `chunks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from nvr_rag import deployments, indexes
from nvr_rag.chunks import PlacedChunk, View
from nvr_rag.db.session import Database
from nvr_rag.deployments import Deployment
from nvr_rag.errors import IndexClosed, NotFound, StoreError
from nvr_rag.filters import Filter, parse_filter
from nvr_rag.indexes import LiveIndex
from nvr_rag.searching.candidates import Asked, Candidates, encode, propose
from nvr_rag.searching.hydration import SLACK, visible
from nvr_rag.searching.limits import MAX_K, MAX_QUERY_CHARACTERS, check_query
from nvr_rag.storable import storable
from nvr_rag.types import DeploymentRef, Hit, Query, SearchResult

__all__ = ["MAX_K", "MAX_QUERY_CHARACTERS", "Retriever", "check_query"]

_REOPENED = 3  # times that a search is done again because its index was closed under it: it may be rebuilt
_MOVES = 3  # times that a search is done again because its index was advanced meanwhile


class Retriever:
    """Searches collections through the deployments that serve them. Safe to share between threads."""

    def __init__(self, database: Database, open_index: Callable[[int], LiveIndex]) -> None:
        """`open_index` gives the open index with an id, opening it the first time."""
        self._database = database
        self._open_index = open_index

    def search(self, query: Query, *, deployment_id: int | None = None) -> SearchResult:
        """At most `query.k` hits, best first; ties by chunk id. The serving deployment answers, or the one asked for.

        Scores are the side's own in dense (inner product) and lexical (BM25) mode, fused ones in hybrid mode. Raises
        InvalidInput, InvalidFilter, NotFound (collection), StoreBusy and StoreUnavailable (retry), IndexMissing and
        IndexDamaged until the index is repaired.
        """
        check_query(query)
        where = parse_filter(query.filter)
        deployment, since = self._deployment(query, deployment_id)
        reopened = 0
        while True:
            try:
                return self._search(query, where, deployment, since)
            except (StoreError, NotFound) as error:
                # Another deployment may serve by now, and the index of this one be gone, or have been opened anew.
                asked = deployment.id
                deployment, since = self._deployment(query, deployment_id)
                if deployment.id == asked:
                    if not isinstance(error, IndexClosed) or reopened == _REOPENED:
                        raise
                    reopened += 1

    def _deployment(self, query: Query, deployment_id: int | None) -> tuple[Deployment, int]:
        """Who is to answer, and how far its index is."""
        with self._database.read() as connection:
            if deployment_id is None:
                deployment = deployments.serving(connection, query.collection)
            else:
                deployment = deployments.get(connection, deployment_id)
            return deployment, indexes.answers_at(connection, deployment.index_id)

    def _search(self, query: Query, where: Filter | None, deployment: Deployment, since: int) -> SearchResult:
        index = self._open_index(deployment.index_id)
        mode = query.mode or deployment.mode
        started = time.perf_counter()
        asked = encode(index, storable(query.text), mode, where)
        encoded = time.perf_counter()
        hits, since, seconds = self._hits(index, deployment, query, asked, since)
        ref = DeploymentRef(
            id=deployment.id,
            collection_id=deployment.collection_id,
            index=index.info.name,
            encoder=index.info.encoder,
            mode=deployment.mode,
            applied_seq=since,
        )
        return SearchResult(hits=hits, deployment=ref, mode=mode, seconds={"encode": encoded - started, **seconds})

    def _hits(
        self, index: LiveIndex, deployment: Deployment, query: Query, asked: Asked, since: int
    ) -> tuple[list[Hit], int, dict[str, float]]:
        """Go deeper until k hits are visible or nothing is left; with them the applied_seq that they were seen at.

        An index that stood still while it was asked gives the exact answer, so one that moved is asked again.
        """
        fused = asked.dense is not None and asked.lexical is not None
        # Both sides together have more than one alone: k makes no difference to what is fused until it must.
        depth = max(deployment.fusion.depth, query.k + SLACK) if fused else 2 * query.k + SLACK
        seconds = {"search": 0.0, "hydrate": 0.0}
        moves = 0
        while True:
            started = time.perf_counter()
            candidates = propose(index, deployment.fusion, asked, depth)
            searched = time.perf_counter()
            with self._database.read() as connection:
                until = indexes.answers_at(connection, index.info.id)
                moved = until != since and moves < _MOVES
                view = View(chunking_id=index.info.chunking_id, since=since, until=until, reader=query.reader)
                shown = [] if moved else visible(connection, candidates, query.k, view, asked.where)
            seconds["search"] += searched - started
            seconds["hydrate"] += time.perf_counter() - searched
            if moved:
                since, moves = until, moves + 1
            elif len(shown) >= query.k or candidates.exhausted:
                return [_hit(rank, *item, candidates) for rank, item in enumerate(shown, start=1)], since, seconds
            else:
                depth *= 4


def _hit(rank: int, chunk: PlacedChunk, score: float, candidates: Candidates) -> Hit:
    dense = candidates.dense.get(chunk.chunk_id)
    lexical = candidates.lexical.get(chunk.chunk_id)
    return Hit(
        rank=rank,
        score=score,
        chunk_id=chunk.chunk_id,
        text=chunk.text,
        document_id=chunk.document_id,
        uri=chunk.uri,
        title=chunk.title,
        media_type=chunk.media_type,
        metadata=chunk.metadata,
        headings=chunk.headings,
        page=chunk.page,
        start=chunk.start,
        end=chunk.end,
        dense_rank=dense[0] if dense else None,
        dense_score=dense[1] if dense else None,
        lexical_rank=lexical[0] if lexical else None,
        lexical_score=lexical[1] if lexical else None,
    )
