"""Retraining: ask for a lap of the feedback loop. The work is a job that a service does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from nvr_rag import jobs
from nvr_rag.api.authorization import TrainCaller
from nvr_rag.api.dependencies import Parts, PartsOf
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import JobInfo, RetrainRequest
from nvr_rag.api.telling import info_of, is_seen
from nvr_rag.errors import Conflict, JobThere
from nvr_rag.ids import new_id
from nvr_rag.running import processes

KIND = "retrain"

router = APIRouter(prefix="/v1", tags=["retraining"])


@router.post(
    "/retrain",
    status_code=202,
    summary="Retrain a collection",
    responses=problem_responses(404, 409, 422, 503, body=True),
)
def retrain(body: RetrainRequest, parts: PartsOf, caller: TrainCaller, response: Response) -> JobInfo:
    """Begin a lap: mine, train, build an index beside the live one, and let the gate decide. One at a time."""
    caller.check_collection(body.collection)
    payload = {
        "run": new_id(),
        "recipe": body.recipe,
        "rule": body.rule,
        "dry_run": body.dry_run,
        "promote": body.promote,
    }
    _check(parts, {**payload, "collection": body.collection})
    database = parts.workspace.database
    try:
        job_id = jobs.enqueue_alone(database, KIND, body.collection, payload, by=caller)
    except JobThere as error:
        if is_seen(jobs.get(database, error.job_id), caller):
            raise
        raise Conflict(error.without_job) from error
    response.headers["Location"] = f"{router.prefix}/jobs/{job_id}"
    return info_of(jobs.get(database, job_id), caller)


def _check(parts: Parts, payload: Mapping[str, Any]) -> None:
    """Raise Conflict where nobody trains, InvalidInput for a recipe that is not there, as far as it is known here."""
    own = [service for service in parts.services if KIND in service.job_kinds]
    if not own and not any(one.job_kinds for one in processes.taking(parts.workspace.database, KIND)):
        raise Conflict(
            "this server cannot train, and no worker does: install 'nvr-rag[training]' where it runs, and restart it, "
            "or start nvr-rag worker --kinds train where it is installed"
        )
    for service in own:
        service.check(parts.workspace, KIND, payload)
