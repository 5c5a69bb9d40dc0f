"""A running API for tests: uvicorn in a thread, an HTTP client, and a small indexer as its service."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from nvr_rag import indexes
from nvr_rag.api.app import create_app
from nvr_rag.api.listening import listen, url_of
from nvr_rag.api.server import server_config
from nvr_rag.errors import NotFound
from nvr_rag.running.services import Service
from nvr_rag.settings import ApiSettings
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.support import paragraphs


class SmallIndexer:
    """Keeps every index up with the log, a chunk a paragraph, and drops those that retired."""

    name = "small indexer"
    work = "index"
    job_kinds: Sequence[str] = ()

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._stop = threading.Event()
        self._paused = threading.Lock()

    def start(self, workspace: Workspace) -> None:
        self._thread = threading.Thread(target=self._run, args=(workspace,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def problem(self) -> str | None:
        return self.trouble

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._paused:
            yield

    def _run(self, workspace: Workspace) -> None:
        while not self._stop.wait(0.02):
            with self._paused:
                self._round(workspace)

    def _round(self, workspace: Workspace) -> None:
        with workspace.database.read() as connection:
            every = indexes.all_infos(connection)
        for index in every:
            if index.state == "retired":
                workspace.close_index(index.id)
                indexes.drop_retired(workspace.database, workspace.store, index.id)
            else:
                with suppress(NotFound):  # deleted meanwhile
                    indexing.catch_up(workspace.database, workspace.index(index.id), paragraphs)


class Api:
    """A client of a running API, and what is behind it."""

    def __init__(self, workspace: Workspace, indexer: SmallIndexer, client: httpx.Client, app: FastAPI) -> None:
        self.workspace, self.indexer, self.client, self.app = workspace, indexer, client, app

    def call(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        """The JSON of an answer that has the expected status."""
        response = self.client.request(method, path, **options)
        assert response.status_code == status, response.text
        return response.json()

    def put(self, *documents: dict[str, Any], collection: str = "default") -> list[dict[str, Any]]:
        """Put documents and wait until they are found."""
        body = {"collection": collection, "documents": documents, "wait": True}
        answer = self.call("POST", "/v1/documents", json=body)
        results: list[dict[str, Any]] = answer["documents"]
        return results

    def search(self, query: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("POST", "/v1/search", json={"query": query, **options})
        return answer

    def texts(self, query: str, **options: Any) -> list[str]:
        return [hit["text"] for hit in self.search(query, **options)["hits"]]


@contextmanager
def running(workspace: Workspace, services: Sequence[Service] = ()) -> Iterator[Api]:
    """Serve a workspace, with a small indexer and other services, while the block runs."""
    indexer = SmallIndexer()
    listener = listen(ApiSettings(port=0))
    url = url_of(listener)
    app = create_app(workspace, [indexer, *services])
    server = uvicorn.Server(server_config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Api(workspace, indexer, client, app)
    finally:
        server.should_exit = True
        thread.join()
