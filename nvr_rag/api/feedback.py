"""Feedback: what people said about hits, stored durably before it is acknowledged."""

from __future__ import annotations

from fastapi import APIRouter

from nvr_rag.api.dependencies import PartsOf
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import FeedbackAnswer, FeedbackBatch, FeedbackRequest
from nvr_rag.query_log import record_feedback
from nvr_rag.types import Feedback

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])


@router.post("", summary="Say something about hits", responses=problem_responses(404, 422, 503, body=True))
def send_feedback(body: FeedbackRequest, parts: PartsOf) -> FeedbackAnswer:
    """One word, or `items` with up to 1000 of them: all are stored, or none. Saying it twice is saying it once."""
    items = body.items if isinstance(body, FeedbackBatch) else [body]
    words = [
        Feedback(query_id=item.query_id, kind=item.kind, chunk_id=item.chunk_id, grade=item.grade, user=item.user)
        for item in items
    ]
    with parts.workspace.database.write() as connection:
        new = record_feedback(connection, words)
    return FeedbackAnswer(accepted=len(words), new=new)
