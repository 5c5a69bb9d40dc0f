"""A typed HTTP client for a running server: records in, records out, problem documents turned into our exceptions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from nvr_rag.errors import (
    Conflict,
    DatabaseUnavailable,
    EncoderMismatch,
    IndexDamaged,
    IndexMissing,
    InvalidFilter,
    InvalidInput,
    NoRoom,
    NotFound,
    NvrError,
    StoreBusy,
    StoreUnavailable,
)
from nvr_rag.types import Hit, Mode, Query

Record = TypeVar("Record")

_PROBLEM = "application/problem+json"
_BY_TYPE: Mapping[str, type[NvrError]] = {
    "urn:nvr-rag:not-found": NotFound,
    "urn:nvr-rag:conflict": Conflict,
    "urn:nvr-rag:encoder-mismatch": EncoderMismatch,
    "urn:nvr-rag:index-busy": StoreBusy,
    "urn:nvr-rag:index-missing": IndexMissing,
    "urn:nvr-rag:index-damaged": IndexDamaged,
    "urn:nvr-rag:database-unavailable": DatabaseUnavailable,
    "urn:nvr-rag:no-room": NoRoom,
}


class ServerGone(StoreUnavailable):
    """Nothing answers at the address, or not a server of ours: it can be asked nothing, now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchAnswer:
    """What POST /v1/search answers."""

    query_id: str
    collection: str
    mode: Mode  # that was used
    deployment: Mapping[str, Any]  # id, index, encoder, mode, applied_seq
    hits: Sequence[Hit]  # best first
    took_ms: Mapping[str, float]  # by stage


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadFields:
    """What is said about a file."""

    uri: str | None = None  # default: upload: and the file's name
    title: str = ""  # default: the document's own
    metadata: Mapping[str, Any] = field(default_factory=dict)  # over what the document says of itself
    acl: Sequence[str] | None = None  # principals who may read it; None = everyone

    def as_form(self) -> dict[str, str]:
        given = {"uri": self.uri, "title": self.title or None, "metadata": json.dumps(dict(self.metadata))}
        given["acl"] = None if self.acl is None else json.dumps(list(self.acl))
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """How a job stands."""

    id: int
    kind: str
    collection: str | None
    state: str  # queued, running, done, failed
    progress: Mapping[str, Any]
    result: Mapping[str, Any] | None  # once it is done
    error: str | None  # why it failed
    cancelled: bool

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Uploaded:
    """What POST /v1/documents answers to a file: it is stored durably."""

    id: str  # of the document
    uri: str
    sha256: str
    job: int  # that parses it
    indexed: bool  # searches find it already
    outcome: str | None  # added, updated, unchanged, failed, superseded; None = it is not parsed yet
    error: str | None  # why it could not be parsed


class Client:
    """Talks to one server. Use as a context manager, or call `close`."""

    def __init__(self, url: str, *, timeout_seconds: float = 60.0) -> None:
        """`url` such as http://127.0.0.1:8000. A proxy that the environment names is not used: servers are near."""
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=timeout_seconds, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def search(self, query: Query) -> SearchAnswer:
        """Ask a question; the server logs it.

        Raises ServerGone when nobody of ours is there, StoreUnavailable when the answer is cut off or late, and what
        the server says: InvalidInput, InvalidFilter, NotFound, StoreBusy ...
        """
        body = {
            "query": query.text,
            "collection": query.collection,
            "k": query.k,
            "mode": query.mode,
            "filter": query.filter,
            "user": query.user,
            "session": query.session,
        }
        return self._read(_search_answer, self._call("POST", "/v1/search", json=body))

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

        `name` tells the format, by default that of the path; bytes need one. Raises as `search`, and NoRoom.
        """
        with ExitStack() as opened:
            data = opened.enter_context(file.open("rb")) if isinstance(file, Path) else file
            content = {"file": (name or (file.name if isinstance(file, Path) else "document"), data)}
            form = {"collection": collection, "wait": str(wait).lower(), **(fields or UploadFields()).as_form()}
            headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
            answer = self._call("POST", "/v1/documents", files=content, data=form, headers=headers)
        return self._read(_uploaded, answer)

    def ingest(
        self,
        path: str,
        *,
        collection: str = "default",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        allow_empty: bool = False,
    ) -> JobStatus:
        """Have a collection mirror a path of the server; the job that does it. Raises as `search`, and Conflict."""
        globs = {"include": list(include), "exclude": list(exclude)}
        body = {"path": path, "collection": collection, "allow_empty": allow_empty, **globs}
        return self._read(_job_status, self._call("POST", "/v1/ingest", json=body))

    def job(self, job: int) -> JobStatus:
        """How a job stands. Raises as `search`."""
        return self._read(_job_status, self._call("GET", f"/v1/jobs/{job}"))

    def wait(self, job: int, *, timeout_seconds: float | None = None, poll_seconds: float = 0.5) -> JobStatus:
        """The job once it has ended, well or not. Raises TimeoutError, and as `search`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (status := self.job(job)).finished:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{status.kind} job {job} is {status.state} after {timeout_seconds:g} s")
            time.sleep(poll_seconds)
        return status

    def _read(self, reader: Callable[[Any], Record], answer: Any) -> Record:
        try:
            return reader(answer)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServerGone(f"what answers at {self._url} does not answer as nvr-rag {error!r}") from error

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx.ConnectError as error:
            raise ServerGone(f"no server answers at {self._url}") from error
        except httpx.TimeoutException as error:
            raise StoreUnavailable(f"the server at {self._url} did not answer in time; try again") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StoreUnavailable(
                f"the connection to the server at {self._url} was lost ({error}); try again"
            ) from error
        try:
            content = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ServerGone(f"what answers at {self._url} is not nvr-rag") from error
        if response.headers.get("content-type", "").startswith(_PROBLEM):
            raise _problem(content, self._url)
        return content


def _problem(content: Any, url: str) -> NvrError:
    """The exception that a problem document tells of."""
    problem = content if isinstance(content, Mapping) else {}
    kind, status = str(problem.get("type", "")), problem.get("status")
    words = str(problem.get("detail") or problem.get("title") or "no reason given")
    if kind == "urn:nvr-rag:invalid-filter":
        return InvalidFilter(words)
    if kind == "urn:nvr-rag:invalid-input" or status in (400, 413, 415, 422):
        return InvalidInput(words, field=problem.get("field"))
    return _BY_TYPE.get(kind, StoreUnavailable)(f"{words} (said the server at {url})")


def _job_status(content: Any) -> JobStatus:
    plain = {name: content[name] for name in ("kind", "collection", "state", "error", "cancelled", "result")}
    return JobStatus(id=int(content["id"]), progress=dict(content["progress"]), **plain)


def _uploaded(content: Any) -> Uploaded:
    (document,) = content["documents"]
    plain = {name: document[name] for name in ("id", "uri", "sha256", "outcome", "error")}
    return Uploaded(job=int(content["job"]), indexed=bool(content["indexed"]), **plain)


def _search_answer(content: Any) -> SearchAnswer:
    return SearchAnswer(
        query_id=str(content["query_id"]),
        collection=str(content["collection"]),
        mode=Mode(content["mode"]),
        deployment=dict(content["deployment"]),
        hits=[_hit(hit) for hit in content["hits"]],
        took_ms=dict(content["took_ms"]),
    )


def _hit(hit: Any) -> Hit:
    document, dense, lexical = hit["document"], hit["dense"] or {}, hit["lexical"] or {}
    return Hit(
        rank=int(hit["rank"]),
        score=float(hit["score"]),
        chunk_id=str(hit["chunk_id"]),
        text=str(hit["text"]),
        document_id=str(document["id"]),
        uri=str(document["uri"]),
        title=str(document["title"]),
        media_type=str(document["media_type"]),
        metadata=dict(document["metadata"]),
        headings=list(hit["headings"]),
        page=hit["page"],
        start=int(hit["start"]),
        end=int(hit["end"]),
        dense_rank=dense.get("rank"),
        dense_score=dense.get("score"),
        lexical_rank=lexical.get("rank"),
        lexical_score=lexical.get("score"),
    )
