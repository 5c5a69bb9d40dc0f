"""Is this process ready to answer? Says in words what is missing; nothing is loaded or encoded for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nvr_rag import deployments, indexes
from nvr_rag.api.preparing import Preparer
from nvr_rag.errors import NvrError
from nvr_rag.query_log import QueryLog
from nvr_rag.running.services import Service
from nvr_rag.workspace import Workspace


class Readiness:
    """Asks every part of the process whether it is well."""

    def __init__(
        self, workspace: Workspace, query_log: QueryLog, services: Sequence[Service], preparer: Preparer
    ) -> None:
        self._workspace, self._query_log, self._services = workspace, query_log, services
        self._preparer = preparer

    def problems(self) -> list[str]:
        """Why the process is not ready, in words."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        if not self._query_log.alive:
            yield "the query log has stopped; restart the server"
        if not self._preparer.alive:
            yield "nothing follows the deployments any more; restart the server"
        for service in self._services:
            problem = service.problem()
            if problem is not None:
                yield f"{service.name}: {problem}"
        try:
            with self._workspace.database.read() as connection:
                serving = deployments.all_serving(connection)
        except NvrError as error:
            yield str(error)
            return
        if not self._preparer.warm:
            yield "indexes and encoders are being opened; wait a moment"
            return
        for collection, deployment in serving.items():
            try:
                with self._workspace.database.read() as connection:
                    indexes.answers_at(connection, deployment.index_id)
                self._workspace.index(deployment.index_id).points.get([indexes.NOBODY])
            except NvrError as error:
                yield f"collection {collection}: {error}"
