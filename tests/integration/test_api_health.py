"""Readiness: a part that is dead or missing makes the server say so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nvr_rag.api import readiness
from nvr_rag.deployments import serving
from nvr_rag.errors import DatabaseUnavailable
from nvr_rag.query_log import QueryLog
from nvr_rag.testing import HashEncoder
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "KEPT_SECONDS", 0.0)


def reasons(api: Api) -> list[str]:
    problem = api.call("GET", "/readyz", 503)
    assert problem["type"] == "urn:nvr-rag:not-ready"
    assert problem["detail"] == "; ".join(problem["reasons"])
    found: list[str] = problem["reasons"]
    assert api.call("GET", "/livez") == {"status": "alive"}  # whatever is wrong
    return found


def test_a_service_with_a_problem(api: Api) -> None:
    api.indexer.trouble = "the disk is full"
    assert reasons(api) == ["small indexer: the disk is full"]
    api.indexer.trouble = None
    assert api.call("GET", "/readyz") == {"status": "ready"}


def test_however_many_ask_it_looks_now_and_then(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    found = readiness.Readiness._problems

    def look(self: readiness.Readiness) -> Iterator[str]:
        looks.append(time.monotonic())
        time.sleep(0.2)  # the others come meanwhile
        return found(self)

    monkeypatch.setattr(readiness, "KEPT_SECONDS", 30.0)
    monkeypatch.setattr(readiness.Readiness, "_problems", look)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.client.get("/readyz").status_code, range(40)))
    assert answers == [answers[0]] * 40
    assert len(looks) == 1
    kept = api.app.state.parts.readiness
    kept._kept = (time.monotonic(), kept._kept[1])  # it is good for no longer
    api.indexer.trouble = "the disk is full"
    assert reasons(api)[0] == "small indexer: the disk is full"
    assert len(looks) == 2


def test_a_dead_query_log(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QueryLog, "alive", False)
    assert reasons(api) == ["the query log has stopped; restart the server"]


def test_a_database_that_does_not_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise DatabaseUnavailable("the connection was lost")

    with api.indexer.paused():
        monkeypatch.setattr(api.workspace.database, "read", gone)
        assert reasons(api) == ["the connection was lost"]
        monkeypatch.undo()


def test_a_log_of_sqlite_that_somebody_deleted(api: Api) -> None:
    """Told also while nobody writes, for then there is still time to stop in order."""
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    if api.workspace.database.engine.dialect.name != "sqlite":
        return
    with api.indexer.paused():
        (api.workspace.home / "corpus.sqlite3-wal").unlink()
        (reason,) = reasons(api)
        assert "stop nvr-rag in order" in reason


def test_a_lost_index(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put({"uri": "a", "text": "green tea"})
    with api.workspace.database.read() as connection:
        index_id = serving(connection, "default").index_id
    with api.indexer.paused():
        api.workspace.close_index(index_id)
        (name,) = api.workspace.store.names()
        api.workspace.store.drop(name)
        (reason,) = reasons(api)
        assert reason.startswith("collection default: ")
        assert api.call("POST", "/v1/search", 503, json={"query": "tea"})["type"] == "urn:nvr-rag:index-missing"
        api.workspace.rebuild_if_lost(index_id)
        (reason,) = reasons(api)
        assert "0 of 1 changes" in reason
    while api.client.get("/readyz").status_code == 503:
        time.sleep(0.02)
    assert api.texts("tea") == ["green tea"]


def test_not_ready_while_the_encoder_is_being_loaded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.create_collection("default")
    loading, loaded = threading.Event(), threading.Event()
    encode = HashEncoder.encode_queries

    def slowly(self: HashEncoder, texts: list[str]) -> object:
        loading.set()
        assert loaded.wait(10)
        return encode(self, texts)

    monkeypatch.setattr(HashEncoder, "encode_queries", slowly)
    with running(workspace) as api:
        assert loading.wait(10)  # without any request
        assert reasons(api) == ["indexes and encoders are being opened; wait a moment"]
        loaded.set()
        deadline = time.monotonic() + 10
        while api.client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_stopping_stops_the_services_and_leaves_the_workspace_open(workspace: Workspace) -> None:
    workspace.create_collection("default")
    with running(workspace) as api:
        api.put({"uri": "a", "text": "green tea"})
        indexer = api.indexer
    assert not indexer._thread.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name in ("query-log", "preparing")]
    assert workspace.index(1).points.count() == 1
