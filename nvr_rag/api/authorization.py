"""What a route asks of its caller, who was identified before (see doorman.py).

    def search(body: ..., caller: SearchCaller) -> ...

Every route under /v1 has one of these, which a test sees to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from nvr_rag.access.callers import Caller, Scope


def allowed(*scopes: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: who asks, with one of these scopes. None = whoever may come in at all."""

    async def caller(request: Request) -> Caller:  # async, or each request would be sent through one more thread
        found: Caller = request.state.caller
        if scopes and found.scopes.isdisjoint(scopes):
            found.check(scopes[0])
        return found

    return caller


AnyCaller = Annotated[Caller, Depends(allowed())]
SearchCaller = Annotated[Caller, Depends(allowed(Scope.SEARCH))]
FeedbackCaller = Annotated[Caller, Depends(allowed(Scope.FEEDBACK))]
IngestCaller = Annotated[Caller, Depends(allowed(Scope.INGEST))]
TrainCaller = Annotated[Caller, Depends(allowed(Scope.TRAIN))]
AdminCaller = Annotated[Caller, Depends(allowed(Scope.ADMIN))]
JobCaller = Annotated[Caller, Depends(allowed(Scope.INGEST, Scope.TRAIN, Scope.ADMIN))]
MetricsCaller = Annotated[Caller, Depends(allowed(Scope.METRICS))]
