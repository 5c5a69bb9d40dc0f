"""What routes work with, named once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Query, Request

from nvr_rag.access.buckets import Buckets
from nvr_rag.access.keyring import Keyring
from nvr_rag.api.events import Streams
from nvr_rag.api.limits import CollectionName
from nvr_rag.api.preparing import Preparer
from nvr_rag.api.readiness import Readiness
from nvr_rag.observing.stored import Stored
from nvr_rag.query_log import QueryLog
from nvr_rag.running.services import Service
from nvr_rag.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The parts of a running app."""

    workspace: Workspace
    query_log: QueryLog
    services: Sequence[Service]
    preparer: Preparer
    readiness: Readiness
    stored: Stored
    spare: CapacityLimiter  # threads that are free also while requests have all the others
    streams: Streams
    keyring: Keyring
    buckets: Buckets


async def _parts(request: Request) -> Parts:  # async, or each request would be sent through one more thread
    parts: Parts = request.app.state.parts
    return parts


PartsOf = Annotated[Parts, Depends(_parts)]
InCollection = Annotated[CollectionName, Query(description="Name of a collection.")]
