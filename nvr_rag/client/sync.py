"""The client for programs that wait: calls enter, records leave. All but the waiting is in the modules beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Unpack

import httpx

from nvr_rag.client import requests
from nvr_rag.client.line import http_options, line_to
from nvr_rag.client.records import (
    CollectionInfo,
    DocumentInfo,
    Embedded,
    FeedbackAnswer,
    JobStatus,
    PutAnswer,
    Readiness,
    SearchAnswer,
    TextDocument,
    Uploaded,
    UploadFields,
)
from nvr_rag.client.repeating import Outcome
from nvr_rag.client.requests import Call, Record, SearchOptions
from nvr_rag.types import DocumentState, Feedback, Mode, Passage, Query


class Client:
    """Talks to one server. Safe to share between threads. Use as a context manager, or call `close`.

    What can safely be sent again is sent again, at most `retries` times: see `nvr_rag.client.repeating`. Every method
    raises ServerGone when nobody of ours is there, TimedOut and StoreUnavailable when the answer is late or cut off,
    and what the server says: Unauthenticated, Forbidden, TooManyRequests, InvalidInput, NotFound, StoreBusy ...
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        principals: Iterable[str] | None = None,
        timeout_seconds: float = 60.0,
        retries: int = 3,
    ) -> None:
        """`url` such as http://127.0.0.1:8000; `principals` on whose behalf it asks, for a key that may impersonate;
        `timeout_seconds` that the server may be silent. Raises InvalidInput."""
        self._line = line_to(url, principals, retries)
        self._http = httpx.Client(**http_options(self._line, api_key, timeout_seconds))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._line.url!r})"

    def close(self) -> None:
        """Let go of the connections, also of those that ask on behalf of others."""
        self._http.close()

    def on_behalf_of(self, *principals: str) -> Client:
        """A client that asks for these principals, over the same connections: for a bot that knows who its users are.
        Without any, it reads what everybody may."""
        other = Client.__new__(Client)
        other._line, other._http = self._line.on_behalf_of(principals), self._http
        return other

    def search(self, query: Query | str, **options: Unpack[SearchOptions]) -> SearchAnswer:
        """Ask a question: a text with options, or a `Query`. The server logs it."""
        return self._do(requests.search(requests.asked(query, options)))

    def search_batch(self, queries: Sequence[Query | str], **options: Unpack[SearchOptions]) -> list[SearchAnswer]:
        """Ask up to 64 questions at once: an answer to each, in their order. Options are those of all of them."""
        return self._do(requests.search_batch([requests.asked(query, options) for query in queries]))

    def chunk(self, chunk_id: str, *, collection: str = "default", context: int = 0) -> Passage:
        """A chunk as it stands now, with so many neighbours on each side."""
        return self._do(requests.chunk(chunk_id, collection=collection, context=context))

    def feedback(self, items: Feedback | Sequence[Feedback], *, outside: bool = False) -> FeedbackAnswer:
        """Say something about hits, up to 1000 words at once: all are stored, or none. Twice is once.

        `outside`: judgments about chunks that need not have been shown, by somebody who knows; takes the scope train.
        """
        return self._do(requests.feedback(items, outside=outside))

    def put(
        self,
        documents: Sequence[TextDocument],
        *,
        collection: str = "default",
        wait: bool = False,
        idempotency_key: str | None = None,
    ) -> PutAnswer:
        """Store up to 1000 texts: all, or none; with `wait`, once searches find them, or after half a minute."""
        call = requests.put(documents, collection=collection, wait=wait, key=idempotency_key)
        return self._do(call)

    def upload(
        self,
        file: Path | bytes,
        *,
        name: str | None = None,
        collection: str = "default",
        fields: UploadFields | None = None,
        wait: bool = False,
        idempotency_key: str | None = None,
    ) -> Uploaded:
        """Send a file, which a job parses; with `wait`, once searches find it, or after half a minute.

        `name` tells the format, by default that of the path; bytes need one.
        """
        call = requests.upload(file, name=name, collection=collection, fields=fields, wait=wait, key=idempotency_key)
        return self._do(call)

    def ingest(
        self,
        path: str,
        *,
        collection: str = "default",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        allow_empty: bool = False,
    ) -> JobStatus:
        """Have a collection mirror a path of the server; the job that does it."""
        globs = {"include": list(include), "exclude": list(exclude)}
        return self._do(requests.ingest(path, collection=collection, allow_empty=allow_empty, **globs))

    def documents(self, *, collection: str = "default", state: DocumentState | None = None) -> Iterator[DocumentInfo]:
        """All documents that can be read, by URI, page by page; without a state all but the deleted ones."""
        after: str | None = ""
        while after is not None:
            page, after = self._do(requests.documents(collection=collection, state=state, after=after))
            yield from page

    def document(self, document_id: str, *, collection: str = "default", text: bool = False) -> DocumentInfo:
        """A document by its id, if asked for with the text of its newest version."""
        return self._do(requests.document(document_id, collection=collection, text=text))

    def delete(self, document_id: str | None = None, *, uri: str | None = None, collection: str = "default") -> None:
        """Delete a document by its id or its URI. No search shows it from now on."""
        self._do(requests.delete(document_id, uri=uri, collection=collection))

    def collections(self) -> list[CollectionInfo]:
        """The collections that the key may know of, by name."""
        return self._do(requests.collections())

    def collection(self, name: str) -> CollectionInfo:
        """A collection, how it answers, and how far its indexes are."""
        return self._do(requests.collection(name))

    def create_collection(self, name: str, *, language: str = "english", mode: Mode = Mode.HYBRID) -> CollectionInfo:
        """An empty collection, searchable at once. Raises Conflict when it exists."""
        return self._do(requests.create_collection(name, language=language, mode=mode))

    def retrain(
        self,
        collection: str = "default",
        *,
        recipe: str | None = None,
        rule: str | None = None,
        dry_run: bool = False,
        promote: bool = False,
    ) -> JobStatus:
        """Begin a lap of the feedback loop; the job that does it. What is not said is as the server's settings say."""
        call = requests.retrain(collection, recipe=recipe, rule=rule, dry_run=dry_run, promote=promote)
        return self._do(call)

    def job(self, job: int) -> JobStatus:
        """How a job stands."""
        return self._do(requests.job(job))

    def wait(self, job: int, *, timeout_seconds: float | None = None, poll_seconds: float = 0.5) -> JobStatus:
        """The job once it has ended, well or not. Raises TimeoutError."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (status := self.job(job)).finished:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{status.kind} job {job} is {status.state} after {timeout_seconds:g} s")
            time.sleep(poll_seconds)
        return status

    def embed(
        self,
        texts: Sequence[str],
        *,
        collection: str = "default",
        input_type: Literal["query", "document"] = "document",
    ) -> Embedded:
        """Texts, any number, as vectors of the encoder that answers for a collection."""
        calls = requests.embed(texts, collection=collection, input_type=input_type)
        return requests.joined([self._do(call) for call in calls])

    def ready(self) -> Readiness:
        """Whether the server answers searches and changes now; asked once."""
        with requests.ready().opened() as options:
            return self._line.readiness(self._attempt(options))

    def _do(self, call: Call[Record]) -> Record:
        attempts = self._line.attempts(call.request)
        with call.request.opened() as options:
            while True:
                outcome = self._attempt(options)
                seconds = attempts.wait(outcome)
                if seconds is None:
                    return self._line.read(call, attempts, outcome)
                time.sleep(seconds)

    def _attempt(self, options: dict[str, Any]) -> Outcome:
        options = {**options, "headers": {**options["headers"], **self._line.headers}}
        try:
            return self._http.request(**options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error
