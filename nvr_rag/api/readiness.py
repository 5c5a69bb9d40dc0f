"""Is this process ready to answer? Warms up what serves, and says in words what is missing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence

from nvr_rag import deployments
from nvr_rag.errors import NvrError
from nvr_rag.query_log import QueryLog
from nvr_rag.services import Service
from nvr_rag.types import Query
from nvr_rag.workspace import Workspace

log = logging.getLogger(__name__)


class Readiness:
    """Opens index and encoder of every serving deployment in the background, so that the first query is quick."""

    def __init__(self, workspace: Workspace, query_log: QueryLog, services: Sequence[Service]) -> None:
        self._workspace, self._query_log, self._services = workspace, query_log, services
        self._stop = threading.Event()
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._warm_up, name="warm-up", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give up warming, once what is being loaded is loaded."""
        self._stop.set()
        self._thread.join()

    def problems(self) -> list[str]:
        """Why the process is not ready, in words; nothing is encoded for it."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        if not self._query_log.alive:
            yield "the query log has stopped; restart the server"
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
        if not self._warm.is_set():
            yield "indexes and encoders are being opened; wait a moment"
            return
        for collection, deployment in serving.items():
            try:
                self._workspace.index(deployment.index_id)
            except NvrError as error:
                yield f"collection {collection}: {error}"

    def _warm_up(self) -> None:
        try:
            with self._workspace.database.read() as connection:
                collections = list(deployments.all_serving(connection))
            if not collections:
                self._workspace.default_encoder()
            for collection in collections:
                if self._stop.is_set():
                    break
                self._warm_collection(collection)
        except NvrError as error:
            log.warning("warming up failed: %s", error)
        except Exception:  # readiness must not wait for ever; the first search meets the same error
            log.exception("warming up failed")
        finally:
            self._warm.set()

    def _warm_collection(self, collection: str) -> None:
        try:
            self._workspace.retriever.search(Query(text="warm up", collection=collection, k=1))
        except NvrError as error:
            log.warning("the collection %s cannot be searched yet: %s", collection, error)
