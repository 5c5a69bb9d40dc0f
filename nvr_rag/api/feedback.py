"""Feedback: what people said about hits, stored durably before it is acknowledged."""

from __future__ import annotations

from fastapi import APIRouter

from nvr_rag.access.callers import Scope
from nvr_rag.api.authorization import FeedbackCaller
from nvr_rag.api.dependencies import PartsOf
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import FeedbackAnswer, FeedbackBatch, FeedbackItem, FeedbackRequest
from nvr_rag.outside import record_outside
from nvr_rag.query_log import record_feedback
from nvr_rag.types import Feedback

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])


@router.post("", summary="Say something about hits", responses=problem_responses(404, 422, 503, body=True))
def send_feedback(body: FeedbackRequest, parts: PartsOf, caller: FeedbackCaller) -> FeedbackAnswer:
    """One word, or `items` with up to 1000 of them: all are stored, or none. Saying it twice is saying it once. Only
    those whom an answer was given may say something about it, unless it is a judgment from `outside`."""
    items = body.items if isinstance(body, FeedbackBatch) else [body]
    if any(item.outside for item in items):
        caller.check(Scope.TRAIN)
    shown = [_word(item) for item in items if not item.outside]
    judged = [_word(item) for item in items if item.outside]
    with parts.workspace.database.write() as connection:
        new = record_feedback(connection, shown, asker=caller.asker) + record_outside(connection, judged, caller)
    parts.workspace.meter.judged(item.kind for item in items)
    return FeedbackAnswer(accepted=len(items), new=new)


def _word(item: FeedbackItem) -> Feedback:
    return Feedback(**item.model_dump(exclude={"outside"}))
