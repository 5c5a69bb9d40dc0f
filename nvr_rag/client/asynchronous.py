"""The client for programs that do other things meanwhile: as `Client`, to be awaited."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Unpack

import anyio
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


class AsyncClient:
    """Talks to one server. Use as an async context manager, or await `aclose`.

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
        keep_alive: bool = True,
    ) -> None:
        """`url` such as http://127.0.0.1:8000; `principals` on whose behalf it asks, for a key that may impersonate;
        `timeout_seconds` that the server may be silent. Without `keep_alive` every call opens a connection of its own,
        so that one client can be used in one event loop after another. Raises InvalidInput."""
        self._line = line_to(url, principals, retries)
        self._http = httpx.AsyncClient(
            **http_options(self._line, api_key, timeout_seconds),
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20 if keep_alive else 0),
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({self._line.url!r})"

    async def aclose(self) -> None:
        """Let go of the connections, also of those that ask on behalf of others."""
        await self._http.aclose()

    def on_behalf_of(self, *principals: str) -> AsyncClient:
        """A client that asks for these principals, over the same connections: for a bot that knows who its users are.
        Without any, it reads what everybody may."""
        other = AsyncClient.__new__(AsyncClient)
        other._line, other._http = self._line.on_behalf_of(principals), self._http
        return other

    async def search(self, query: Query | str, **options: Unpack[SearchOptions]) -> SearchAnswer:
        """Ask a question: a text with options, or a `Query`. The server logs it."""
        return await self._do(requests.search(requests.asked(query, options)))

    async def search_batch(
        self, queries: Sequence[Query | str], **options: Unpack[SearchOptions]
    ) -> list[SearchAnswer]:
        """Ask up to 64 questions at once: an answer to each, in their order. Options are those of all of them."""
        return await self._do(requests.search_batch([requests.asked(query, options) for query in queries]))

    async def chunk(self, chunk_id: str, *, collection: str = "default", context: int = 0) -> Passage:
        """A chunk as it stands now, with so many neighbours on each side."""
        return await self._do(requests.chunk(chunk_id, collection=collection, context=context))

    async def feedback(self, items: Feedback | Sequence[Feedback], *, outside: bool = False) -> FeedbackAnswer:
        """Say something about hits, up to 1000 words at once: all are stored, or none. Twice is once.

        `outside`: judgments about chunks that need not have been shown, by somebody who knows; takes the scope train.
        """
        return await self._do(requests.feedback(items, outside=outside))

    async def put(
        self,
        documents: Sequence[TextDocument],
        *,
        collection: str = "default",
        wait: bool = False,
        idempotency_key: str | None = None,
    ) -> PutAnswer:
        """Store up to 1000 texts: all, or none; with `wait`, once searches find them, or after half a minute."""
        call = requests.put(documents, collection=collection, wait=wait, key=idempotency_key)
        return await self._do(call)

    async def upload(
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
        return await self._do(call)

    async def ingest(
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
        return await self._do(requests.ingest(path, collection=collection, allow_empty=allow_empty, **globs))

    async def documents(
        self, *, collection: str = "default", state: DocumentState | None = None
    ) -> AsyncIterator[DocumentInfo]:
        """All documents that can be read, by URI, page by page; without a state all but the deleted ones."""
        after: str | None = ""
        while after is not None:
            page, after = await self._do(requests.documents(collection=collection, state=state, after=after))
            for one in page:
                yield one

    async def document(self, document_id: str, *, collection: str = "default", text: bool = False) -> DocumentInfo:
        """A document by its id, if asked for with the text of its newest version."""
        return await self._do(requests.document(document_id, collection=collection, text=text))

    async def delete(
        self, document_id: str | None = None, *, uri: str | None = None, collection: str = "default"
    ) -> None:
        """Delete a document by its id or its URI. No search shows it from now on."""
        await self._do(requests.delete(document_id, uri=uri, collection=collection))

    async def collections(self) -> list[CollectionInfo]:
        """The collections that the key may know of, by name."""
        return await self._do(requests.collections())

    async def collection(self, name: str) -> CollectionInfo:
        """A collection, how it answers, and how far its indexes are."""
        return await self._do(requests.collection(name))

    async def create_collection(
        self, name: str, *, language: str = "english", mode: Mode = Mode.HYBRID
    ) -> CollectionInfo:
        """An empty collection, searchable at once. Raises Conflict when it exists."""
        return await self._do(requests.create_collection(name, language=language, mode=mode))

    async def retrain(
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
        return await self._do(call)

    async def job(self, job: int) -> JobStatus:
        """How a job stands."""
        return await self._do(requests.job(job))

    async def wait(self, job: int, *, timeout_seconds: float | None = None, poll_seconds: float = 0.5) -> JobStatus:
        """The job once it has ended, well or not. Raises TimeoutError."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (status := await self.job(job)).finished:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{status.kind} job {job} is {status.state} after {timeout_seconds:g} s")
            await anyio.sleep(poll_seconds)
        return status

    async def embed(
        self,
        texts: Sequence[str],
        *,
        collection: str = "default",
        input_type: Literal["query", "document"] = "document",
    ) -> Embedded:
        """Texts, any number, as vectors of the encoder that answers for a collection."""
        calls = requests.embed(texts, collection=collection, input_type=input_type)
        return requests.joined([await self._do(call) for call in calls])

    async def ready(self) -> Readiness:
        """Whether the server answers searches and changes now; asked once."""
        with requests.ready().opened() as options:
            return self._line.readiness(await self._attempt(options))

    async def _do(self, call: Call[Record]) -> Record:
        attempts = self._line.attempts(call.request)
        with call.request.opened() as options:
            while True:
                outcome = await self._attempt(options)
                seconds = attempts.wait(outcome)
                if seconds is None:
                    return self._line.read(call, attempts, outcome)
                await anyio.sleep(seconds)

    async def _attempt(self, options: dict[str, Any]) -> Outcome:
        options = {**options, "headers": {**options["headers"], **self._line.headers}}
        try:
            return await self._http.request(**options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error
