"""Answers that are none: problem documents (RFC 9457), and what is not ours at all, as our exceptions. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from nvr_rag.client.records import ServerGone
from nvr_rag.errors import (
    Conflict,
    DatabaseUnavailable,
    EncoderError,
    EncoderMismatch,
    Forbidden,
    IndexDamaged,
    IndexMissing,
    InvalidFilter,
    InvalidInput,
    NoRoom,
    NotFound,
    NvrError,
    StoreBusy,
    StoreUnavailable,
    TimedOut,
    TooManyRequests,
    Unauthenticated,
)

PROBLEM = "application/problem+json"
PASSING = frozenset({429, 502, 503, 504})  # what a server, or a proxy before it, says of a moment
_PREFIX = "urn:nvr-rag:"

_BY_TYPE: Mapping[str, type[NvrError]] = {
    "unauthenticated": Unauthenticated,
    "forbidden": Forbidden,
    "not-found": NotFound,
    "timed-out": TimedOut,
    "conflict": Conflict,
    "encoder-unusable": EncoderError,
    "encoder-mismatch": EncoderMismatch,
    "index-busy": StoreBusy,
    "index-missing": IndexMissing,
    "index-damaged": IndexDamaged,
    "no-room": NoRoom,
    "database-unavailable": DatabaseUnavailable,
}
_BY_STATUS: Mapping[int, type[NvrError]] = {  # where the type says nothing, or something that is newer than this client
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: NotFound,
    409: Conflict,
    413: InvalidInput,
    415: InvalidInput,
    422: InvalidInput,
    504: TimedOut,
}


def content_of(response: httpx.Response, url: str) -> Any:
    """The JSON of an answer. Raises what its problem document tells of, ServerGone for what is not ours, and
    StoreUnavailable where a proxy says that nobody of ours answers now."""
    try:
        content = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _foreign(response, url) from error
    if is_problem(response):
        raise problem(content, response, url)
    if not response.is_success:
        raise _foreign(response, url)
    return content


def is_problem(response: httpx.Response) -> bool:
    """Whether an answer says of itself that it is a problem document."""
    return str(response.headers.get("content-type", "")).startswith(PROBLEM)


def problem(content: Any, response: httpx.Response, url: str) -> NvrError:
    """The exception that a problem document tells of; the request's id is a note on it."""
    told = content if isinstance(content, Mapping) else {}
    error = _error(told, response, url)
    if told.get("request_id"):
        error.add_note(f"request id: {str(told['request_id'])[:80]}")
    return error


def retry_after(response: httpx.Response) -> float | None:
    """Seconds until one may come again, as the answer says; None where it does not."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _error(told: Mapping[str, Any], response: httpx.Response, url: str) -> NvrError:
    kind, status = str(told.get("type", "")).removeprefix(_PREFIX), response.status_code
    words = str(told.get("detail") or told.get("title") or "no reason given")
    if kind == "invalid-filter":
        return InvalidFilter(words)
    if status == 429:
        return TooManyRequests(f"{words} (said the server at {url})", after_seconds=retry_after(response) or 0.0)
    cls = _BY_TYPE.get(kind) or _BY_STATUS.get(status, StoreUnavailable)
    if cls is InvalidInput:
        field = told.get("field")
        return InvalidInput(words, field=None if field is None else str(field))
    return cls(f"{words} (said the server at {url})")


def _foreign(response: httpx.Response, url: str) -> NvrError:
    if response.status_code in PASSING:
        said = f"{response.status_code} {response.reason_phrase}".strip()
        return StoreUnavailable(
            f"what answers at {url} says {said}, so no server of nvr-rag answers there now; try again"
        )
    return ServerGone(f"what answers at {url} is not nvr-rag")


def lost(error: httpx.HTTPError | httpx.InvalidURL, url: str) -> NvrError:
    """The exception for a request that got no answer."""
    if isinstance(error, httpx.InvalidURL):
        return InvalidInput(f"this cannot be sent: {error}")
    if isinstance(error, httpx.ConnectError):
        return ServerGone(f"no server answers at {url} ({error})")
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"the server at {url} did not answer in time; try again")
    return StoreUnavailable(f"the connection to the server at {url} was lost ({error}); try again")
