"""A typed HTTP client for a running server: records in, records out, problem documents turned into our exceptions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from nvr_rag.errors import (
    Conflict,
    DatabaseUnavailable,
    EncoderMismatch,
    IndexDamaged,
    IndexMissing,
    InvalidFilter,
    InvalidInput,
    NotFound,
    NvrError,
    StoreBusy,
    StoreUnavailable,
)
from nvr_rag.types import Hit, Mode, Query

_PROBLEM = "application/problem+json"
_BY_TYPE: Mapping[str, type[NvrError]] = {
    "urn:nvr-rag:not-found": NotFound,
    "urn:nvr-rag:conflict": Conflict,
    "urn:nvr-rag:encoder-mismatch": EncoderMismatch,
    "urn:nvr-rag:index-busy": StoreBusy,
    "urn:nvr-rag:index-missing": IndexMissing,
    "urn:nvr-rag:index-damaged": IndexDamaged,
    "urn:nvr-rag:database-unavailable": DatabaseUnavailable,
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
        answer = self._post("/v1/search", body)
        try:
            return _search_answer(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerGone(f"what answers at {self._url} does not answer as nvr-rag {error!r}") from error

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            response = self._http.post(path, json=body)
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
    if kind == "urn:nvr-rag:invalid-input" or status in (400, 422):
        return InvalidInput(words, field=problem.get("field"))
    return _BY_TYPE.get(kind, StoreUnavailable)(f"{words} (said the server at {url})")


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
