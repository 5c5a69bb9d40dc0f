"""Is the process there, and is it of use?"""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import Response

from nvr_rag.api.dependencies import Parts, PartsOf
from nvr_rag.api.openapi import problem_responses
from nvr_rag.api.problems import RETRY_AFTER_SECONDS, problem
from nvr_rag.api.schemas import Alive, Ready

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
    """503 with the reasons while the database does not answer, a service has a problem, or an index is not open."""
    # With threads of its own: those of the others may all be busy.
    return await run_sync(_answer, request, parts, limiter=parts.spare)


def _answer(request: Request, parts: Parts) -> Ready | Response:
    reasons = parts.readiness.problems()
    if not reasons:
        return Ready()
    return problem(
        503,
        "; ".join(reasons),
        request_id=request.state.request_id,
        kind=("not-ready", "Not ready"),
        reasons=reasons,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )
