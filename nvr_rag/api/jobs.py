"""Jobs: what goes on in the background, looked at once or followed."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from nvr_rag import jobs
from nvr_rag.access.callers import Caller
from nvr_rag.api.authorization import JobCaller
from nvr_rag.api.dependencies import PartsOf
from nvr_rag.api.doorman import key_of
from nvr_rag.api.events import LAST, EventStream, events_of
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import JobInfo
from nvr_rag.api.telling import info_of, is_seen
from nvr_rag.db.session import Database
from nvr_rag.job_rows import Job, missing

MAX_JOB = 2**31 - 1  # what every engine's integer column can hold

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Number = Annotated[int, Path(ge=1, le=MAX_JOB)]


@router.get("/{job_id}", summary="See how far a job is", responses=problem_responses(404, 422, 503))
def get_job(job_id: Number, parts: PartsOf, caller: JobCaller) -> JobInfo:
    """Its state, how far it is, and in the end what came of it."""
    return info_of(_seen(parts.workspace.database, job_id, caller), caller)


_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {"type": "string", "contentMediaType": "application/json", "description": "A job, as GET answers it."},
        "id": {"type": "string"},
    },
}


@router.get(
    "/{job_id}/events",
    status_code=200,
    summary="Follow a job",
    response_class=EventStream,
    responses={
        200: {
            "description": "Server-sent events: the job as JSON, at once and whenever it has changed; the last one has "
            f"the id {LAST}, and `finished_at`.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {"description": "The Last-Event-ID says that it has ended: there is nothing to follow."},
        **problem_responses(404, 422, 503),
    },
)
async def follow_job(
    job_id: Number,
    request: Request,
    parts: PartsOf,
    caller: JobCaller,
    last_event_id: Annotated[str, Header(max_length=100, description="Sent by clients that connect again.")] = "",
) -> Response:
    """The same as a stream, until it has ended."""
    database = parts.workspace.database
    job = await run_in_threadpool(_seen, database, job_id, caller)
    if last_event_id == LAST and job.finished:
        return Response(status_code=204)
    key = key_of(request.headers)

    def look() -> Job:
        if parts.keyring.remembered(key) is None:
            parts.keyring.identify(key)  # a stream outlives no key
        return _seen(database, job_id, caller)

    parts.streams.enter(caller.key_id)
    told = events_of(look, job, caller, request.app.state.stopping.is_set)
    return EventStream(told, partial(parts.streams.leave, caller.key_id))


def _seen(database: Database, job_id: int, caller: Caller) -> Job:
    """A job. Raises NotFound, also where it is not for this caller."""
    job = jobs.get(database, job_id)
    if not is_seen(job, caller):
        raise missing(job_id)
    return job
