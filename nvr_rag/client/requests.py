"""What is sent: arguments enter, a call leaves that says what goes over the wire and how its answer is read. Pure.

Whatever changes something and can be told from its like by the server (texts, files, folders) carries an
Idempotency-Key, so that it may be sent again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

from nvr_rag.client import answers
from nvr_rag.client.records import (
    CollectionInfo,
    DocumentInfo,
    Embedded,
    FeedbackAnswer,
    JobStatus,
    PutAnswer,
    SearchAnswer,
    TextDocument,
    Uploaded,
    UploadFields,
)
from nvr_rag.errors import InvalidInput, StoreUnavailable
from nvr_rag.types import ANYBODY, DocumentState, Feedback, GroupBy, Mmr, Mode, Passage, Query

Record = TypeVar("Record")
Record_co = TypeVar("Record_co", covariant=True)

PAGE = 500  # documents asked for at a time
MOST_TEXTS, MOST_CHARACTERS = 256, 1_000_000  # that the server embeds in one request
_IDEMPOTENCY = "Idempotency-Key"
_HERE = frozenset({"text", "reader", "asker"})  # fields of a query that have another name there, or none


class SearchOptions(TypedDict, total=False):
    """What a search may say besides its text: fields of `Query`."""

    collection: str
    k: int
    mode: Mode | Literal["dense", "lexical", "hybrid"] | None
    filter: Mapping[str, Any] | None
    group_by: GroupBy | Literal["document"] | None
    context: int
    mmr: Mmr | None
    min_score: float | None
    rerank: bool
    explain: bool
    user: str | None
    session: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What goes over the wire."""

    method: str
    path: str  # with what follows the question mark
    body: bytes | None = None  # JSON
    form: Mapping[str, str] | None = None  # goes with the file
    file: tuple[str, Path | bytes] | None = None  # its name there, and what is in it
    idempotency_key: str | None = None
    repeatable: bool = True  # doing it twice is doing it once

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        """The request as httpx takes it, any number of times while the block runs."""
        headers = {_IDEMPOTENCY: self.idempotency_key} if self.idempotency_key else {}
        plain = {"method": self.method, "url": self.path}
        if self.file is None:
            kind = {} if self.body is None else {"Content-Type": "application/json"}
            yield {**plain, "content": self.body, "headers": {**headers, **kind}}
            return
        name, source = self.file
        if isinstance(source, bytes):
            yield {**plain, "data": self.form, "files": {"file": (name, source)}, "headers": headers}
            return
        with source.open("rb") as data:
            yield {**plain, "data": self.form, "files": {"file": (name, data)}, "headers": headers}


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[Record_co]):
    """A request, and what its answer is."""

    request: Request
    read: Callable[[Any], Record_co]
    gone: Record_co | None = None  # what it is that there is nothing left, when an attempt before may have done that


def asked(query: Query | str, options: Mapping[str, Any]) -> Query:
    """The query that is meant: a text with options, or a query with some of its fields changed."""
    made = Query(text=query, **options) if isinstance(query, str) else replace(query, **options)
    if made.reader is not ANYBODY:
        raise InvalidInput(
            "who reads is what the key says; a key that may impersonate says it with `principals`", field="reader"
        )
    return made


def search(query: Query) -> Call[SearchAnswer]:
    return Call(request=_post("/v1/search", _searched(query)), read=answers.search_answer)


def search_batch(queries: Sequence[Query]) -> Call[list[SearchAnswer]]:
    body = {"searches": [_searched(query) for query in queries]}
    return Call(request=_post("/v1/search/batch", body), read=answers.search_answers)


def chunk(chunk_id: str, *, collection: str, context: int) -> Call[Passage]:
    request = _get(f"/v1/chunks/{_part(chunk_id)}", collection=collection, context=context)
    return Call(request=request, read=answers.passage)


def feedback(items: Feedback | Sequence[Feedback], *, outside: bool) -> Call[FeedbackAnswer]:
    """Saying it twice is saying it once."""
    said = [_said(item, outside) for item in ([items] if isinstance(items, Feedback) else items)]
    body = said[0] if isinstance(items, Feedback) else {"items": said}
    return Call(request=_post("/v1/feedback", body), read=answers.feedback_answer)


def put(documents: Sequence[TextDocument], *, collection: str, wait: bool, key: str | None) -> Call[PutAnswer]:
    body = {"collection": collection, "documents": [one.as_json() for one in documents], "wait": wait}
    request = replace(_post("/v1/documents", body), idempotency_key=key or _new_key())
    return Call(request=request, read=answers.put_answer)


def upload(
    file: Path | bytes, *, name: str | None, collection: str, fields: UploadFields | None, wait: bool, key: str | None
) -> Call[Uploaded]:
    named = name or (file.name if isinstance(file, Path) else "document")
    form = {"collection": collection, "wait": str(wait).lower(), **(fields or UploadFields()).as_form()}
    for text in (named, *form.values()):
        _check_unicode(text)
    request = Request(
        method="POST", path="/v1/documents", form=form, file=(named, file), idempotency_key=key or _new_key()
    )
    return Call(request=request, read=answers.uploaded)


def ingest(path: str, *, collection: str, **options: Any) -> Call[JobStatus]:
    request = _post("/v1/ingest", {"path": path, "collection": collection, **options})
    return Call(request=replace(request, idempotency_key=_new_key()), read=answers.job_status)


def documents(
    *, collection: str, state: DocumentState | None, after: str
) -> Call[tuple[list[DocumentInfo], str | None]]:
    params = {"collection": collection, "limit": PAGE, "after": after, **({"state": state} if state else {})}
    return Call(request=_get("/v1/documents", **params), read=answers.documents)


def document(document_id: str, *, collection: str, text: bool) -> Call[DocumentInfo]:
    request = _get(f"/v1/documents/{_part(document_id)}", collection=collection, text=str(text).lower())
    return Call(request=request, read=answers.document)


def delete(document_id: str | None, *, uri: str | None, collection: str) -> Call[str]:
    """By id or by URI."""
    if (document_id is None) == (uri is None):
        raise InvalidInput("say which document to delete: by its id, or as uri=", field="document_id")
    path = "/v1/documents" if document_id is None else f"/v1/documents/{_part(document_id)}"
    params = {"collection": collection} if uri is None else {"collection": collection, "uri": uri}
    return Call(
        request=Request(method="DELETE", path=_with(path, params)), read=answers.deleted, gone=document_id or uri
    )


def collections() -> Call[list[CollectionInfo]]:
    return Call(request=_get("/v1/collections"), read=answers.collections)


def collection(name: str) -> Call[CollectionInfo]:
    return Call(request=_get(f"/v1/collections/{_part(name)}"), read=answers.collection)


def create_collection(name: str, *, language: str, mode: Mode) -> Call[CollectionInfo]:
    body = {"name": name, "language": language, "mode": mode}
    return Call(request=replace(_post("/v1/collections", body), repeatable=False), read=answers.collection)


def retrain(collection: str, **options: Any) -> Call[JobStatus]:
    given = {name: value for name, value in options.items() if value is not None}
    request = _post("/v1/retrain", {"collection": collection, **given})
    return Call(request=replace(request, repeatable=False), read=answers.job_status)


def job(number: int) -> Call[JobStatus]:
    return Call(request=_get(f"/v1/jobs/{number}"), read=answers.job_status)


def ready() -> Request:
    return _get("/readyz")


def embed(texts: Sequence[str], *, collection: str, input_type: str) -> list[Call[Embedded]]:
    """As few requests as the server takes them in."""
    if isinstance(texts, str):  # a list of letters otherwise
        raise InvalidInput("texts is a list of texts, not one", field="texts")
    name = collection if collection == "default" else f"collection:{collection}"
    model = {"model": name, "encoding_format": "base64", "input_type": input_type}
    return [
        Call(request=_post("/v1/embeddings", {**model, "input": part}), read=answers.embedded) for part in _parts(texts)
    ]


def joined(parts: Sequence[Embedded]) -> Embedded:
    """The answers to the calls of `embed` as one."""
    truncated, before = [], 0
    for part in parts:
        truncated += [before + position for position in part.truncated]
        before += len(part.vectors)
    vectors = [vector for part in parts for vector in part.vectors]
    encoders = {part.encoder for part in parts}
    if len(encoders) > 1:  # vectors of two encoders must not be mixed
        raise StoreUnavailable("another encoder began to serve while the texts were embedded; embed them again")
    return Embedded(vectors=vectors, encoder=next(iter(encoders), ""), truncated=truncated)


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (len(part) == MOST_TEXTS or characters + len(text) > MOST_CHARACTERS):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def _searched(query: Query) -> dict[str, Any]:
    """A query as it is sent: what is left out is the server's default."""
    given = {one.name: (getattr(query, one.name), one.default) for one in fields(query) if one.name not in _HERE}
    body = {name: value for name, (value, default) in given.items() if value != default}
    return {"query": query.text, **body, **({"mmr": asdict(query.mmr)} if query.mmr else {})}


def _said(item: Feedback, outside: bool) -> dict[str, Any]:
    said = {name: value for name, value in asdict(item).items() if value is not None}
    return {**said, "outside": True} if outside else said


def _post(path: str, body: Mapping[str, Any]) -> Request:
    """A body of JSON. Raises InvalidInput for what JSON has no words for."""
    try:
        data = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"this cannot be sent as JSON: {error}") from error
    return Request(method="POST", path=path, body=data)


def _get(path: str, **params: Any) -> Request:
    return Request(method="GET", path=_with(path, params))


def _with(path: str, params: Mapping[str, Any]) -> str:
    """A path and what follows its question mark."""
    given = "&".join(f"{name}={_part(str(value))}" for name, value in params.items())
    return f"{path}?{given}" if given else path


def _part(name: str) -> str:
    """One part of a path, or a value behind it."""
    _check_unicode(name)
    return quote(name, safe="")


def _check_unicode(text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidInput(f"this cannot be sent, as it has half of a surrogate pair: {text[:80]!a}")


def _new_key() -> str:
    return uuid4().hex
