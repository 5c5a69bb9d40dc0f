"""Errors become problem documents (RFC 9457): exceptions in, application/problem+json out, in one place.

our exception tree           by the table below; with Retry-After where a retry can help
a request that does not fit  422 naming the field; 400 when it is not JSON, 415 when it does not say that it is
the router's own             404, 405, 413
anything else                500 without internals (see gate.py)
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nvr_rag.access.callers import Caller
from nvr_rag.api.multipart import Malformed
from nvr_rag.api.schemas import MANY, ONE
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
    NoCollection,
    NoRoom,
    NotFound,
    NvrError,
    StoreBusy,
    StoreError,
    TimedOut,
    TooManyRequests,
    Unauthenticated,
)
from nvr_rag.observing import context

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
MENDED_AFTER_SECONDS = 30  # where somebody has to do something first, and can while we run
OPENAI_PATHS = frozenset({"/v1/embeddings", "/v1/models"})  # whose clients show people the field `message` alone
_BLANK = "about:blank"
_MOST_ERRORS = 5  # named in one answer
_SHOWN = 200  # characters of a name that came from outside

log = logging.getLogger("nvr_rag.api")

# The nearest class in an error's ancestry counts.
_KINDS: Mapping[type, tuple[int, str, str]] = {
    InvalidInput: (422, "invalid-input", "The request is not valid"),
    InvalidFilter: (422, "invalid-filter", "The filter is not valid"),
    Malformed: (400, "malformed", "The body cannot be read"),
    Unauthenticated: (401, "unauthenticated", "A good key is needed"),
    Forbidden: (403, "forbidden", "The key is not for this"),
    NotFound: (404, "not-found", "There is no such thing"),
    TooManyRequests: (429, "too-many-requests", "The key has asked too often"),
    TimedOut: (503, "timed-out", "The answer would have come too late"),
    Conflict: (409, "conflict", "The request contradicts what is stored"),
    EncoderError: (503, "encoder-unusable", "The files of the index's encoder cannot be used"),
    EncoderMismatch: (503, "encoder-mismatch", "The index and its encoder do not belong together"),
    StoreError: (503, "store-unavailable", "The vector store did not answer"),
    StoreBusy: (503, "index-busy", "Another process owns the index"),
    IndexMissing: (503, "index-missing", "The vector store has lost the index"),
    IndexDamaged: (503, "index-damaged", "The files of the index are damaged"),
    NoRoom: (503, "no-room", "There is no room on the disk"),
    DatabaseUnavailable: (503, "database-unavailable", "The database did not answer"),
}

_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "string_unicode": "must be valid Unicode, but has half of a surrogate pair",
    "int_from_float": "must be a whole number",
}
_SUBJECT = re.compile(r"^(Input|String|List|Dictionary|Value) should ")


class Problem(Response):
    """An answer that says of which kind it is to whatever the request has passed through."""

    media_type = MEDIA_TYPE

    def __init__(self, told: Mapping[str, Any], *, kind: str, headers: Mapping[str, str]) -> None:
        self._told, self._kind, self._given = told, kind, headers
        text = json.dumps(told, ensure_ascii=False)
        super().__init__(text, status_code=told["status"], headers=dict(headers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["problem"] = self._kind
        if scope["path"] in OPENAI_PATHS and "message" not in self._told:
            told = {**self._told, "message": self._told["detail"]}
            await Problem(told, kind=self._kind, headers=self._given)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def problem(
    status: int,
    detail: str,
    *,
    request_id: str,
    kind: tuple[str, str] | None = None,
    field: str | None = None,
    reasons: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem document. `kind` is its slug and title; without one the status says it all."""
    slug, title = kind or ("", HTTPStatus(status).phrase)
    body: dict[str, Any] = {"type": f"urn:nvr-rag:{slug}" if slug else _BLANK, "title": title, "status": status}
    body["detail"] = _printable(detail)
    if field:
        body["field"] = _printable(field)
    if reasons is not None:
        body["reasons"] = [_printable(reason) for reason in reasons]
    body["request_id"] = request_id
    return Problem(body, kind=slug or str(status), headers=headers or {})


def install(app: FastAPI) -> None:
    """Let every error of an app become a problem document."""
    app.add_exception_handler(NvrError, _of_ours)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_router)


async def _of_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, NvrError)
    return answer_to(request, error)


def answer_to(request: Request, error: NvrError, caller: Caller | None = None) -> Response:
    """The problem document for one of our errors; raises it where a caller can do nothing about it. `caller` is who
    asks, where the request does not say so yet."""
    kind = next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), None)
    if kind is None:
        raise error  # the gate logs it and answers 500
    status, slug, title = kind
    if status >= 500:
        log.warning("%s: %s (request %s)", type(error).__name__, error, request.state.request_id)
    return problem(
        status,
        told_to(caller or getattr(request.state, "caller", None), error),
        request_id=request.state.request_id,
        kind=(slug, title),
        field=error.field if isinstance(error, InvalidInput) else None,
        headers=_advice(status, error),
    )


def told_to(caller: Caller | None, error: NvrError) -> str:
    """An error in words for a caller, None = nobody knows who: what goes on inside is for who manages the server."""
    if isinstance(error, NoCollection):
        return error.without_others
    if (caller is not None and caller.manages) or not error.inside:
        return str(error)
    title = next((_KINDS[cls][2] for cls in type(error).__mro__ if cls in _KINDS), "The server cannot do it")
    return f"{title}; the server's log has more under the request {context.known().get('request_id', '')}"


def _advice(status: int, error: Exception) -> dict[str, str] | None:
    """Whoever is told that something is unavailable is told when to come again; who has no key, how to send one."""
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(math.ceil(error.after_seconds))}
    if status != 503:
        return None
    soon = isinstance(error, NvrError) and error.retry
    return {"Retry-After": str(RETRY_AFTER_SECONDS if soon else MENDED_AFTER_SECONDS)}


async def _of_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {"Allow": _possible(request)} if error.status_code == 405 else error.headers
    details = {
        400: "the body cannot be read as JSON: it is not UTF-8, or nested too deep",
        404: "there is no such path; /openapi.json lists all of them",
        405: f"{request.method} is not possible here; possible: {(headers or {}).get('Allow', 'nothing')}",
    }
    detail = details.get(error.status_code, str(error.detail))
    return problem(error.status_code, detail, request_id=request.state.request_id, headers=headers)


def _possible(request: Request) -> str:
    """The methods of a path; the router names those of the first of its routes only."""
    app: FastAPI = request.app
    matching = (
        route
        for part in app.routes  # a router that was included keeps its routes to itself
        for route in getattr(getattr(part, "original_router", None), "routes", [part])
        if isinstance(route, Route) and route.path_regex.match(request.url.path)
    )
    return ", ".join(sorted({method for route in matching for method in route.methods or ()}))


async def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    request_id = request.state.request_id
    errors = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        place = f"{first['ctx']['error']} at character {first['loc'][1]}"
        return problem(400, f"the body is not valid JSON: {place}", request_id=request_id)
    if isinstance(error.body, bytes):
        return problem(415, "say what the body is: Content-Type: application/json", request_id=request_id)
    # Where a value came from, the body or elsewhere, is the first part of its place.
    detail, field = in_words([{**item, "loc": item["loc"][1:]} for item in errors])
    status, slug, title = _KINDS[InvalidInput]
    return problem(status, detail, request_id=request_id, kind=(slug, title), field=field)


def in_words(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What pydantic found wrong, for a person, and the path of the first field that is; "" = it is all of the value."""
    detail = "; ".join(_sentence(item) for item in errors[:_MOST_ERRORS])
    if len(errors) > _MOST_ERRORS:
        detail += f"; and {len(errors) - _MOST_ERRORS} more"
    return detail, _path(errors[0]["loc"])


def _sentence(error: Mapping[str, Any]) -> str:
    words = _WORDS.get(error["type"]) or _SUBJECT.sub("must ", error["msg"])
    value = error.get("input")
    if error["type"] not in _WORDS and (value is None or isinstance(value, (bool, int, float))):
        words += f", not {json.dumps(value)}"
    return f"{_path(error['loc']) or 'the body'} {words}"


def _path(location: Sequence[str | int]) -> str:
    """("documents", 3, "uri") is documents[3].uri."""
    parts = location[1:] if location and location[0] in (ONE, MANY) else location
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:_SHOWN]}" for part in parts)
    return text.removeprefix(".")[:_SHOWN]


def _printable(text: str) -> str:
    """Text that came from outside, without lone surrogates, which no JSON reader is bound to accept."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
