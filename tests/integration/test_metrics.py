"""What /metrics tells: what was asked, what went wrong, how the work stands; and that it costs next to nothing."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import update

from ingest.indexer import Indexer
from nvr_rag import jobs
from nvr_rag.access.callers import Scope
from nvr_rag.access.keys import NewKey, create
from nvr_rag.db import tables as t
from nvr_rag.errors import DatabaseUnavailable
from nvr_rag.observing import stored
from nvr_rag.observing.metrics import Metrics
from nvr_rag.types import DeploymentRef, Mode, SearchResult
from tests.integration.api_support import Api
from tests.integration.metrics_support import Scrape
from tests.support import House, document


def scrape(api: Api) -> Scrape:
    response = api.client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(response.text)


def test_what_was_asked(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put({"uri": "a", "text": "green tea"})
    answers = [api.search("tea") for _ in range(3)] + [api.search("tea", mode="lexical")]
    for number in range(2):
        item = {"query_id": answers[number]["query_id"], "chunk_id": answers[number]["hits"][0]["chunk_id"]}
        api.call("POST", "/v1/feedback", json={**item, "kind": "cited"})
    api.call("GET", "/v1/collections/default")
    api.call("GET", "/v1/collections/nothing-of-the-kind", 404)
    api.call("POST", "/v1/search", 422, json={"query": ""})
    api.call("GET", "/no/such/path", 404)

    found = scrape(api)
    assert found.value("queries_total", collection="default") == 4
    assert found.value("queries_total", collection="default", mode="lexical") == 1
    for stage in ("encode", "search", "hydrate"):
        assert found.value("search_stage_seconds_count", stage=stage) == 4
        assert 0 < found.value("search_stage_seconds_sum", stage=stage) < 4
    assert found.value("http_request_seconds_count", route="/v1/search", method="POST", status="2xx") == 4
    assert found.value("http_request_seconds_count", route="/v1/search", method="POST", status="4xx") == 1
    # By template: what stands in paths would be a series each.
    assert found.value("http_request_seconds_count", route="/v1/collections/{name}", status="2xx") == 1
    assert found.value("http_request_seconds_count", route="/v1/collections/{name}", status="4xx") == 1
    assert found.value("http_request_seconds_count", route="none", status="4xx") == 1
    assert found.value("feedback_total", kind="cited") == 2
    assert found.value("problems_total", kind="not-found") == 1
    assert found.value("problems_total", kind="invalid-input") == 1
    assert found.value("problems_total", kind="404") == 1
    assert found.value("requests_in_flight") == 0
    assert found.value("cache_lookups_total", cache="keys", result="hit") > 5
    assert found.value("cache_lookups_total", cache="keys", result="miss") >= 1
    assert found.value("database_up") == 1
    assert len(found.found("build_info")) == 1


def test_methods_are_not_taken_from_outside(api: Api) -> None:
    for method in ("BREW", "WHEN", "PROPFIND"):
        api.client.request(method, "/v1/search")
    assert scrape(api).value("http_request_seconds_count", method="other") == 3


def test_what_is_being_answered_and_what_waits(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    asked, go_on = threading.Event(), threading.Event()
    search = api.workspace.retriever.search

    def slowly(*arguments: object, **options: object) -> object:
        asked.set()
        assert go_on.wait(10)
        return search(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api.workspace.retriever, "search", slowly)
    thread = threading.Thread(target=api.search, args=("tea",))
    thread.start()
    assert asked.wait(10)
    assert scrape(api).value("requests_in_flight") == 1
    go_on.set()
    thread.join()
    assert scrape(api).value("requests_in_flight") == 0
    assert scrape(api).value("query_log_queue") == 0


def test_jobs_indexes_and_deployments(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put({"uri": "a", "text": "green tea"})
    with api.indexer.paused():
        body = {"documents": [{"uri": "b", "text": "hot"}, {"uri": "c", "text": "cold"}]}
        api.call("POST", "/v1/documents", 202, json=body)
        for _ in range(2):
            jobs.enqueue(api.workspace.database, "of nobody", {})
        jobs.enqueue(api.workspace.database, "later", {}, due_at=datetime.now(UTC) + timedelta(hours=1))
        with api.workspace.database.write() as connection:
            long_ago = datetime.now(UTC) - timedelta(seconds=90)
            connection.execute(update(t.Job).where(t.Job.kind == "of nobody").values(created_at=long_ago))
        found = scrape(api)
    detail = api.call("GET", "/v1/collections/default")
    index = detail["deployment"]["index"]
    assert found.value("index_lag_changes", collection="default", index=index) == 2
    assert found.value("jobs", kind="of nobody", state="queued") == 2
    assert found.value("jobs", kind="later", state="queued") == 1
    assert 90 <= found.value("jobs_oldest_seconds", kind="of nobody") < 120
    assert found.found("jobs_oldest_seconds", kind="later") == []  # it is not late
    ((labels, one),) = found.found("deployment_info")
    assert one == 1
    assert labels == {
        "collection": "default",
        "deployment": str(detail["deployment"]["id"]),
        "index": index,
        "encoder": api.workspace.default_encoder().fingerprint,
        "mode": "hybrid",
    }


def test_the_fingerprint_of_what_serves(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    deadline = time.monotonic() + 10
    while not (found := scrape(api).found("index_fingerprint_matches", collection="default")):
        api.app.state.parts.preparer.probe._due = 0.0
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [value for _, value in found] == [1]


def test_a_database_that_does_not_answer_takes_nothing_else_with_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_connection: object) -> None:
        raise DatabaseUnavailable("it is away")

    api.call("GET", "/v1/collections/nothing", 404)
    monkeypatch.setattr(stored, "look", gone)
    found = scrape(api)
    assert found.value("database_up") == 0
    assert found.value("http_request_seconds_count") >= 1
    assert found.found("jobs") == []
    monkeypatch.undo()
    assert scrape(api).value("database_up") == 1


def test_a_database_that_hangs_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, looks = threading.Event(), []

    def hang(_connection: object) -> None:
        looks.append(1)
        go_on.wait(20)

    monkeypatch.setattr(stored, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(stored, "look", hang)
    begun = time.monotonic()
    for _ in range(3):
        assert scrape(api).value("database_up") == 0
    assert time.monotonic() - begun < 3
    assert len(looks) == 1  # nobody asks again while the first one waits
    monkeypatch.undo()
    go_on.set()
    deadline = time.monotonic() + 10
    while scrape(api).value("database_up") == 0:
        assert time.monotonic() < deadline


def test_only_keys_for_it_see_them(api: Api) -> None:
    with api.workspace.database.write() as connection:
        _, admin = create(connection, NewKey(name="a", scopes=frozenset({Scope.ADMIN, Scope.SEARCH})))
        _, metrics = create(connection, NewKey(name="m", scopes=frozenset({Scope.METRICS})))
    time.sleep(1.1)  # that there were no keys is remembered for a moment

    def status(key: str | None) -> int:
        return api.client.get("/metrics", headers={"X-API-Key": key} if key else {}).status_code

    assert (status(None), status(admin), status(metrics)) == (401, 403, 200)
    found = Scrape(api.client.get("/metrics", headers={"X-API-Key": metrics}).text)
    assert found.value("problems_total", kind="unauthenticated") == 1
    assert found.value("problems_total", kind="forbidden") == 1


def test_bringing_indexes_up(house: House) -> None:
    counts = house.workspace.meter = Metrics()
    house.put(document("a", "green tea"), document("b", "red fox\n\nblue whale"))
    indexer = Indexer(house.workspace)
    while indexer.step():
        pass
    house.put(document("a", "green tea"), document("c", "black tea"))  # the first one is as it was
    while indexer.step():
        pass
    found = Scrape(counts.text(None).decode())
    chunks = house.index.points.count()
    assert found.value("indexer_chunks_total", done="encoded") == chunks
    assert found.value("indexer_seconds_total", stage="encode") > 0
    assert found.value("indexer_seconds_total", stage="flush") > 0
    assert 0 < found.value("indexer_seconds_total") < 30


def test_a_build_tells_of_its_stages_also_where_nobody_can_be_asked(house: House) -> None:
    """Workers have no address: what they note of a build is in the database."""
    with house.database.write() as connection:
        now = datetime.now(UTC)
        progress = {
            "since": (now - timedelta(seconds=10)).isoformat(),
            "at": now.isoformat(),
            "seq": 0,
            "chunks": 50,
            "seconds": {"encode": 7.5, "flush": 0.25},
        }
        connection.execute(update(t.SearchIndex).values(progress=progress))
    with house.database.read() as connection:
        found = stored.look(connection)
    (name,) = house.workspace.store.names() or [house.row.name]
    assert dict(found.build_seconds) == {("default", name, "encode"): 7.5, ("default", name, "flush"): 0.25}
    assert dict(found.paces) == {("default", name): 5.0}


def test_counting_a_search_costs_next_to_nothing() -> None:
    counts = Metrics()
    ref = DeploymentRef(id=1, collection_id=1, index="i", encoder="e", mode=Mode.HYBRID, applied_seq=1)
    seconds = {"encode": 0.01, "search": 0.002, "hydrate": 0.001, "rerank": 0.0}
    result = SearchResult(hits=(), deployment=ref, mode=Mode.HYBRID, seconds=seconds)
    best = 1.0
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(1000):
            counts.searched("default", result)
        best = min(best, (time.perf_counter() - begun) / 1000)
    assert best < 100e-6  # measured 10 us; a slow machine may take longer, a mistake takes much longer


def test_the_client_may_go_before_it_is_answered(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    body = {"documents": [{"uri": "b", "text": "hot"}], "wait": True, "timeout_seconds": 1}
    with api.indexer.paused(), pytest.raises(httpx.ReadTimeout):
        api.client.post("/v1/documents", json=body, timeout=0.2)
    deadline = time.monotonic() + 10
    while scrape(api).value("requests_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
