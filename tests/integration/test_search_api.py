"""POST /v1/search with all that it can be asked, POST /v1/search/batch and GET /v1/chunks/{chunk_id}, over a real
socket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import func, select

from nvr_rag.access.callers import Scope
from nvr_rag.api.search_schemas import ChunkAnswer, SearchAnswer, SearchAnswers
from nvr_rag.client import Client
from nvr_rag.db import tables as t
from nvr_rag.retriever import Retriever
from nvr_rag.types import Mmr, Query
from tests.integration.api_support import Api
from tests.integration.key_support import make_key

JSON = {"Content-Type": "application/json"}
HANDBOOK = {
    "uri": "handbook",
    "title": "Handbook",
    "text": "red fox jumps\n\nblue whale swims\n\ngreen tea is hot",
    "metadata": {"year": 2020},
}
NOBODY = "5f0c0c9e-8a52-4b8e-9c55-0d8b7a4e2f10"  # an id that nothing has


@pytest.fixture
def filled(api: Api) -> Api:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put(HANDBOOK, {"uri": "sea", "text": "a whale in the sea"})
    return api


def logged(api: Api) -> int:
    with api.workspace.database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(t.QueryRow)) or 0)


def test_everything_at_once(filled: Api) -> None:
    asked = {"k": 2, "group_by": "document", "context": 1, "mmr": {"diversity": 0.3}, "min_score": 0.001}
    answer = filled.search("blue whale swims", explain=True, **asked)
    SearchAnswer.model_validate(answer)
    first, second = answer["hits"]
    assert (first["text"], second["text"]) == ("blue whale swims", "a whale in the sea")
    # "red fox jumps" has 13 characters and "blue whale swims" 16; two are between paragraphs.
    assert first["context"] == {"before": "red fox jumps\n\n", "after": "\n\ngreen tea is hot", "start": 0, "end": 49}
    assert second["context"] == {"before": "", "after": "", "start": 0, "end": 18}
    why = first["explain"]
    assert (why["dense"]["rank"], why["lexical"]["rank"], why["fused"]["rank"], why["mmr"]["rank"]) == (1, 1, 1, 1)
    assert why["fused"]["score"] == pytest.approx(2 / 61)
    assert why["rerank"] is None
    assert (why["weights"]["method"], why["weights"]["rank_constant"]) == ("rrf", 60)


def test_a_hit_carries_what_a_citation_needs(filled: Api) -> None:
    document = filled.search("blue whale", k=1)["hits"][0]["document"]
    info = filled.call("GET", f"/v1/documents/{document['id']}")
    assert document["uri"] == "handbook"
    for name in ("id", "uri", "source", "title", "media_type", "metadata", "sha256"):
        assert document[name] == info[name]
    assert document["updated_at"] is not None


def test_plain_hits_say_nothing_that_was_not_asked(filled: Api) -> None:
    hit = filled.search("whale")["hits"][0]
    assert (hit["context"], hit["explain"]) == (None, None)


class Shortest:
    """Whoever says it in fewer words."""

    fingerprint = "shortest"

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        return [-float(len(text)) for text in texts]


def test_reranked(filled: Api) -> None:
    workspace = filled.workspace
    workspace.retriever = Retriever(workspace.database, workspace.index, reranker=Shortest)
    answer = filled.search("whale", rerank=True)
    assert [hit["score"] for hit in answer["hits"]] == [-13, -16, -16, -18]
    assert answer["took_ms"]["rerank"] >= 0


def test_reranking_without_a_reranker(filled: Api) -> None:
    problem = filled.call("POST", "/v1/search", 422, json={"query": "whale", "rerank": True})
    assert problem["field"] == "rerank"
    assert "NVR_RERANKER" in problem["detail"]


def test_an_answer_that_would_come_too_late(filled: Api) -> None:
    filled.workspace.settings.api.timeout_seconds = 1e-9
    response = filled.client.post("/v1/search", json={"query": "whale"})
    assert (response.status_code, response.json()["type"]) == (503, "urn:nvr-rag:timed-out")
    assert int(response.headers["Retry-After"]) > 0
    assert logged(filled) == 0


BAD: list[tuple[str, Any, str]] = [
    ("group_by", "source", "group_by"),
    ("group_by", 1, "group_by"),
    ("group_by", ["document"], "group_by"),
    ("context", -1, "context"),
    ("context", 11, "context"),
    ("context", 10**30, "context"),
    ("context", 1.5, "context"),
    ("context", "1", "context"),
    ("context", None, "context"),
    ("context", True, "context"),
    ("mmr", 0.5, "mmr"),
    ("mmr", [], "mmr"),
    ("mmr", {}, "mmr.diversity"),
    ("mmr", {"diversity": 1.01}, "mmr.diversity"),
    ("mmr", {"diversity": -0.01}, "mmr.diversity"),
    ("mmr", {"diversity": float("nan")}, "mmr.diversity"),
    ("mmr", {"diversity": "0.5"}, "mmr.diversity"),
    ("mmr", {"diversity": None}, "mmr.diversity"),
    ("mmr", {"diversity": 0.5, "candidates": 0}, "mmr.candidates"),
    ("mmr", {"diversity": 0.5, "candidates": 1001}, "mmr.candidates"),
    ("mmr", {"diversity": 0.5, "candidates": 2.5}, "mmr.candidates"),
    ("mmr", {"diversity": 0.5, "lambda": 1}, "mmr.lambda"),
    ("min_score", float("nan"), "min_score"),
    ("min_score", float("inf"), "min_score"),
    ("min_score", 1e300, "min_score"),
    ("min_score", "0.5", "min_score"),
    ("min_score", True, "min_score"),
    ("rerank", "yes", "rerank"),
    ("rerank", 1, "rerank"),
    ("rerank", None, "rerank"),
    ("explain", "true", "explain"),
    ("explain", {}, "explain"),
    ("diversity", 0.5, "diversity"),
    ("reader", {"everything": True}, "reader"),
    ("filter", {"acl": "user:ann"}, "filter"),
    ("filter", {"acl": {"exists": False}}, "filter"),
]


@pytest.mark.parametrize(("name", "value", "field"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_named(shared_api: Api, name: str, value: Any, field: str) -> None:
    before = logged(shared_api)
    body = {"query": "whale", name: value}
    problem = refused(shared_api, "/v1/search", body)
    assert problem["field"] == field
    several = refused(shared_api, "/v1/search/batch", {"searches": [{"query": "tea"}, body]})
    assert several["field"] == f"searches[1].{field}"
    assert logged(shared_api) == before


def refused(api: Api, path: str, body: Any) -> dict[str, Any]:
    response = api.client.post(path, content=json.dumps(body), headers=JSON)
    assert (response.status_code, response.headers["Content-Type"]) == (422, "application/problem+json"), response.text
    problem: dict[str, Any] = response.json()
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "searches"),
        ({"searches": []}, "searches"),
        ({"searches": [{"query": "x"}] * 65}, "searches"),
        ({"searches": {"query": "x"}}, "searches"),
        ({"searches": [{"query": "x", "k": 1000}] * 10 + [{"query": "x", "k": 1}]}, "searches"),
        ({"searches": [{"query": "x"}, 5]}, "searches[1]"),
        ({"searches": [{"query": "x"}, {}]}, "searches[1].query"),
        ({"searches": [{"query": "x"}, {"query": " "}]}, "searches[1].query"),
        ({"searches": [{"query": "x"}], "k": 5}, "k"),
    ],
)
def test_batches_that_are_none(shared_api: Api, body: Any, field: str) -> None:
    before = logged(shared_api)
    assert refused(shared_api, "/v1/search/batch", body)["field"] == field
    assert logged(shared_api) == before


# -- several at once ---------------------------------------------------------------------------------------------------


def test_several_searches_are_answered_and_logged(filled: Api) -> None:
    searches = [{"query": "whale", "k": 1}, {"query": "tea", "mode": "lexical", "user": "ann"}]
    answers = filled.call("POST", "/v1/search/batch", json={"searches": searches})
    SearchAnswers.model_validate(answers)
    for one, asked in zip(answers["answers"], searches, strict=True):
        alone = filled.search(str(asked.pop("query")), **asked)
        assert [hit["chunk_id"] for hit in one["hits"]] == [hit["chunk_id"] for hit in alone["hits"]]
    with filled.workspace.database.read() as connection:
        rows = {row.id: row for row in connection.execute(select(*t.QueryRow.__table__.c))}
    first, second = (rows[one["query_id"]] for one in answers["answers"])
    assert (first.text, first.k, second.text, second.mode, second.user) == ("whale", 1, "tea", "lexical", "ann")
    word = {"query_id": second.id, "chunk_id": second.hits[0][0], "kind": "relevant"}
    assert filled.call("POST", "/v1/feedback", json=word)["new"] == 1


def test_all_or_none(filled: Api) -> None:
    searches = [{"query": "whale"}, {"query": "tea", "collection": "nope"}]
    problem = filled.call("POST", "/v1/search/batch", 404, json={"searches": searches})
    assert problem["detail"] == "no collection 'nope'; GET /v1/collections lists those there are"
    assert logged(filled) == 0


# -- one chunk ---------------------------------------------------------------------------------------------------------


def test_a_chunk_by_its_id(filled: Api) -> None:
    hit = filled.search("blue whale", k=1, context=1)["hits"][0]
    found = filled.call("GET", f"/v1/chunks/{hit['chunk_id']}?context=1")
    ChunkAnswer.model_validate(found)
    assert found == {name: hit[name] for name in found}
    assert filled.call("GET", f"/v1/chunks/{hit['chunk_id']}")["context"] is None
    for path, status in [
        (f"/v1/chunks/{NOBODY}", 404),
        ("/v1/chunks/nonsense%00", 422),
        (f"/v1/chunks/{'x' * 65}", 422),
        (f"/v1/chunks/{hit['chunk_id']}?context=11", 422),
        (f"/v1/chunks/{hit['chunk_id']}?context=x", 422),
        (f"/v1/chunks/{hit['chunk_id']}?collection=nope", 404),
    ]:
        assert filled.call("GET", path, status)["detail"]


# -- keys --------------------------------------------------------------------------------------------------------------


def with_key(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


def test_a_key_sees_what_is_for_it(filled: Api) -> None:
    filled.call("POST", "/v1/collections", 201, json={"name": "other"})
    acl = {"uri": "secret", "text": "blue whale of ann", "acl": ["user:ann"]}
    filled.put(acl)
    hidden = filled.call("GET", "/v1/collections/default")["indexes"][0]["applied_seq"]
    assert filled.search("whale")["deployment"]["applied_seq"] == hidden
    everything = make_key(filled.workspace, Scope.SEARCH)
    ann = make_key(filled.workspace, Scope.SEARCH, collections=["default"], principals=["user:ann"])

    def search(key: str, **body: Any) -> dict[str, Any]:
        found: dict[str, Any] = filled.call("POST", "/v1/search", json={"query": "blue whale", **body}, **with_key(key))
        return found

    assert {hit["document"]["uri"] for hit in search(everything)["hits"]} == {"handbook", "sea"}
    answer = search(ann)
    assert "secret" in {hit["document"]["uri"] for hit in answer["hits"]}
    assert answer["deployment"]["applied_seq"] is None
    (secret,) = [hit["chunk_id"] for hit in answer["hits"] if hit["document"]["uri"] == "secret"]
    assert filled.call("GET", f"/v1/chunks/{secret}", **with_key(ann))["text"] == "blue whale of ann"
    unreadable = filled.call("GET", f"/v1/chunks/{secret}", 404, **with_key(everything))["detail"]
    unknown = filled.call("GET", f"/v1/chunks/{NOBODY}", 404, **with_key(everything))["detail"]
    assert unreadable.replace(secret, "X") == unknown.replace(NOBODY, "X")

    before = logged(filled)
    for name in ("other", "nope"):  # one that it may not know of is none
        said = {"detail": f"no collection {name!r}; GET /v1/collections lists those there are"}
        path = f"/v1/chunks/{secret}?collection={name}"
        assert filled.call("GET", path, 404, **with_key(ann)).items() >= said.items()
        body = {"query": "whale", "collection": name}
        assert filled.call("POST", "/v1/search", 404, json=body, **with_key(ann)).items() >= said.items()
        several = {"searches": [{"query": "whale"}, body]}
        assert filled.call("POST", "/v1/search/batch", 404, json=several, **with_key(ann)).items() >= said.items()
    assert logged(filled) == before


def test_search_needs_its_scope(filled: Api) -> None:
    key = make_key(filled.workspace, Scope.FEEDBACK)
    chunk = f"/v1/chunks/{NOBODY}"
    for method, path, options in [
        ("POST", "/v1/search", {"json": {"query": "x"}}),
        ("POST", "/v1/search/batch", {"json": {"searches": [{"query": "x"}]}}),
        ("GET", chunk, {}),
    ]:
        filled.call(method, path, 403, **with_key(key), **options)


# -- the client --------------------------------------------------------------------------------------------------------


def test_the_client_reads_all_of_it(filled: Api) -> None:
    query = Query(text="blue whale", k=2, context=1, mmr=Mmr(diversity=0.2), explain=True)
    with Client(str(filled.client.base_url)) as client:
        answer = client.search(query)
        same = filled.workspace.retriever.search(query)
        assert list(answer.hits) == list(same.hits)
        chunk = client.chunk(answer.hits[0].chunk_id, context=1)
        assert (chunk.text, chunk.context is not None) == (answer.hits[0].text, True)
