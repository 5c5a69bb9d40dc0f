"""Bad input: each gets a problem document that names what is wrong, and nothing stored is harmed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.api_support import Api
from tests.integration.conftest import MAX_BODY_BYTES

NOBODY = "5f0c0c9e-8a52-4b8e-9c55-0d8b7a4e2f10"  # an id that nothing has
JSON = {"Content-Type": "application/json"}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def refused(api: Api, method: str, path: str, status: int, **options: Any) -> dict[str, Any]:
    """The problem of a request that is refused; the collection is as it was."""
    response = api.client.request(method, path, **options)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "request_id"}
    assert problem["status"] == status
    assert problem["detail"]
    assert len(api.texts("whale")) == 3
    return problem


SEARCHES: list[tuple[dict[str, Any], str, str]] = [
    ({"query": ""}, "query", "the query is empty; ask something"),
    ({"query": " \n"}, "query", "the query is empty; ask something"),
    ({"query": "x" * 100_000}, "query", "10000 characters"),
    ({"query": "x\x00"}, "query", "NUL"),
    ({"query": 7}, "query", "query must be a valid string"),
    ({"query": None}, "query", "query must be a valid string"),
    ({"query": ["x"]}, "query", "query must be a valid string"),
    ({}, "query", "query is required"),
    ({"query": "x", "k": 0}, "k", "k must be greater than or equal to 1, not 0"),
    ({"query": "x", "k": -1}, "k", "not -1"),
    ({"query": "x", "k": 10_000_000}, "k", "k must be less than or equal to 1000, not 10000000"),
    ({"query": "x", "k": "5000 digits"}, "", "the body cannot be read as JSON"),
    ({"query": "x", "k": "10"}, "k", "k must be a valid integer"),
    ({"query": "x", "k": True}, "k", "not true"),
    ({"query": "x", "k": 2.5}, "k", "not 2.5"),
    ({"query": "x", "k": float("nan")}, "k", "not NaN"),
    ({"query": "x", "k": None}, "k", "not null"),
    ({"query": "x", "mode": "fuzzy"}, "mode", "'dense', 'lexical' or 'hybrid'"),
    ({"query": "x", "limit": 5}, "limit", "limit is not a known field"),
    ({"query": "x", "collection": 5}, "collection", "collection must be a valid string"),
    ({"query": "x", "collection": "a\nb"}, "collection", "U+000A"),
    ({"query": "x", "user": "u" * 257}, "user", "256 characters"),
    ({"query": "x", "user": "\x1b[31m"}, "user", "U+001B"),
    ({"query": "x", "session": "s\x00"}, "session", "U+0000"),
    ({"query": "x", "filter": []}, "filter", "filter must be a JSON object"),
    ({"query": "x", "filter": {"colour": "red"}}, "filter", 'did you mean "metadata.colour"?'),
    ({"query": "x", "filter": {"metadata.year": {"near": 3}}}, "filter", "operators are"),
    ({"query": "x", "filter": {"metadata.year": {"gt": float("nan")}}}, "filter", "finite"),
    ({"query": "x", "filter": {"metadata.year": float("inf")}}, "filter", "finite"),
    ({"query": "x", "filter": {"metadata.year": 10**30}}, "filter", "2^53"),
    ({"query": "x", "filter": nested(30)}, "filter", "deep"),
    ({"query": "x", "filter": {"not": {"not": nested(12)}}}, "filter", "unknown field"),
    ({"query": "x", "filter": {"uri": {"in": []}}}, "filter", "at least one"),
    ({"query": "x", "filter": {"uri": {"in": ["u"] * 1001}}}, "filter", "1000 values"),
    ({"query": "x", "filter": {"uri": {"in": ["u" * 1000] * 300}}}, "filter", "256000 characters"),
]


@pytest.mark.parametrize(("body", "field", "words"), SEARCHES, ids=range(len(SEARCHES)))
def test_searches(shared_api: Api, body: dict[str, Any], field: str, words: str) -> None:
    status = 422 if field else 400
    problem = refused(shared_api, "POST", "/v1/search", status, content=dumps(body), headers=JSON)
    assert problem.get("field", "") == field
    assert words in problem["detail"]


def dumps(body: Any) -> bytes:
    """JSON as a careless client writes it: with NaN, and with integers of any length."""
    return json.dumps(body).replace('"5000 digits"', "1" * 5000).encode()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b'{"query": ', 400, "not valid JSON: Expecting value at character 10"),
        (b"query=tea", 400, "not valid JSON"),
        (b'{"query": "\xff\xfe"}', 400, "not UTF-8"),
        (b"[" * 100_000, 400, "nested too deep"),
        (b"", 422, "the body is required"),
        (b"[]", 422, "the body must be a JSON object"),
        (b'"tea"', 422, "the body must be a JSON object"),
        (b"null", 422, "the body must be a JSON object"),
        (b'{"query": "\\ud800"}', 422, "query must be valid Unicode"),
        (b'{"query": "x", "user": "\\udfff"}', 422, "user must be valid Unicode"),
        (b'{"query": "x", "\\ud800": 1}', 422, "must be valid Unicode"),
        (b'{"query": "x", "filter": {"uri": "\\ud800"}}', 422, "filter must be valid Unicode"),
        (b'{"query": "x", "filter": {"\\ud800": 1}}', 422, "filter must be valid Unicode"),
        (b'{"query": "x", "collection": "\\ud800"}', 422, "collection must be valid Unicode"),
    ],
)
def test_bodies(shared_api: Api, content: bytes, status: int, words: str) -> None:
    assert words in refused(shared_api, "POST", "/v1/search", status, content=content, headers=JSON)["detail"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_that_it_is_json(shared_api: Api, content_type: str | None) -> None:
    """Also what keeps web pages of others from posting here."""
    headers = {"Content-Type": content_type} if content_type else {}
    problem = refused(shared_api, "POST", "/v1/search", 415, content=b'{"query": "tea"}', headers=headers)
    assert "Content-Type: application/json" in problem["detail"]


def test_unknown_collection(shared_api: Api) -> None:
    problem = refused(shared_api, "POST", "/v1/search", 404, json={"query": "x", "collection": "nope"})
    assert problem["detail"] == "no collection 'nope'; GET /v1/collections lists those there are"
    refused(shared_api, "POST", "/v1/documents", 404, json=one_document(collection="nope"))
    for method, path in [
        ("GET", "/v1/documents?collection=nope"),
        ("GET", f"/v1/documents/{NOBODY}?collection=nope"),
        ("DELETE", f"/v1/documents/{NOBODY}?collection=nope"),
        ("DELETE", "/v1/documents?uri=a&collection=nope"),
        ("GET", "/v1/collections/nope"),
        ("DELETE", "/v1/collections/nope"),
    ]:
        assert "nope" in refused(shared_api, method, path, 404)["detail"]
    refused(shared_api, "PATCH", "/v1/collections/nope", 404, json={"mode": "dense"})


def one_document(collection: str = "default", **fields: Any) -> dict[str, Any]:
    return {"collection": collection, "documents": [{"uri": "x", "text": "whale", **fields}]}


DOCUMENTS: list[tuple[Any, str, str]] = [
    ({"documents": []}, "documents", "at least 1 item"),
    ({"documents": [{"uri": str(i), "text": "x"} for i in range(1001)]}, "documents", "1000 items"),
    ({"documents": {"uri": "x", "text": "x"}}, "documents", "valid list"),
    ({"documents": ["text"]}, "documents[0]", "documents[0] must be a JSON object"),
    ({"documents": [{"text": "x"}]}, "documents[0].uri", "documents[0].uri is required"),
    ({"documents": [{"uri": "a", "text": "x"}, {"uri": "b"}]}, "documents[1].text", "is required"),
    (one_document(body="x"), "documents[0].body", "is not a known field"),
    (one_document(text=""), "documents[0].text", "at least 1 character"),
    (one_document(text=" \n "), "documents[0].text", "blank"),
    (one_document(text=["x"]), "documents[0].text", "valid string"),
    (one_document(uri=""), "documents[0].uri", "at least 1 character"),
    (one_document(uri="u" * 4097), "documents[0].uri", "4096 characters"),
    (one_document(uri="a\x00b"), "documents[0].uri", "U+0000"),
    (one_document(title="t" * 1001), "documents[0].title", "1000 characters"),
    (one_document(title="a\nb"), "documents[0].title", "U+000A"),
    (one_document(media_type="text/html"), "documents[0].media_type", "nvr-rag ingest"),
    (one_document(media_type="markdown"), "documents[0].media_type", "text/markdown"),
    (one_document(metadata=[]), "documents[0].metadata", "JSON object"),
    (one_document(metadata={"a": float("nan")}), "documents[0].metadata", "finite"),
    (one_document(metadata={"a": 2**63}), "documents[0].metadata", "2^53"),
    (one_document(metadata=nested(10)), "documents[0].metadata", "deep"),
    (one_document(metadata={"a": "x" * 70_000}), "documents[0].metadata", "64000 characters"),
    (one_document(metadata={str(i): i for i in range(9000)}), "documents[0].metadata", "64000 characters"),
    ({**one_document(), "wait": "yes"}, "wait", "valid boolean"),
    ({**one_document(), "timeout_seconds": 61}, "timeout_seconds", "less than or equal to 60"),
    ({**one_document(), "timeout_seconds": float("nan")}, "timeout_seconds", "NaN"),
    ({"documents": [{"uri": "x", "text": "a"}, {"uri": "x", "text": "b"}]}, "uri", "once in one call"),
]


@pytest.mark.parametrize(("body", "field", "words"), DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_documents(shared_api: Api, body: dict[str, Any], field: str, words: str) -> None:
    problem = refused(shared_api, "POST", "/v1/documents", 422, content=json.dumps(body), headers=JSON)
    assert problem["field"] == field
    assert words in problem["detail"]
    assert len(shared_api.call("GET", "/v1/documents")["documents"]) == 2


@pytest.mark.parametrize("place", ["uri", "text", "title", "media_type"])
def test_lone_surrogates_in_documents(shared_api: Api, place: str) -> None:
    body = json.dumps(one_document(**{place: "\ud800"}))
    problem = refused(shared_api, "POST", "/v1/documents", 422, content=body, headers=JSON)
    assert problem["field"] == f"documents[0].{place}"


def test_lone_surrogates_in_metadata(shared_api: Api) -> None:
    for metadata in ({"\udc00": 1}, {"a": ["\ud800"]}):
        body = json.dumps(one_document(metadata=metadata))
        problem = refused(shared_api, "POST", "/v1/documents", 422, content=body, headers=JSON)
        assert problem["field"] == "documents[0].metadata"


def test_feedback(shared_api: Api) -> None:
    found = shared_api.search("whale", k=1)
    good = {"query_id": found["query_id"], "chunk_id": found["hits"][0]["chunk_id"], "kind": "relevant"}
    unseen = next(hit for hit in shared_api.search("whale")["hits"][1:])["chunk_id"]
    changes: list[tuple[dict[str, Any], int, str | None]] = [
        ({"query_id": NOBODY}, 404, None),
        ({"query_id": ""}, 422, "query_id"),
        ({"query_id": "a\x00"}, 422, "query_id"),
        ({"query_id": 7}, 422, "query_id"),
        ({"chunk_id": unseen}, 422, "chunk_id"),
        ({"chunk_id": None}, 422, "chunk_id"),
        ({"grade": -1}, 422, "grade"),
        ({"grade": 1.5}, 422, "grade"),
        ({"grade": 10**12}, 422, "grade"),
        ({"grade": float("nan")}, 422, "grade"),
        ({"kind": "liked"}, 422, "kind"),
        ({"user": "u" * 1000}, 422, "user"),
        ({"user": "\ud800"}, 422, "user"),
        ({"stars": 5}, 422, "stars"),
    ]
    for change, status, field in changes:
        body = json.dumps({**good, **change})
        problem = refused(shared_api, "POST", "/v1/feedback", status, content=body, headers=JSON)
        assert problem.get("field") == field
    batches: list[tuple[list[Any], str]] = [
        ([], "items"),
        ([good] * 1001, "items"),
        ([good, {**good, "kind": 1}], "items[1].kind"),
    ]
    for items, place in batches:
        problem = refused(shared_api, "POST", "/v1/feedback", 422, json={"items": items})
        assert problem["field"] == place
    assert shared_api.call("POST", "/v1/feedback", json=good) == {"accepted": 1, "new": 1}  # nothing was stored before


def test_collections(shared_api: Api) -> None:
    for body, field in [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"name": "new", "language": "klingon"}, "language"),
        ({"name": "new", "mode": "fuzzy"}, "mode"),
        ({"name": "new", "shards": 3}, "shards"),
    ]:
        problem = refused(shared_api, "POST", "/v1/collections", 422, content=json.dumps(body), headers=JSON)
        assert problem["field"] == field
    assert len(shared_api.call("GET", "/v1/collections")["collections"]) == 1


def test_changes_of_collections(shared_api: Api) -> None:
    before = shared_api.call("GET", "/v1/collections/default")["deployment"]
    for body, field in [
        ({}, "mode"),
        ({"mode": None}, "mode"),
        ({"mode": "fuzzy"}, "mode"),
        ({"fusion": {"method": "magic"}}, "fusion.method"),
        ({"fusion": {"dense_weight": -1}}, "fusion.dense_weight"),
        ({"fusion": {"dense_weight": float("nan")}}, "fusion.dense_weight"),
        ({"fusion": {"dense_weight": 0, "lexical_weight": 0}}, "dense_weight"),
        ({"fusion": {"depth": 0}}, "fusion.depth"),
        ({"fusion": {"depth": 10**7}}, "fusion.depth"),
        ({"language": "german"}, "language"),
    ]:
        body_text = json.dumps(body)
        problem = refused(shared_api, "PATCH", "/v1/collections/default", 422, content=body_text, headers=JSON)
        assert problem["field"] == field
    assert shared_api.call("GET", "/v1/collections/default")["deployment"] == before


@pytest.mark.parametrize(
    ("method", "path", "status", "field"),
    [
        ("GET", "/v1/documents?limit=0", 422, "limit"),
        ("GET", "/v1/documents?limit=1001", 422, "limit"),
        ("GET", "/v1/documents?limit=many", 422, "limit"),
        ("GET", "/v1/documents?state=lost", 422, "state"),
        ("GET", "/v1/documents?after=%00", 422, "after"),
        ("GET", "/v1/documents?collection=%00", 422, "collection"),
        ("GET", "/v1/documents/not-an-id", 422, "document_id"),
        ("GET", f"/v1/documents/{NOBODY}", 404, None),
        ("GET", f"/v1/documents/{NOBODY}?text=perhaps", 422, "text"),
        ("DELETE", f"/v1/documents/{NOBODY}", 404, None),
        ("DELETE", "/v1/documents", 422, "uri"),
        ("DELETE", "/v1/documents?uri=nope", 404, None),
        ("GET", "/v1/collections/a%00b", 422, "name"),
        ("GET", "/v1/collections/%ff", 404, None),
        ("GET", "/", 404, None),
        ("GET", "/v1/search/", 404, None),
        ("GET", "/%0aforged", 404, None),
        ("GET", "/v1/search", 405, None),
        ("PUT", "/v1/documents", 405, None),
        ("BREW", "/livez", 405, None),
    ],
)
def test_paths_and_parameters(shared_api: Api, method: str, path: str, status: int, field: str | None) -> None:
    assert refused(shared_api, method, path, status).get("field") == field


def test_a_wrong_method_says_which_are_right(shared_api: Api) -> None:
    response = shared_api.client.get("/v1/search")
    assert response.headers["Allow"] == "POST"
    assert "possible: POST" in response.json()["detail"]


def test_a_body_that_is_too_large(shared_api: Api) -> None:
    body = json.dumps({"query": "x" * MAX_BODY_BYTES}).encode()
    problem = refused(shared_api, "POST", "/v1/search", 413, content=body, headers=JSON)
    assert "NVR_API__MAX_BODY_BYTES" in problem["detail"]
    assert str(MAX_BODY_BYTES) in problem["detail"]


def test_a_body_that_is_too_large_without_saying_so(shared_api: Api) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 100_000

    refused(shared_api, "POST", "/v1/search", 413, content=stream(), headers=JSON)


def test_a_body_just_within_the_limit(shared_api: Api) -> None:
    body = json.dumps({"query": "whale"}).encode()
    content = body + b" " * (MAX_BODY_BYTES - len(body))
    assert shared_api.client.post("/v1/search", content=content, headers=JSON).status_code == 200


def test_a_body_without_end_is_not_kept_in_memory(shared_api: Api) -> None:
    """A client that only ever sends is answered, and then cut off."""
    url = shared_api.client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with pytest.raises(OSError):
            send_chunks(connection, 100 * MAX_BODY_BYTES)
    assert len(shared_api.texts("whale")) == 3


def send_chunks(connection: socket.socket, size: int) -> None:
    for _ in range(size // 0x10000):
        connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def test_a_body_that_waits_for_leave_is_refused_before_it_is_sent(shared_api: Api) -> None:
    url = shared_api.client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
