"""Mirroring folders of the server: ask for it. The work is a job that a service does.

Only what lies in the allowed folders may be named, and nothing is told of what lies elsewhere. Whoever does the job
looks again: it may be on another machine, and a folder may have become a link meanwhile.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from nvr_rag import collections, idempotency, ids, jobs, roots
from nvr_rag.api.authorization import IngestCaller
from nvr_rag.api.dependencies import PartsOf
from nvr_rag.api.intake import IngestRequest
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import JobInfo
from nvr_rag.api.telling import info_of
from nvr_rag.api.uploads import Key
from nvr_rag.errors import Forbidden

KIND = "ingest"

router = APIRouter(prefix="/v1", tags=["documents"])


@router.post(
    "/ingest",
    status_code=202,
    summary="Mirror a folder of the server",
    responses=problem_responses(404, 409, 422, 503, body=True),
)
def ingest(body: IngestRequest, parts: PartsOf, caller: IngestCaller, response: Response, key: Key = None) -> JobInfo:
    """Store what is new in it, delete what has gone. One job at a time for a folder, and for what lies in it."""
    caller.check_collection(body.collection)
    if not caller.knows_all:
        raise Forbidden(
            "mirroring a folder replaces and deletes documents whoever may read them; it takes a key that reads "
            "everything (nvr-rag keys create NAME --scope ingest --everything), or send the files as uploads"
        )
    workspace = parts.workspace
    path = str(roots.allowed(body.path, workspace.settings.ingest.roots))
    payload = {**body.model_dump(include={"include", "exclude", "allow_empty"}), "source": path}
    for service in parts.services:
        if KIND in service.job_kinds:
            service.check(workspace, KIND, payload)
    with workspace.database.write() as connection:
        asked = {"ingest": {**payload, "collection": body.collection}}
        known = idempotency.begin(connection, key, ids.sha256_json(asked), caller.asker) if key else None
        if known is None:
            # Its id alone would not tell it from another one that is made under its name.
            payload["made"] = collections.info(connection, body.collection).created_at.isoformat()
            job_id = jobs.add_alone(connection, KIND, body.collection, payload, by=caller)
        else:
            job_id = int(known["job"])
        if key and known is None:
            idempotency.answered(connection, key, {"job": job_id}, caller.asker)
    response.headers["Location"] = f"{router.prefix}/jobs/{job_id}"
    return info_of(jobs.get(workspace.database, job_id), caller)
