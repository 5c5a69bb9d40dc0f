"""Documents: ready texts in; listing, reading and deleting. Files come in through nvr_rag.api.uploads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any
from uuid import UUID

import anyio
from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from nvr_rag import collections, corpus, idempotency, ids, uploads
from nvr_rag import documents as stored
from nvr_rag.access.callers import Caller
from nvr_rag.api.authorization import IngestCaller, SearchCaller
from nvr_rag.api.dependencies import InCollection, PartsOf
from nvr_rag.api.intake import UploadAnswer
from nvr_rag.api.limits import NoControls, Uri
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.schemas import (
    Deleted,
    DocumentDetail,
    DocumentInfo,
    DocumentPage,
    PutAnswer,
    PutDocuments,
    PutResult,
    TextDocument,
)
from nvr_rag.api.uploads import POLL_SECONDS, Key, form_body, is_indexed
from nvr_rag.db.session import Database
from nvr_rag.errors import InvalidInput, NotFound
from nvr_rag.types import Document, DocumentState, NewDocument, ParsedText, TextFormat

router = APIRouter(prefix="/v1/documents", tags=["documents"])

PARSER = "ready-text"
_MARKDOWN = ("text/markdown", "text/x-markdown")
_HTML = ("text/html", "application/xhtml+xml")
_CODE = frozenset(
    f"application/{name}"
    for name in ("javascript", "json", "toml", "yaml", "x-yaml", "sql", "x-sh", "x-python", "x-httpd-php", "typescript")
) | {"text/javascript", "text/css"}


@router.post(
    "",
    summary="Put documents",
    response_model=PutAnswer | UploadAnswer,
    responses={
        200: {"description": "Stored, and searches find them."},
        202: {"description": "Stored durably; searches will find them soon.", "model": PutAnswer | UploadAnswer},
        **problem_responses(404, 409, 422, 503, body=True),
    },
    openapi_extra={"requestBody": form_body()},
)
async def put_documents(body: PutDocuments, parts: PartsOf, caller: IngestCaller, key: Key = None) -> Response:
    """Store ready texts: all of them, or none. Or, as a form, upload files, which a job parses. A URI that is there
    already gets a new version."""
    caller.check_collection(body.collection)
    database = parts.workspace.database
    deadline = time.monotonic() + (body.timeout_seconds if body.wait else 0)
    results, seq = await run_in_threadpool(_put, database, body, caller, key)
    # Waiting takes no thread: a few patient callers would otherwise keep everybody else from searching.
    while not (indexed := await run_in_threadpool(is_indexed, database, body.collection, seq)):
        if time.monotonic() >= deadline:
            break
        await anyio.sleep(POLL_SECONDS)
    answer = PutAnswer(collection=body.collection, indexed=indexed, documents=results)
    return Response(answer.model_dump_json(), status_code=200 if indexed else 202, media_type="application/json")


@router.get("", summary="List documents", responses=problem_responses(404, 422, 503))
def list_documents(
    parts: PartsOf,
    caller: SearchCaller,
    collection: InCollection = "default",
    state: Annotated[DocumentState | None, Query(description="Default: all but the deleted ones.")] = None,
    after: Annotated[str, Query(max_length=4096, description="`next` of the page before."), NoControls] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="Documents on a page.")] = 100,
) -> DocumentPage:
    """A page of those of a collection's documents that the caller may read, by URI."""
    caller.check_collection(collection)
    with parts.workspace.database.read() as connection:
        found = stored.list_documents(
            connection, collection, state=state, after=after, limit=limit + 1, reader=caller.reader
        )
    page = found[:limit]
    return DocumentPage(
        documents=[DocumentInfo(**_shared(document, caller)) for document in page],
        next=page[-1].uri if len(found) > limit else None,
    )


@router.get("/{document_id}", summary="Read a document", responses=problem_responses(404, 422, 503))
def get_document(
    document_id: UUID,
    parts: PartsOf,
    caller: SearchCaller,
    collection: InCollection = "default",
    text: Annotated[bool, Query(description="With the text of its newest version.")] = False,
) -> DocumentDetail:
    """One document by its id; a deleted one too."""
    caller.check_collection(collection)
    with parts.workspace.database.read() as connection:
        document = stored.get(connection, collection, str(document_id), reader=caller.reader)
        with_text = text and document.generation > 0
        words = stored.text_of(connection, document.id) if with_text else None
    return DocumentDetail(**_shared(document, caller), collection=collection, text=words)


@router.delete("/{document_id}", summary="Delete a document", responses=problem_responses(404, 422, 503))
def delete_document(
    document_id: UUID, parts: PartsOf, caller: IngestCaller, collection: InCollection = "default"
) -> Deleted:
    """Delete one document by its id. No search shows it from now on."""
    return _delete(parts.workspace.database, caller, collection, str(document_id), "id")


@router.delete("", summary="Delete a document by URI", responses=problem_responses(404, 422, 503))
def delete_document_by_uri(
    uri: Annotated[Uri, Query(description="Of the document.")],
    parts: PartsOf,
    caller: IngestCaller,
    collection: InCollection = "default",
) -> Deleted:
    """Delete one document by its URI. No search shows it from now on."""
    return _delete(parts.workspace.database, caller, collection, ids.document_id(collection, uri), f"URI {uri[:200]!r}")


def _delete(database: Database, caller: Caller, collection: str, key: str, name: str) -> Deleted:
    caller.check_collection(collection)
    with database.write() as connection:
        gone = corpus.delete_documents(connection, collection, [key], reader=caller.reader)
        collection_id = collections.find(connection, collection)
        waited = uploads.withdraw(connection, collection_id, [key], reader=caller.reader)
    if not gone and not waited:
        raise NotFound(f"no document with this {name} in the collection {collection!r}")
    return Deleted(deleted=[key])


def _put(database: Database, body: PutDocuments, caller: Caller, key: str | None) -> tuple[list[PutResult], int]:
    """Store them; also the number of the change that an index must have reached to show them."""
    documents = [_new(document, f"documents[{i}]", caller) for i, document in enumerate(body.documents)]
    fingerprint = ids.sha256_json(_asked(body, documents)) if key else ""
    with database.write() as connection:
        known = idempotency.begin(connection, key, fingerprint, caller.asker) if key else None
        if known is not None:
            return [PutResult(**one) for one in known["documents"]], int(known["seq"])
        puts = corpus.put(connection, body.collection, documents, reader=caller.reader)
        keys = [put.document_id for put in puts]
        uploads.check_waiting(connection, keys, caller.reader)
        collection_id = collections.find(connection, body.collection)
        uploads.withdraw(connection, collection_id, keys)  # what was accepted before counts no more
        results = [
            PutResult(
                id=put.document_id, uri=document.uri, outcome=put.outcome, seq=put.seq if caller.knows_all else None
            )
            for put, document in zip(puts, documents, strict=True)
        ]
        # Documents that did not change may still be waiting for an index: then the log's head is what counts.
        head = collections.head_seq(connection, collection_id)
        seq = max(put.seq for put in puts) or head
        if key:
            answer = {"documents": [one.model_dump(mode="json") for one in results], "seq": seq}
            idempotency.answered(connection, key, answer, caller.asker)
    return results, seq


def _asked(body: PutDocuments, documents: Sequence[NewDocument]) -> dict[str, Any]:
    """What makes two requests the same."""
    asked = body.model_dump(
        mode="json", exclude={"wait": True, "timeout_seconds": True, "documents": {"__all__": {"acl"}}}
    )
    acls = [None if document.acl is None else list(document.acl) for document in documents]
    return asked if acls.count(None) == len(acls) else {**asked, "acls": acls}


def _new(document: TextDocument, place: str, caller: Caller) -> NewDocument:
    media_type = document.media_type.partition(";")[0].strip().lower()
    if media_type.count("/") != 1 or media_type.startswith("/") or media_type.endswith("/"):
        raise InvalidInput(
            f"{place}.media_type is a media type such as text/markdown, not {document.media_type!r}",
            field=f"{place}.media_type",
        )
    if media_type in _HTML:
        raise InvalidInput(
            f"{place}: HTML is not parsed here; use nvr-rag ingest for files, or send its text as text/markdown",
            field=f"{place}.media_type",
        )
    if not document.text.strip():
        raise InvalidInput(f"{place}.text is blank; send a text, or delete the document instead", field=f"{place}.text")
    parsed = ParsedText(
        text=document.text,
        format=_format(media_type),
        media_type=media_type,
        title=document.title,
        metadata=document.metadata,
    )
    return NewDocument(
        uri=document.uri,
        sha256=ids.sha256_text(document.text),
        parsed=parsed,
        parser=PARSER,
        acl=document.acl if "acl" in document.model_fields_set else caller.default_acl,
    )


def _format(media_type: str) -> TextFormat:
    if media_type in _MARKDOWN:
        return TextFormat.MARKDOWN
    return TextFormat.CODE if media_type in _CODE or media_type.startswith("text/x-") else TextFormat.PLAIN


_SHARED = frozenset(DocumentInfo.model_fields) & {field.name for field in fields(Document)}


def _shared(document: Document, caller: Caller) -> dict[str, Any]:
    """The fields of a document that this caller, who may read it, sees."""
    values = {name: getattr(document, name) for name in _SHARED}
    return values if caller.knows_all else {**values, "seq": None}
