"""Search: questions in, hits out, logged before they leave; and chunks by their ids."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Query as Parameter
from starlette.responses import Response

from nvr_rag.access.callers import Caller
from nvr_rag.api.authorization import SearchCaller
from nvr_rag.api.dependencies import InCollection, Parts, PartsOf
from nvr_rag.api.limits import Identifier
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.search_schemas import (
    MAX_HITS,
    ChunkAnswer,
    DeploymentUsed,
    HitContext,
    HitDocument,
    HitExplanation,
    SearchAnswer,
    SearchAnswers,
    SearchBatch,
    SearchHit,
    SearchRequest,
    SideRank,
    StageRank,
    Took,
)
from nvr_rag.errors import InvalidInput
from nvr_rag.searching.limits import MAX_CONTEXT, numbered
from nvr_rag.types import Context, Explanation, Hit, Mmr, Passage, Query, SearchResult, Standing

router = APIRouter(prefix="/v1", tags=["search"])


@router.post(
    "/search",
    summary="Search a collection",
    response_model=SearchAnswer,
    responses=problem_responses(404, 422, 503, body=True),
)
def search(body: SearchRequest, parts: PartsOf, caller: SearchCaller) -> Response:
    """The best chunks of the collection. The query is in the log when the answer arrives; `query_id` names it."""
    query = _query(body, caller)
    result = parts.workspace.retriever.search(query, deadline=_deadline(parts))
    return _json(_answer(parts.query_log.record(query, result), query, result, caller))


@router.post(
    "/search/batch",
    summary="Several searches at once",
    response_model=SearchAnswers,
    responses=problem_responses(404, 422, 503, body=True),
)
def search_many(body: SearchBatch, parts: PartsOf, caller: SearchCaller) -> Response:
    """The answers in the order of the searches, or none of them: what is wrong with one names it, as searches[3].k."""
    hits = sum(one.k for one in body.searches)
    if hits > MAX_HITS:
        raise InvalidInput(
            f"the searches ask for {hits} hits together, and at most {MAX_HITS} go into one answer; send fewer "
            "searches at a time, or make their k smaller",
            field="searches",
        )
    queries = []
    for number, one in enumerate(body.searches):
        with numbered(number):
            queries.append(_query(one, caller))
    results = parts.workspace.retriever.search_many(queries, deadline=_deadline(parts))
    together = list(zip(queries, results, strict=True))
    ids = parts.query_log.record_many(together)
    answers = [_answer(query_id, *pair, caller) for query_id, pair in zip(ids, together, strict=True)]
    return _json(SearchAnswers(answers=answers))


@router.get(
    "/chunks/{chunk_id}",
    summary="One chunk as it stands now",
    response_model=ChunkAnswer,
    responses=problem_responses(404, 422, 503),
)
def chunk(
    chunk_id: Identifier,
    parts: PartsOf,
    caller: SearchCaller,
    collection: InCollection = "default",
    context: Annotated[
        int, Parameter(ge=0, le=MAX_CONTEXT, description="Join so many neighbouring chunks on each side.")
    ] = 0,
) -> Response:
    """What a search would show of it, with what a citation needs. After a change of its document it may be gone."""
    caller.check_collection(collection)
    found = parts.workspace.retriever.passage(collection, chunk_id, reader=caller.reader, context=context)
    return _json(ChunkAnswer(**_passage(found)))


def _query(body: SearchRequest, caller: Caller) -> Query:
    caller.check_collection(body.collection)
    return Query(
        text=body.query,
        collection=body.collection,
        k=body.k,
        mode=body.mode,
        filter=body.filter,
        group_by=body.group_by,
        context=body.context,
        mmr=Mmr(diversity=body.mmr.diversity, candidates=body.mmr.candidates) if body.mmr else None,
        min_score=body.min_score,
        rerank=body.rerank,
        explain=body.explain,
        user=body.user,
        session=body.session,
        reader=caller.reader,
        asker=caller.asker,
    )


def _deadline(parts: Parts) -> float:
    return time.monotonic() + parts.workspace.settings.api.timeout_seconds


def _json(answer: SearchAnswer | SearchAnswers | ChunkAnswer) -> Response:
    """Made into JSON here, in the worker thread; FastAPI would validate it again in another one."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _answer(query_id: str, query: Query, result: SearchResult, caller: Caller) -> SearchAnswer:
    used = result.deployment
    return SearchAnswer(
        query_id=query_id,
        collection=query.collection,
        mode=result.mode,
        deployment=DeploymentUsed(
            id=used.id,
            index=used.index,
            encoder=used.encoder,
            mode=used.mode,
            applied_seq=used.applied_seq if caller.knows_all else None,
        ),
        hits=[_hit(hit) for hit in result.hits],
        took_ms=Took(**{stage: round(1000 * seconds, 3) for stage, seconds in result.seconds.items()}),
    )


def _hit(hit: Hit) -> SearchHit:
    return SearchHit(
        **_passage(hit),
        rank=hit.rank,
        score=hit.score,
        dense=_side(hit.dense_rank, hit.dense_score),
        lexical=_side(hit.lexical_rank, hit.lexical_score),
        explain=_explanation(hit.explain),
    )


def _passage(found: Passage) -> dict[str, Any]:
    document = HitDocument(
        id=found.document_id,
        uri=found.uri,
        source=found.source,
        title=found.title,
        media_type=found.media_type,
        metadata=dict(found.metadata),
        sha256=found.sha256,
        updated_at=found.updated_at,
    )
    return {
        "chunk_id": found.chunk_id,
        "text": found.text,
        "document": document,
        "headings": list(found.headings),
        "page": found.page,
        "start": found.start,
        "end": found.end,
        "context": _context(found.context),
    }


def _context(around: Context | None) -> HitContext | None:
    if around is None:
        return None
    return HitContext(before=around.before, after=around.after, start=around.start, end=around.end)


def _explanation(why: Explanation | None) -> HitExplanation | None:
    if why is None:
        return None
    stages = {name: _stage(getattr(why, name)) for name in ("dense", "lexical", "fused", "rerank", "mmr")}
    return HitExplanation(**stages, weights=None if why.weights is None else dict(why.weights))


def _stage(standing: Standing | None) -> StageRank | None:
    return None if standing is None else StageRank(rank=standing.rank, score=standing.score)


def _side(rank: int | None, score: float | None) -> SideRank | None:
    return None if rank is None or score is None else SideRank(rank=rank, score=score)
