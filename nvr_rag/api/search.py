"""Search: the question in, hits out, logged before they leave."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from nvr_rag.api.dependencies import PartsOf
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import (
    DeploymentUsed,
    HitDocument,
    SearchAnswer,
    SearchHit,
    SearchRequest,
    SideRank,
    Took,
)
from nvr_rag.types import Hit, Query, SearchResult

router = APIRouter(prefix="/v1/search", tags=["search"])


@router.post(
    "",
    summary="Search a collection",
    response_model=SearchAnswer,
    responses=problem_responses(404, 422, 503, body=True),
)
def search(body: SearchRequest, parts: PartsOf) -> Response:
    """The best chunks of the collection. The query is in the log when the answer arrives; `query_id` names it."""
    query = Query(
        text=body.query,
        collection=body.collection,
        k=body.k,
        mode=body.mode,
        filter=body.filter,
        user=body.user,
        session=body.session,
    )
    result = parts.workspace.retriever.search(query)
    answer = _answer(parts.query_log.record(query, result), query, result)
    # Made into JSON here, in the worker thread; FastAPI would validate it again in another one.
    return Response(answer.model_dump_json(), media_type="application/json")


def _answer(query_id: str, query: Query, result: SearchResult) -> SearchAnswer:
    used = result.deployment
    return SearchAnswer(
        query_id=query_id,
        collection=query.collection,
        mode=result.mode,
        deployment=DeploymentUsed(
            id=used.id, index=used.index, encoder=used.encoder, mode=used.mode, applied_seq=used.applied_seq
        ),
        hits=[_hit(hit) for hit in result.hits],
        took_ms=Took(**{stage: round(1000 * seconds, 3) for stage, seconds in result.seconds.items()}),
    )


def _hit(hit: Hit) -> SearchHit:
    return SearchHit(
        rank=hit.rank,
        score=hit.score,
        chunk_id=hit.chunk_id,
        text=hit.text,
        document=HitDocument(
            id=hit.document_id,
            uri=hit.uri,
            title=hit.title,
            media_type=hit.media_type,
            metadata=dict(hit.metadata),
        ),
        headings=list(hit.headings),
        page=hit.page,
        start=hit.start,
        end=hit.end,
        dense=_side(hit.dense_rank, hit.dense_score),
        lexical=_side(hit.lexical_rank, hit.lexical_score),
    )


def _side(rank: int | None, score: float | None) -> SideRank | None:
    return None if rank is None or score is None else SideRank(rank=rank, score=score)
