"""Is this process ready to answer? Says in words what is missing; nothing is loaded or encoded for it: the encoders
and the fingerprints are looked at by the preparer, in a thread of its own (see probing.py)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from nvr_rag import deployments, indexes
from nvr_rag.api.preparing import Preparer
from nvr_rag.errors import NvrError
from nvr_rag.query_log import QueryLog
from nvr_rag.running.services import Service
from nvr_rag.workspace import Workspace

KEPT_SECONDS = 0.5  # that an answer is good for: anybody may ask, as often as he likes

log = logging.getLogger(__name__)


class Readiness:
    """Asks every part of the process whether it is well."""

    def __init__(
        self,
        workspace: Workspace,
        query_log: QueryLog,
        services: Sequence[Service],
        preparer: Preparer,
        stopping: threading.Event,
    ) -> None:
        self._workspace, self._query_log, self._services = workspace, query_log, services
        self._preparer, self._stopping = preparer, stopping
        self._said: list[str] = []  # in the log
        self._more: list[Callable[[], str | None]] = []
        self._one = asyncio.Lock()  # who looks; the others wait for what he finds
        self._kept: tuple[float, list[str]] = (0.0, [])  # until when

    def watch(self, part: Callable[[], str | None]) -> None:
        """Ask one more part of the process, which answers with what is wrong."""
        self._more.append(part)

    async def asked(self, threads: CapacityLimiter) -> list[str]:
        """The same as `problems`, as it was a moment ago at most: however many ask, one thread looks now and then."""
        async with self._one:
            until, found = self._kept
            if self._stopping.is_set() or time.monotonic() >= until:
                found = await run_sync(self.problems, limiter=threads)
                self._kept = (time.monotonic() + KEPT_SECONDS, found)
            return found

    def problems(self) -> list[str]:
        """Why the process is not ready, in words."""
        if self._stopping.is_set():
            return ["the server is stopping"]
        found = list(self._problems())
        if found != self._said:  # whoever asks may not be told
            log.warning("not ready: %s" if found else "ready again%s", "; ".join(found))
        self._said = found
        return found

    def _problems(self) -> Iterator[str]:
        if not self._query_log.alive:
            yield "the query log has stopped; restart the server"
        if not self._preparer.alive:
            yield "nothing follows the deployments any more; restart the server"
        if self._preparer.reranker_problem is not None:
            yield self._preparer.reranker_problem
        for part in self._more:
            said = part()
            if said is not None:
                yield said
        for service in self._services:
            problem = service.problem()
            if problem is not None:
                yield f"{service.name}: {problem}"
        try:
            with self._workspace.database.read() as connection:
                serving = deployments.all_serving(connection)
                self._workspace.database.check(connection)
        except NvrError as error:
            yield str(error)
            return
        if not self._preparer.warm:
            yield "indexes and encoders are being opened; wait a moment"
            return
        yield from self._preparer.probe.problems()
        prepared = self._preparer.prepared
        for collection, deployment in serving.items():
            wrong = prepared.get(deployment.id)  # None also where it is not known yet
            try:
                with self._workspace.database.read() as connection:
                    indexes.answers_at(connection, deployment.index_id)
                self._workspace.index(deployment.index_id).points.get([indexes.NOBODY])
            except NvrError as error:
                wrong = str(error)
            if wrong is not None:
                yield f"collection {collection}: {wrong}"
