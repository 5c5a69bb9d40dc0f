"""How the API describes itself: which problems a route answers with, and their media type."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from nvr_rag.api.problems import MEDIA_TYPE
from nvr_rag.api.schemas import Problem

TAGS = [
    {"name": "search", "description": "Ask a collection."},
    {"name": "feedback", "description": "Say which hits were right; retraining learns from it."},
    {"name": "embeddings", "description": "Make vectors of texts, with clients of OpenAI's API if you like."},
    {"name": "documents", "description": "Put texts and files, list and delete documents; mirror folders."},
    {"name": "retraining", "description": "Make a better retriever of feedback."},
    {"name": "jobs", "description": "Work that goes on in the background."},
    {"name": "collections", "description": "Sets of documents that are searched as one."},
    {"name": "health", "description": "For supervisors and load balancers."},
]

_REASONS = {
    400: "The body is not what its Content-Type says.",
    401: "No key, or one that is not good (any more).",
    403: "The key is not for this.",
    404: "What was named does not exist, or is not for this caller.",
    408: "The body came too slowly.",
    409: "The request contradicts what is stored.",
    413: "The body is too large.",
    415: "The body does not say that it is JSON, or is of another type.",
    422: "A value is not acceptable; `field` names it.",
    429: "The key has asked too often; Retry-After says when to come again.",
    503: "The database or the vector store does not answer; with Retry-After when trying again can help.",
}
_WITH_BODY = (400, 408, 413, 415)
_AT_THE_DOOR = (401, 403, 422, 429, 503)
_WITHOUT_KEYS = "A server that has no keys listens on its own machine only, and asks for none."


def problem_responses(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for its `responses`; `body` adds those that every JSON body can have."""
    every = sorted({*statuses, *(_WITH_BODY if body else ())})
    return {status: {"description": _REASONS[status], "model": Problem} for status in every}


def operation_id(route: APIRoute) -> str:
    """The function's name: clients made from the description read better."""
    return route.name


def describe(app: FastAPI, *, open_paths: Collection[str] = (), key_header: str = "X-API-Key") -> None:
    """Let an app's OpenAPI say what FastAPI cannot be told: the media type of problems, and that every path but those
    that are open takes a key."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema is not None
        schema = made()
        if not known:
            schemes = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key. " + _WITHOUT_KEYS},
                "header": {"type": "apiKey", "in": "header", "name": key_header, "description": _WITHOUT_KEYS},
            }
            schema["components"]["securitySchemes"] = schemes
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    if path not in open_paths:
                        operation["security"] = [{name: []} for name in schemes]
                        operation["responses"] = _with_key(operation["responses"])
                    _name_problems(operation["responses"])
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _with_key(responses: dict[str, Any]) -> dict[str, Any]:
    """The answers of a route, and those that the doorman gives in its place."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    before = {str(status): {"description": _REASONS[status], "content": dict(content)} for status in _AT_THE_DOOR}
    return dict(sorted({**before, **responses}.items()))


def _name_problems(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if int(status) >= 400:
            (said,) = response["content"].values()
            response["content"] = {MEDIA_TYPE: said}
