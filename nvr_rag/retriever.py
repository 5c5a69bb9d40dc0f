"""From a query to hits: encode, ask the index for candidates, fuse, and let the log decide what is shown.

Queries enter, results leave; it knows no HTTP and writes nothing (logging is the caller's job). The index proposes, the
log disposes: candidates are ids, and their text comes from the log under the visibility rule of `chunks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from nvr_rag import chunks, deployments, indexes
from nvr_rag.chunks import PlacedChunk, View
from nvr_rag.db.session import Database
from nvr_rag.deployments import Deployment
from nvr_rag.errors import IndexClosed, InvalidInput, NotFound, StoreError
from nvr_rag.filters import Filter, matches, parse_filter
from nvr_rag.fusion import fuse
from nvr_rag.indexes import LiveIndex
from nvr_rag.storable import storable
from nvr_rag.stores.base import Scored, SparseVector, Vector
from nvr_rag.types import DeploymentRef, Hit, Mode, Query, SearchResult

MAX_K = 1000
MAX_QUERY_CHARACTERS = 10_000
_SLACK = 8  # candidates hydrated beyond k at first: a few are usually invisible while an index lags
_LOOKUP = 2000  # ids in one hydration
_REOPENED = 3  # times that a search is done again because its index was closed under it: it may be rebuilt
_MOVES = 3  # times that a search is done again because its index was advanced meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A query made ready for an index."""

    dense: Vector | None  # None = this side is not asked
    lexical: SparseVector | None
    where: Filter | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidates:
    """What both sides proposed to some depth, and the fused order."""

    ranked: Sequence[tuple[str, float]]  # (id, score), best first
    dense: Mapping[str, tuple[int, float]]  # id -> (rank, score)
    lexical: Mapping[str, tuple[int, float]]
    exhausted: bool  # no side has more


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
        asked = _encode(index, storable(query.text), mode, where)
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
        self, index: LiveIndex, deployment: Deployment, query: Query, asked: _Asked, since: int
    ) -> tuple[list[Hit], int, dict[str, float]]:
        """Go deeper until k hits are visible or nothing is left; with them the applied_seq that they were seen at.

        An index that stood still while it was asked gives the exact answer, so one that moved is asked again.
        """
        fused = asked.dense is not None and asked.lexical is not None
        # Both sides together have more than one alone: k makes no difference to what is fused until it must.
        depth = max(deployment.fusion.depth, query.k + _SLACK) if fused else 2 * query.k + _SLACK
        seconds = {"search": 0.0, "hydrate": 0.0}
        moves = 0
        while True:
            started = time.perf_counter()
            candidates = _search(index, deployment, asked, depth)
            searched = time.perf_counter()
            with self._database.read() as connection:
                until = indexes.answers_at(connection, index.info.id)
                moved = until != since and moves < _MOVES
                view = View(chunking_id=index.info.chunking_id, since=since, until=until, reader=query.reader)
                shown = [] if moved else _visible(connection, candidates, query.k, view, asked.where)
            seconds["search"] += searched - started
            seconds["hydrate"] += time.perf_counter() - searched
            if moved:
                since, moves = until, moves + 1
            elif len(shown) >= query.k or candidates.exhausted:
                return [_hit(rank, *item, candidates) for rank, item in enumerate(shown, start=1)], since, seconds
            else:
                depth *= 4


def check_query(query: Query) -> None:
    """Raise InvalidInput, naming the field, for a query outside the limits."""
    if not query.text.strip():
        raise InvalidInput("the query is empty; ask something", field="query")
    if len(query.text) > MAX_QUERY_CHARACTERS:
        raise InvalidInput(
            f"a query has at most {MAX_QUERY_CHARACTERS} characters, this one has {len(query.text)}; shorten it",
            field="query",
        )
    if not 1 <= query.k <= MAX_K:
        raise InvalidInput(f"k is a number from 1 to {MAX_K}, not {query.k}", field="k")


def _encode(index: LiveIndex, text: str, mode: Mode, where: Filter | None) -> _Asked:
    return _Asked(
        dense=index.encoder.encode_queries([text])[0] if mode != Mode.LEXICAL else None,
        lexical=index.lexical.encode_query(text) if mode != Mode.DENSE else None,
        where=where,
    )


def _search(index: LiveIndex, deployment: Deployment, asked: _Asked, depth: int) -> _Candidates:
    dense = index.points.search_dense(asked.dense, depth, asked.where) if asked.dense is not None else []
    lexical = index.points.search_lexical(asked.lexical, depth, asked.where) if asked.lexical is not None else []
    if asked.dense is None or asked.lexical is None:
        ranked = [(item.id, item.score) for item in (dense or lexical)]
    else:
        ranked = fuse(dense, lexical, deployment.fusion)
    return _Candidates(
        ranked=ranked,
        dense=_ranks(dense),
        lexical=_ranks(lexical),
        exhausted=len(dense) < depth and len(lexical) < depth,
    )


def _visible(
    connection: Connection, candidates: _Candidates, k: int, view: View, where: Filter | None
) -> list[tuple[PlacedChunk, float]]:
    """The first k candidates that may be shown, with their scores."""
    shown: list[tuple[PlacedChunk, float]] = []
    # When the index moved, a document's versions are told apart by all of its candidates; see _one_version.
    size = k + _SLACK if view.until == view.since else max(1, len(candidates.ranked))
    for start in range(0, len(candidates.ranked), size):
        part = candidates.ranked[start : start + size]
        found = _hydrate(connection, [key for key, _ in part], view)
        for key, score in part:
            chunk = found.get(key)
            if chunk is not None and matches(where, chunk.fields()):
                shown.append((chunk, score))
        if len(shown) >= k:
            break
    return shown[:k]


def _ranks(side: Iterable[Scored]) -> dict[str, tuple[int, float]]:
    return {item.id: (rank, item.score) for rank, item in enumerate(side, start=1)}


def _hydrate(connection: Connection, ids: Sequence[str], view: View) -> dict[str, PlacedChunk]:
    rows: list[PlacedChunk] = []
    for start in range(0, len(ids), _LOOKUP):
        rows += chunks.visible(connection, ids[start : start + _LOOKUP], view)
    return {row.chunk_id: row for row in _one_version(rows)}


def _one_version(rows: Sequence[PlacedChunk]) -> list[PlacedChunk]:
    """Of each document one version only.

    When the index never stood still during a search, both the version before and the one after may be allowed, and
    the store was seen at some moment between: it held all points of the one, of the other, or of both. The version that
    has most of the candidates was whole at that moment; when two have as many, the newer one.
    """
    support: dict[str, dict[int, int]] = {}
    for row in rows:
        versions = support.setdefault(row.document_id, {})
        versions[row.version_seq] = versions.get(row.version_seq, 0) + 1
    chosen = {key: max(seen, key=lambda seq: (seen[seq], seq)) for key, seen in support.items()}
    return [row for row in rows if row.version_seq == chosen[row.document_id]]


def _hit(rank: int, chunk: PlacedChunk, score: float, candidates: _Candidates) -> Hit:
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
