"""Is the process there, and is it of use?"""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from nvr_rag.access.callers import Scope
from nvr_rag.api.dependencies import Parts, PartsOf
from nvr_rag.api.doorman import key_of
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.problems import RETRY_AFTER_SECONDS, problem
from nvr_rag.api.schemas import Alive, Ready
from nvr_rag.errors import NvrError

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Does the process run?")
async def livez() -> Alive:
    """Always 200."""
    return Alive()


@router.get(
    "/readyz",
    summary="Are searches and changes answered?",
    response_model=Ready,
    responses=problem_responses(503),
)
async def readyz(request: Request, parts: PartsOf) -> Ready | Response:
    """503 while the database does not answer, a service has a problem, or an index is not open. Anybody may ask; why it
    is not ready is told to keys with the scope admin, and to everybody on this machine while there are no keys."""
    # With threads of its own: those of the others may all be busy.
    return await run_sync(_answer, request, parts, limiter=parts.spare)


def _answer(request: Request, parts: Parts) -> Ready | Response:
    reasons = parts.readiness.problems()
    if not reasons:
        return Ready()
    if not _is_told(request.headers, parts):
        reasons = ["the server is not ready; its log says why, and so does this path to a key with the scope admin"]
    return problem(
        503,
        "; ".join(reasons),
        request_id=request.state.request_id,
        kind=("not-ready", "Not ready"),
        reasons=reasons,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _is_told(headers: Headers, parts: Parts) -> bool:
    """Whether a request may know why the server is not ready; this path is open, so the doorman has not asked."""
    try:
        key = key_of(headers)
        if key is None:
            return parts.keyring.is_open()
        return Scope.ADMIN in parts.keyring.identify(key).scopes
    except NvrError:
        return False
