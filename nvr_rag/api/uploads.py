"""Uploads: POST /v1/documents with a form instead of JSON. Files in; a job that parses them out.

The same path takes two kinds of bodies, which the framework cannot tell apart: `ByShape` sends forms to a path of their
own. What was answered is durable: files are synced, and the job is there. A file's name tells its format, and names the
document where nothing else does; it never is a path.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nvr_rag import collections, deployments, idempotency, ids, indexes, jobs, uploads
from nvr_rag.access.callers import Caller
from nvr_rag.api.authorization import IngestCaller
from nvr_rag.api.dependencies import Parts, PartsOf
from nvr_rag.api.intake import UploadAnswer, UploadFields, UploadResult
from nvr_rag.api.receiving import FILE, MAX_FILES, Received, Receiver
from nvr_rag.db.session import Database
from nvr_rag.errors import DatabaseUnavailable, InvalidInput
from nvr_rag.jobs import Job
from nvr_rag.uploads import Folder, NewUpload

DOCUMENTS = "/v1/documents"
FORMS = f"{DOCUMENTS}#forms"  # no client can ask for it by mistake
POLL_SECONDS = 0.05
MAX_HEAD_BYTES = 2**20  # of a body beside its files

Key = Annotated[
    str | None,
    Header(
        alias=idempotency.FIELD,
        min_length=1,
        max_length=idempotency.MAX_KEY_CHARACTERS,
        pattern="^[!-~]+$",
        description="Sent again with the same body within a day, the request is answered as before and done once.",
    ),
]

router = APIRouter(tags=["documents"], include_in_schema=False)


def is_form(scope: Scope) -> bool:
    """Whether a request uploads something."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != DOCUMENTS:
        return False
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return bool(kind.lower().startswith(b"multipart/"))


class ByShape:
    """Sends forms to their route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "path": FORMS} if is_form(scope) else scope, receive, send)


@router.post(FORMS)
async def upload_documents(request: Request, parts: PartsOf, caller: IngestCaller, key: Key = None) -> Response:
    """Take files, durably; they are parsed by a job."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "files are sent as multipart/form-data, texts as application/json")
    folder = Folder(parts.workspace.home)
    mark = await run_in_threadpool(folder.mark)
    receiver = Receiver(folder, max_file_bytes=parts.workspace.settings.ingest.max_file_bytes)
    try:
        await receiver.receive(request)
        fields = _fields(receiver)
        caller.check_collection(fields.collection)
        new = [_new(file, fields, caller) for file in receiver.files]
        answer, again = await run_in_threadpool(_accept, parts.workspace.database, mark, new, fields, caller, key)
    except DatabaseUnavailable:
        raise  # whether it was committed is not known: what nobody needs is swept
    except BaseException:
        receiver.discard()
        raise
    if again:
        await run_in_threadpool(receiver.discard)
    return await _answer(parts, fields, caller, answer)


def _fields(receiver: Receiver) -> UploadFields:
    """What the form says. Raises RequestValidationError, InvalidInput."""
    try:
        fields = UploadFields.model_validate(receiver.fields)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error
    count = len(receiver.files)
    if not count:
        raise InvalidInput("file is required; with curl it is: --form file=@PATH", field=FILE)
    for name in ("uri", "title"):
        if count > 1 and getattr(fields, name):
            raise InvalidInput(f"{name} names one document, but there are {count} files; send it with one", field=name)
    return fields


def _accept(
    database: Database, mark: str, new: Sequence[NewUpload], fields: UploadFields, caller: Caller, key: str | None
) -> tuple[Mapping[str, Any], bool]:
    """Have the files parsed; what is answered, and whether it was answered before."""
    asked = [{**_described(one), "collection": fields.collection} for one in new]
    with database.write() as connection:
        fingerprint = ids.sha256_json({"uploads": asked})
        known = idempotency.begin(connection, key, fingerprint, caller.asker) if key else None
        if known is not None:
            return known, True
        job_id = uploads.accept(connection, fields.collection, mark, new, by=caller)
        documents = [
            {
                "id": ids.document_id(fields.collection, one.uri),
                "uri": one.uri,
                "bytes": one.bytes,
                "sha256": one.sha256,
            }
            for one in new
        ]
        answer = {"job": job_id, "documents": documents}
        if key:
            idempotency.answered(connection, key, answer, caller.asker)
    return answer, False


def _new(file: Received, fields: UploadFields, caller: Caller) -> NewUpload:
    return NewUpload(
        file=file.file,
        uri=fields.uri or f"upload:{quote(file.name, safe='') or file.sha256[:32]}",
        name=file.name,
        media_type=file.media_type,
        sha256=file.sha256,
        bytes=file.size,
        title=fields.title,
        metadata=fields.metadata,
        acl=fields.acl if "acl" in fields.model_fields_set else caller.default_acl,
    )


def _described(one: NewUpload) -> dict[str, Any]:
    """What makes two uploads the same."""
    names = ("uri", "name", "media_type", "sha256", "title", "metadata", "acl")
    return {name: getattr(one, name) for name in names}


async def _answer(parts: Parts, fields: UploadFields, caller: Caller, answer: Mapping[str, Any]) -> Response:
    """The answer, once they are found or the time is over."""
    deadline = time.monotonic() + (fields.timeout_seconds if fields.wait else 0)
    database = parts.workspace.database
    while True:
        job = await run_in_threadpool(jobs.get, database, answer["job"])
        indexed = job.state == "done" and await run_in_threadpool(is_indexed, database, fields.collection, _seq(job))
        if indexed or job.state == "failed" or time.monotonic() >= deadline:
            break
        await anyio.sleep(POLL_SECONDS)  # no thread waits: a few patient callers would keep everybody else out
    became = {one["id"]: one for one in (job.result or {}).get("documents", ())}
    documents = [_result(one, became.get(one["id"], {}), caller) for one in answer["documents"]]
    body = UploadAnswer(
        collection=fields.collection,
        job=job.id,
        state=job.state,  # type: ignore[arg-type]
        indexed=indexed,
        documents=documents,
        error=job.error,
    )
    headers = {"Location": f"/v1/jobs/{job.id}"}
    return Response(
        body.model_dump_json(), status_code=200 if indexed else 202, media_type="application/json", headers=headers
    )


def _result(one: Mapping[str, Any], became: Mapping[str, Any], caller: Caller) -> UploadResult:
    values = {**one, **{name: became.get(name) for name in ("outcome", "seq", "error")}}
    if not caller.knows_all:
        values["seq"] = None
    return UploadResult(**values)


def _seq(job: Job) -> int:
    return max((one["seq"] for one in (job.result or {}).get("documents", ())), default=0)


def form_body() -> dict[str, Any]:
    """The form as OpenAPI has it."""
    schema = UploadFields.model_json_schema()
    files = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_FILES,
        "items": {"type": "string", "format": "binary"},
        "description": "One or more parts of this name, each a file with its name.",
    }
    schema["properties"] = {FILE: files, **schema["properties"]}
    schema["required"] = [FILE]
    return {"content": {"multipart/form-data": {"schema": schema}}}


def is_indexed(database: Database, collection: str, seq: int) -> bool:
    """Whether searches find a change; 0 is all that there are now: what did not change may still be waiting."""
    with database.read() as connection:
        seq = seq or collections.head_seq(connection, collections.find(connection, collection))
        serving = deployments.serving(connection, collection)
        return indexes.applied_seq(connection, serving.index_id) >= seq
