"""How the API describes itself: which problems a route answers with, and their media type."""

from __future__ import annotations

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


def problem_responses(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for its `responses`; `body` adds those that every JSON body can have."""
    every = sorted({*statuses, *(_WITH_BODY if body else ())})
    return {status: {"description": _REASONS[status], "model": Problem} for status in every}


def operation_id(route: APIRoute) -> str:
    """The function's name: clients made from the description read better."""
    return route.name


def describe(app: FastAPI) -> None:
    """Let an app's OpenAPI name the media type of problems, which FastAPI cannot be told."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema is not None
        schema = made()
        if not known:
            for path in schema["paths"].values():
                for operation in path.values():
                    _name_problems(operation["responses"])
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _name_problems(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if int(status) >= 400:
            (said,) = response["content"].values()
            response["content"] = {MEDIA_TYPE: said}
