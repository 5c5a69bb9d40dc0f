"""The API as its users see it: every route, over a real socket."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from nvr_rag import indexes
from nvr_rag.api.search_schemas import SearchAnswer
from nvr_rag.db import tables as t
from nvr_rag.errors import (
    ChunkingMismatch,
    DatabaseUnavailable,
    EncoderMismatch,
    IndexDamaged,
    IndexMissing,
    NvrError,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from nvr_rag.types import Query
from tests.integration.api_support import Api

WHALES = {"uri": "sea", "title": "Sea", "text": "red fox jumps\n\nblue whale swims", "metadata": {"year": 2020}}
TEA = {"uri": "kitchen", "text": "green tea is hot"}


def filled(api: Api) -> Api:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put(WHALES, TEA)
    return api


def rows(api: Api, table: Any, **where: Any) -> list[Any]:
    with api.workspace.database.read() as connection:
        return list(connection.execute(select(table.__table__).filter_by(**where)))


def eventually(check: Any) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_from_an_empty_house_to_feedback(api: Api) -> None:
    assert api.call("GET", "/v1/collections") == {"collections": []}
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    put = api.put(WHALES, TEA)
    assert [(item["uri"], item["outcome"], item["seq"]) for item in put] == [
        ("sea", "added", 1),
        ("kitchen", "added", 2),
    ]

    found = api.search("a whale that swims", k=1)
    hit = found["hits"][0]
    assert (hit["text"], hit["document"]["id"]) == ("blue whale swims", put[0]["id"])

    word = {"query_id": found["query_id"], "chunk_id": hit["chunk_id"], "kind": "relevant", "grade": 2}
    assert api.call("POST", "/v1/feedback", json=word) == {"accepted": 1, "new": 1}
    assert api.call("GET", "/readyz") == {"status": "ready"}


def test_a_hit_says_what_it_is_and_where_it_stands(api: Api) -> None:
    answer = filled(api).search("whale swims")
    SearchAnswer.model_validate(answer)  # what OpenAPI promises
    assert str(UUID(answer["query_id"])) == answer["query_id"]
    assert (answer["collection"], answer["mode"]) == ("default", "hybrid")
    assert answer["took_ms"].keys() == {"encode", "search", "hydrate", "rerank"}
    hit = answer["hits"][0]
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    # "red fox jumps" has 13 characters, and an empty line is between the paragraphs.
    assert (hit["text"], hit["start"], hit["end"], hit["page"]) == ("blue whale swims", 15, 31, None)
    document = hit["document"]
    assert (document["uri"], document["title"], document["media_type"]) == ("sea", "Sea", "text/plain")
    assert document["metadata"] == {"year": 2020}
    # First on both sides: reciprocal rank fusion with constant 60 gives 1/61 for each.
    assert (hit["dense"]["rank"], hit["lexical"]["rank"]) == (1, 1)
    assert hit["score"] == pytest.approx(2 / 61)
    assert answer["hits"][-1]["lexical"] is None  # shares no word


def test_the_deployment_that_answered_is_the_one_that_serves(api: Api) -> None:
    used = filled(api).search("tea")["deployment"]
    detail = api.call("GET", "/v1/collections/default")
    index = detail["indexes"][0]
    assert (used["id"], used["index"]) == (detail["deployment"]["id"], index["name"])
    assert (used["encoder"], used["applied_seq"], used["mode"]) == (index["encoder"], 2, "hybrid")


@pytest.mark.parametrize(("mode", "asked", "silent"), [("dense", "dense", "lexical"), ("lexical", "lexical", "dense")])
def test_one_side_only(shared_api: Api, mode: str, asked: str, silent: str) -> None:
    answer = shared_api.search("whale", mode=mode)
    assert answer["mode"] == mode
    assert answer["hits"][0]["text"] == "blue whale swims"
    assert answer["hits"][0][asked]["score"] == answer["hits"][0]["score"]
    assert answer["hits"][0][silent] is None


def test_filter_and_k(shared_api: Api) -> None:
    assert shared_api.texts("whale", filter={"uri": "b"}) == ["green tea is hot"]
    assert len(shared_api.texts("whale", k=2)) == 2


def test_the_query_is_in_the_log_when_the_answer_arrives(api: Api) -> None:
    filled(api)
    asked = {"k": 2, "mode": "dense", "filter": {"metadata.year": {"gte": 2000}}, "user": "u1", "session": "s1"}
    answer = api.search("whale", **asked)
    (row,) = rows(api, t.QueryRow, id=answer["query_id"])
    assert (row.text, row.user, row.session, row.k, row.mode) == ("whale", "u1", "s1", 2, "dense")
    assert row.filter == asked["filter"]
    assert row.deployment_id == answer["deployment"]["id"]
    assert [chunk for chunk, _ in row.hits] == [hit["chunk_id"] for hit in answer["hits"]]


def test_an_answer_that_cannot_be_logged_is_not_given(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(api)

    def full(self: object, query: Query, result: object) -> str:
        raise DatabaseUnavailable("the disk is full")

    monkeypatch.setattr("nvr_rag.query_log.QueryLog.record", full)
    response = api.client.post("/v1/search", json={"query": "tea"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert "the disk is full" in response.json()["detail"]


def test_feedback_one_or_many_and_again(api: Api) -> None:
    found = filled(api).search("whale")
    query_id, chunks = found["query_id"], [hit["chunk_id"] for hit in found["hits"]]
    words = [
        {"query_id": query_id, "chunk_id": chunks[0], "kind": "relevant", "grade": 3, "user": "ann"},
        {"query_id": query_id, "chunk_id": chunks[1], "kind": "irrelevant", "user": "ann"},
        {"query_id": query_id, "kind": "answer_good"},
    ]
    assert api.call("POST", "/v1/feedback", json={"items": words}) == {"accepted": 3, "new": 3}
    assert api.call("POST", "/v1/feedback", json={**words[0], "grade": 1}) == {"accepted": 1, "new": 0}
    (row,) = rows(api, t.FeedbackRow, chunk_id=chunks[0])
    assert (row.kind, row.grade, row.user) == ("relevant", 1, "ann")


def test_feedback_is_stored_whole_or_not_at_all(api: Api) -> None:
    found = filled(api).search("whale")
    good = {"query_id": found["query_id"], "chunk_id": found["hits"][0]["chunk_id"], "kind": "click"}
    problem = api.call("POST", "/v1/feedback", 422, json={"items": [good, {**good, "chunk_id": "never-shown"}]})
    assert problem["field"] == "chunk_id"
    assert rows(api, t.FeedbackRow) == []


def test_putting_a_document_again(api: Api) -> None:
    filled(api)
    assert [item["outcome"] for item in api.put(WHALES)] == ["unchanged"]
    assert [(item["outcome"], item["seq"]) for item in api.put({**WHALES, "text": "blue shark swims"})] == [
        ("updated", 3)
    ]
    assert api.texts("whale", mode="lexical") == []
    assert api.texts("shark", mode="lexical") == ["blue shark swims"]


def test_documents_that_are_stored_but_not_indexed_yet(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    body = {"documents": [TEA]}
    with api.indexer.paused():
        assert api.call("POST", "/v1/documents", 202, json=body)["indexed"] is False
        waiting = {**body, "wait": True, "timeout_seconds": 0.1}
        answer = api.call("POST", "/v1/documents", 202, json=waiting)  # nothing changed, and still not to be found
        assert (answer["indexed"], answer["documents"][0]["outcome"]) == (False, "unchanged")
        (index,) = api.call("GET", "/v1/collections/default")["indexes"]
        assert (index["applied_seq"], index["lag"]) == (0, 1)
    answer = api.call("POST", "/v1/documents", json={**body, "wait": True})
    assert answer["indexed"] is True
    assert api.call("GET", "/v1/collections/default")["indexes"][0]["lag"] == 0


def test_waiting_does_not_keep_others_from_searching(api: Api) -> None:
    """More patient callers than worker threads."""
    import concurrent.futures

    filled(api)
    body = {"documents": [{"uri": "later", "text": "slow"}], "wait": True, "timeout_seconds": 3}
    with api.indexer.paused(), concurrent.futures.ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(api.client.post, "/v1/documents", json=body) for _ in range(60)]
        started = time.monotonic()
        assert api.texts("tea", k=1) == ["green tea is hot"]
        assert time.monotonic() - started < 3
        assert {future.result().status_code for future in waiting} == {202}


@pytest.mark.parametrize(
    ("media_type", "stored", "text_format"),
    [
        (None, "text/plain", "plain"),
        ("text/markdown; charset=utf-8", "text/markdown", "markdown"),
        ("text/x-python", "text/x-python", "code"),
        ("application/javascript", "application/javascript", "code"),
        ("Application/PDF", "application/pdf", "plain"),
    ],
)
def test_the_media_type_decides_how_a_text_is_cut(api: Api, media_type: str, stored: str, text_format: str) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put({**TEA, "media_type": media_type} if media_type else TEA)
    (version,) = rows(api, t.DocumentVersion)
    assert (version.media_type, version.text_format) == (stored, text_format)


def test_nul_in_a_text_is_replaced(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    (put,) = api.put({"uri": "x", "text": "green\x00tea"})
    assert api.call("GET", f"/v1/documents/{put['id']}", params={"text": True})["text"] == "green\ufffdtea"


def test_listing_documents_page_by_page(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put(*({"uri": f"doc-{i}", "text": f"text {i}"} for i in range(5)))
    pages: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        page = api.call("GET", "/v1/documents", params={"limit": 2, "after": after})
        pages.append([document["uri"] for document in page["documents"]])
        after = page["next"]
    assert pages == [["doc-0", "doc-1"], ["doc-2", "doc-3"], ["doc-4"]]


def test_reading_and_deleting_documents(api: Api) -> None:
    filled(api)
    (sea,) = [item for item in api.call("GET", "/v1/documents")["documents"] if item["uri"] == "sea"]
    path = f"/v1/documents/{sea['id']}"
    detail = api.call("GET", path)
    assert (detail["title"], detail["characters"], detail["text"]) == ("Sea", 31, None)
    assert api.call("GET", path, params={"text": "true"})["text"] == WHALES["text"]

    assert api.call("DELETE", path) == {"deleted": [sea["id"]]}
    assert api.texts("whale", mode="lexical") == []  # at once, however far the index is
    api.call("DELETE", path, 404)
    assert api.call("GET", path)["state"] == "deleted"

    api.call("DELETE", "/v1/documents", params={"uri": "kitchen"})
    api.call("DELETE", "/v1/documents", 404, params={"uri": "kitchen"})
    assert api.call("GET", "/v1/documents")["documents"] == []
    gone = api.call("GET", "/v1/documents", params={"state": "deleted"})["documents"]
    assert [document["uri"] for document in gone] == ["kitchen", "sea"]


def test_a_document_with_the_longest_uri(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    uri = "茶" * 4096  # 36 KB in a request line
    (put,) = api.put({**TEA, "uri": uri})
    assert api.call("GET", "/v1/documents", params={"after": uri}) == {"documents": [], "next": None}
    assert api.call("DELETE", "/v1/documents", params={"uri": uri}) == {"deleted": [put["id"]]}


def test_collections_are_made_listed_and_kept_apart(api: Api) -> None:
    filled(api)
    made = api.call("POST", "/v1/collections", 201, json={"name": "other", "language": "german", "mode": "lexical"})
    assert (made["name"], made["language"], made["deployment"]["mode"]) == ("other", "german", "lexical")
    assert made["documents"] == {"ready": 0, "failed": 0, "deleted": 0}
    names = [item["name"] for item in api.call("GET", "/v1/collections")["collections"]]
    assert names == ["default", "other"]
    assert api.texts("tea", collection="other") == []
    api.put(TEA, collection="other")
    assert api.texts("tea", collection="other") == ["green tea is hot"]
    assert api.call("POST", "/v1/collections", 409, json={"name": "other"})["type"] == "urn:nvr-rag:conflict"


def test_changing_how_a_collection_answers(api: Api) -> None:
    before = filled(api).call("GET", "/v1/collections/default")["deployment"]
    change = {"mode": "dense", "fusion": {"dense_weight": 2.0}}
    after = api.call("PATCH", "/v1/collections/default", json=change)["deployment"]
    assert (after["mode"], after["fusion"]) == ("dense", {**before["fusion"], "dense_weight": 2.0})
    assert (after["index"], after["id"] > before["id"]) == (before["index"], True)
    assert api.search("tea")["deployment"]["id"] == after["id"]
    states = {row.id: row.state for row in rows(api, t.Deployment)}
    assert states == {before["id"]: "previous", after["id"]: "serving"}
    again = api.call("PATCH", "/v1/collections/default", json=change)["deployment"]
    assert again["id"] == after["id"]  # nothing changed


def test_deleting_a_collection(api: Api) -> None:
    filled(api)
    assert len(api.workspace.store.names()) == 1
    assert api.call("DELETE", "/v1/collections/default") == {"deleted": ["default"]}
    api.call("POST", "/v1/search", 404, json={"query": "tea"})
    eventually(lambda: api.workspace.store.names() == [])

    def rows() -> list[indexes.IndexInfo]:
        with api.workspace.database.read() as connection:
            return indexes.all_infos(connection)

    eventually(lambda: rows() == [])  # the row goes last
    with api.workspace.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(t.Document)) == 0
    filled(api)  # the name is free again, and nothing of the old one comes back
    assert len(api.texts("whale")) == 3


def test_request_ids(shared_api: Api) -> None:
    given = shared_api.client.get("/livez", headers={"X-Request-ID": "bot-7:42"})
    assert given.headers["X-Request-ID"] == "bot-7:42"
    made = shared_api.client.get("/nowhere", headers={"X-Request-ID": "not sane\t<script>"})
    assert UUID(made.headers["X-Request-ID"]).version == 4
    assert made.json()["request_id"] == made.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("error", "status", "slug", "seconds"),
    [
        (StoreUnavailable("timed out"), 503, "store-unavailable", "1"),
        (StoreBusy("owned by process 7"), 503, "index-busy", "1"),
        (DatabaseUnavailable("locked"), 503, "database-unavailable", "1"),
        (StoreError("it refused our key"), 503, "store-unavailable", "30"),
        (EncoderMismatch("another encoder"), 503, "encoder-mismatch", "30"),
        (IndexMissing("run nvr-rag verify --repair"), 503, "index-missing", "30"),
        (IndexDamaged("run nvr-rag verify --repair"), 503, "index-damaged", "30"),
    ],
)
def test_errors_of_the_core_become_problems(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch, error: NvrError, status: int, slug: str, seconds: str
) -> None:
    monkeypatch.setattr(shared_api.workspace.retriever, "search", _raising(error))
    response = shared_api.client.post("/v1/search", json={"query": "tea"})
    problem = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (response.status_code, problem["status"]) == (status, status)
    assert (problem["type"], problem["detail"]) == (f"urn:nvr-rag:{slug}", str(error))
    assert response.headers["Retry-After"] == seconds


@pytest.mark.parametrize("error", [RuntimeError("secret"), ChunkingMismatch("secret"), RecursionError("secret")])
def test_what_nobody_foresaw_is_a_500_without_internals(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    monkeypatch.setattr(shared_api.workspace.retriever, "search", _raising(error))
    response = shared_api.client.post("/v1/search", json={"query": "tea"})
    assert (response.status_code, response.headers["Content-Type"]) == (500, "application/problem+json")
    assert "secret" not in response.text
    request_id = response.json()["request_id"]
    assert any(request_id in record.getMessage() and record.exc_info for record in caplog.records)
    monkeypatch.undo()
    assert shared_api.texts("tea", k=1) == ["green tea is hot"]  # and the server goes on


def _raising(error: Exception) -> Any:
    def search(query: Query, **options: Any) -> None:
        raise error

    return search


def test_the_log_tells_no_secrets(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    filled(api)
    api.search("whale", user="ann")
    api.call("GET", "/v1/documents", params={"after": "whale"})
    api.call("POST", "/v1/search", 422, json={"query": "whale", "k": "whale"})
    own = [record.getMessage() for record in caplog.records if record.name.startswith("nvr_rag")]
    assert any(line.startswith("POST /v1/search 200 ") for line in own)
    assert not any(word in line for line in own for word in ("whale", "ann", "fox"))


def test_openapi_is_complete(shared_api: Api) -> None:
    schema = shared_api.call("GET", "/openapi.json")
    assert schema["openapi"].startswith("3.1")
    expected = {
        "/v1/search": {"post"},
        "/v1/search/batch": {"post"},
        "/v1/chunks/{chunk_id}": {"get"},
        "/v1/embeddings": {"post"},
        "/v1/models": {"get"},
        "/v1/feedback": {"post"},
        "/v1/documents": {"get", "post", "delete"},
        "/v1/documents/{document_id}": {"get", "delete"},
        "/v1/collections": {"get", "post"},
        "/v1/collections/{name}": {"get", "patch", "delete"},
        "/v1/retrain": {"post"},
        "/v1/ingest": {"post"},
        "/v1/jobs/{job_id}": {"get"},
        "/v1/jobs/{job_id}/events": {"get"},
        "/livez": {"get"},
        "/readyz": {"get"},
        "/metrics": {"get"},
    }
    assert {path: set(operations) for path, operations in schema["paths"].items()} == expected
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert operation["tags"]
        for status, response in operation["responses"].items():
            plain = "text/plain" if operation["operationId"] == "metrics" else "application/json"
            wanted = plain if int(status) < 400 else "application/problem+json"
            if operation["operationId"] == "follow_job" and int(status) < 400:
                assert set(response.get("content", ())) == ({"text/event-stream"} if status == "200" else set())
                continue
            assert set(response["content"]) == {wanted}
    assert schema["components"]["schemas"].keys().isdisjoint({"HTTPValidationError", "ValidationError"})
    bodies = (
        "SearchRequest",
        "SearchBatch",
        "MmrRequest",
        "FeedbackItem",
        "PutDocuments",
        "TextDocument",
        "NewCollection",
        "RetrainRequest",
    )
    for name in (*bodies, "IngestRequest"):
        assert schema["components"]["schemas"][name]["additionalProperties"] is False
    put = schema["paths"]["/v1/documents"]["post"]
    assert set(put["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    form = put["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["items"] == {"type": "string", "format": "binary"}
    assert set(form["properties"]) >= {"uri", "title", "metadata", "acl", "collection", "wait"}
    assert (form["required"], form["additionalProperties"]) == (["file"], False)
    assert [one["name"] for one in put["parameters"]] == ["Idempotency-Key"]
    text = schema["components"]["schemas"]["SearchRequest"]["properties"]
    assert (text["query"]["minLength"], text["query"]["maxLength"]) == (1, 10_000)
    assert (text["k"]["minimum"], text["k"]["maximum"]) == (1, 1000)
