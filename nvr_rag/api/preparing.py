"""Keeps what this process may have to answer from loaded: what serves, what served before, what is about to.

Deployments of the database enter; open indexes with warm encoders leave, and a word on each that the process's row
passes on. Nothing is loaded by the first request after a switch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from nvr_rag import deployments
from nvr_rag.api.probing import Probe
from nvr_rag.deployments import Deployment
from nvr_rag.errors import NvrError
from nvr_rag.retries import in_words
from nvr_rag.types import Query
from nvr_rag.workspace import Workspace

POLL_SECONDS = 0.25
RETRY_SECONDS = 5.0  # after a deployment could not be loaded
STOP_SECONDS = 30.0  # that what is being loaded, or asked, may take to end

log = logging.getLogger(__name__)


class Preparer:
    """Follows the deployments in a thread of its own."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.probe = Probe(workspace)
        self._prepared: dict[int, str | None] = {}
        self._tried: dict[int, float] = {}  # when a deployment that could not be loaded was last tried
        self._reranked, self._reranker_due = False, 0.0
        self.reranker_problem: str | None = None  # why the cross-encoder that the settings name cannot be loaded
        self._stop = threading.Event()
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give up, once what is being loaded is loaded."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)  # an encoder that hangs is no reason to hang as well

    @property
    def warm(self) -> bool:
        """Everything that served at the start has been tried."""
        return self._warm.is_set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def prepared(self) -> Mapping[int, str | None]:
        """By deployment id: None once it is loaded, or why it cannot be."""
        return dict(self._prepared)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except NvrError as error:
                log.warning("deployments cannot be prepared: %s", error)
            except Exception:  # the thread must outlive what nobody has foreseen
                log.exception("deployments cannot be prepared")
            self._warm.set()
            self._stop.wait(POLL_SECONDS)

    def _follow(self) -> None:
        with self._workspace.database.read() as connection:
            serving = deployments.all_serving(connection)
            wanted = deployments.to_load(connection)
        if not wanted and not self.warm:
            self._workspace.default_encoder()
        names = {one.collection_id: name for name, one in serving.items()}
        for deployment in sorted(wanted, key=lambda one: one.state != "serving"):
            if self._stop.is_set():
                return
            if self._is_due(deployment) and deployment.collection_id in names:
                self._load(deployment, names[deployment.collection_id])
        self._load_reranker()
        self._prepared = {one.id: self._prepared[one.id] for one in wanted if one.id in self._prepared}
        loaded = {key for key, wrong in self._prepared.items() if wrong is None}
        self.probe.look({name: one for name, one in serving.items() if one.id in loaded})

    def _is_due(self, deployment: Deployment) -> bool:
        if deployment.id not in self._prepared:
            return True
        failed = self._prepared[deployment.id] is not None
        return failed and time.monotonic() - self._tried[deployment.id] > RETRY_SECONDS

    def _load_reranker(self) -> None:
        if self._reranked or time.monotonic() < self._reranker_due:
            return
        try:
            reranker = self._workspace.reranker()
            if reranker is not None:
                reranker.score("warm up", ["warm up"])
            self._reranked, self.reranker_problem = True, None
        except NvrError as error:
            log.warning("the reranker cannot be loaded: %s", error)
            self.reranker_problem, self._reranker_due = str(error), time.monotonic() + RETRY_SECONDS

    def _load(self, deployment: Deployment, collection: str) -> None:
        self._tried[deployment.id] = time.monotonic()
        try:
            query = Query(text="warm up", collection=collection, k=1)
            self._workspace.retriever.search(query, deployment_id=deployment.id)
            self._prepared[deployment.id] = None
        except NvrError as error:
            log.warning("the deployment %s of %s cannot be loaded: %s", deployment.id, collection, error)
            self._prepared[deployment.id] = str(error)
        except Exception as error:
            log.exception("the deployment %s of %s cannot be loaded", deployment.id, collection)
            self._prepared[deployment.id] = in_words(error)
