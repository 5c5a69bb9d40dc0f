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
    reasons = await parts.readiness.asked(parts.spare)
    if not reasons:
        return Ready()
    if not await _is_told(request.headers, parts):
        reasons = ["the server is not ready; its log says why, and so does this path to a key with the scope admin"]
    return problem(
        503,
        "; ".join(reasons),
        request_id=request.state.request_id,
        kind=("not-ready", "Not ready"),
        reasons=reasons,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


async def _is_told(headers: Headers, parts: Parts) -> bool:
    """Whether a request may know why the server is not ready; this path is open, so the doorman has not asked."""
    try:
        key = key_of(headers)
        caller = parts.keyring.remembered(key)
        if key is None:  # strangers may have begun to come in a moment ago
            return await run_sync(parts.keyring.is_open, limiter=parts.spare)
        if caller is None:
            caller = await run_sync(parts.keyring.identify, key, limiter=parts.spare)
        return Scope.ADMIN in caller.scopes
    except NvrError:
        return False
