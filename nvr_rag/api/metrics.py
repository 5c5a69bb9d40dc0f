"""What Prometheus reads. It tells of all collections, so a key needs a scope of its own for it."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import Response

from nvr_rag.api.authorization import MetricsCaller
from nvr_rag.api.dependencies import PartsOf
from nvr_rag.observing.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["health"])

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=_TEXT)
async def metrics(request: Request, parts: PartsOf, _caller: MetricsCaller) -> Response:
    """Of all server processes behind this address together, and what the database knows of workers and indexes."""
    counts: Metrics = request.app.state.metrics
    text = await run_sync(lambda: counts.text(parts.stored.figures()), limiter=parts.spare)
    return Response(text, media_type=CONTENT_TYPE)
