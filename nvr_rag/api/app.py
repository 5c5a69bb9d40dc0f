"""The app: an open workspace and services go in, an ASGI application comes out.

It starts and stops what runs beside the routes. The workspace belongs to the caller, who closes it afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial

from anyio import CapacityLimiter
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from nvr_rag import __version__
from nvr_rag.access.buckets import Buckets
from nvr_rag.access.keyring import Keyring
from nvr_rag.api import (
    agents,
    collections,
    documents,
    embeddings,
    feedback,
    health,
    ingest,
    jobs,
    metrics,
    openapi,
    problems,
    retrain,
    search,
    uploads,
)
from nvr_rag.api.dependencies import Parts
from nvr_rag.api.doorman import KEY_HEADER, OPEN_PATHS, Doorman
from nvr_rag.api.events import Streams
from nvr_rag.api.gate import Gate, Limit
from nvr_rag.api.preparing import Preparer
from nvr_rag.api.readiness import Readiness
from nvr_rag.observing.metrics import Metrics
from nvr_rag.observing.stored import Stored
from nvr_rag.query_log import QueryLog
from nvr_rag.running.services import Service
from nvr_rag.settings import Settings
from nvr_rag.workspace import Workspace

SPARE_THREADS = 4  # for who asks how the server is


def create_app(
    workspace: Workspace, services: Sequence[Service] = (), *, local: bool = True, figures: Metrics | None = None
) -> FastAPI:
    """The API over a workspace; while it runs, so do the services and the query log.

    `local`: only users of this machine can ask, and need no key while there is none. `figures` are those of several
    processes together; by default the app has its own.
    """
    workspace.meter = counts = figures or Metrics()
    stopping = threading.Event()
    app = FastAPI(
        title="nvr-rag",
        summary="Retrieval for RAG that gets better with use",
        version=__version__,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=openapi.operation_id,
        lifespan=_lifespan(workspace, services, stopping, local),
        # The pages that FastAPI offers load scripts from elsewhere into this origin; /openapi.json says it all.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Exports what requests contain wherever the environment says.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(uploads.ByShape)
    app.add_middleware(Doorman)
    app.add_middleware(  # added last, it is what a request meets first
        Gate,
        limit_of=partial(_limit, workspace.settings),
        max_in_flight=workspace.settings.api.max_in_flight,
        stopping=stopping,
        counts=counts,
    )
    app.state.stopping, app.state.metrics = stopping, counts
    problems.install(app)
    openapi.describe(app, open_paths=OPEN_PATHS, key_header=KEY_HEADER)
    for part in (search, feedback, embeddings, documents, uploads, ingest, collections, retrain, jobs, health, metrics):
        app.include_router(part.router)
    app.state.agents = agents.mount(app, max_body_bytes=workspace.settings.api.max_body_bytes)
    return app


def _limit(settings: Settings, scope: Scope) -> Limit:
    """How large a body may be: files go to the disk, everything else into memory."""
    if uploads.is_form(scope):
        whole = settings.ingest.max_upload_bytes + uploads.MAX_HEAD_BYTES
        return Limit(bytes=whole, setting="NVR_INGEST__MAX_UPLOAD_BYTES")
    return Limit(bytes=settings.api.max_body_bytes, setting="NVR_API__MAX_BODY_BYTES")


def _lifespan(
    workspace: Workspace, services: Sequence[Service], stopping: threading.Event, local: bool
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as running:
            app.state.parts = _start(workspace, services, running, stopping, local=local)
            async with app.state.agents():
                yield
            await run_in_threadpool(running.close)

    return lifespan


def _start(
    workspace: Workspace, services: Sequence[Service], running: ExitStack, stopping: threading.Event, *, local: bool
) -> Parts:
    """Start everything; `running` stops it in the opposite order."""
    workspace.serves = True
    query_log = QueryLog(workspace.database, workspace.meter)
    running.callback(query_log.close)
    for service in services:
        service.start(workspace)
        running.callback(service.stop)
    preparer = Preparer(workspace)
    preparer.start()
    running.callback(preparer.stop)
    return Parts(
        workspace=workspace,
        query_log=query_log,
        services=services,
        preparer=preparer,
        readiness=Readiness(workspace, query_log, services, preparer, stopping),
        stored=Stored(workspace.database),
        spare=CapacityLimiter(SPARE_THREADS),
        streams=Streams(),
        keyring=Keyring(workspace.database, required=not local),
        buckets=Buckets(workspace.settings.api.requests_per_minute),
    )
