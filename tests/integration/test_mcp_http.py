"""MCP over HTTP: the official client asks the running server, with keys and without."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from sqlalchemy import select

from nvr_rag import corpus
from nvr_rag.access.callers import Scope
from nvr_rag.access.keyring import MOMENT_SECONDS
from nvr_rag.api.app import create_app
from nvr_rag.db import tables as t
from nvr_rag.errors import ConfigurationError, StoreUnavailable
from nvr_rag.retriever import Retriever
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api
from tests.integration.conftest import MAX_BODY_BYTES
from tests.integration.key_support import make_key
from tests.integration.mcp_support import error_of, over_http, result_of, texts_of
from tests.support import document

MODES = ["auto", "legacy"]  # the newest version of the protocol, and those that begin with a handshake
HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
NEWEST = "2026-07-28"
NEWEST_HEADERS = {"MCP-Protocol-Version": NEWEST, "Mcp-Method": "tools/call", "Mcp-Name": "search"}
META = {"io.modelcontextprotocol/protocolVersion": NEWEST, "io.modelcontextprotocol/clientCapabilities": {}}
SECRET = "the merger is on monday"
NOBODY = "5f0c0c9e-8a52-4b8e-9c55-0d8b7a4e2f10"


def message(tool: str, arguments: str) -> str:
    """A request of the protocol, by hand."""
    call = f'{{"name": "{tool}", "arguments": {arguments}, "_meta": {json.dumps(META)}}}'
    return f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {call}}}'


@pytest.fixture
def open_api(api: Api) -> Api:
    """An API without keys, with a collection "default" of two documents."""
    api.workspace.create_collection("default")
    api.put({"uri": "file:///a", "text": "red fox jumps\n\nblue whale swims", "title": "A"})
    api.put({"uri": "file:///b", "text": "green tea is hot", "metadata": {"year": 2026}})
    return api


@pytest.fixture
def guarded(open_api: Api) -> Api:
    """The same with a document for ann alone, a collection "other", and keys, so that everybody needs one."""
    open_api.workspace.create_collection("other")
    with open_api.workspace.database.write() as connection:
        corpus.put(connection, "default", [document("file:///s", SECRET, title="Secret plan", acl=["user:ann"])])
    open_api.put({"uri": "c", "text": "level with the log"})
    make_key(open_api.workspace, Scope.ADMIN)
    return open_api


@pytest.mark.parametrize("mode", MODES)
async def test_search_fetch_and_feedback(open_api: Api, mode: str) -> None:
    async with over_http(open_api.client.base_url, mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["search", "fetch", "feedback"]
        found = await result_of(client, "search", query="blue whale", k=1)
        (first,) = found["results"]
        assert (first["text"], first["title"], first["url"]) == ("blue whale swims", "A", "file:///a")
        whole = await result_of(client, "fetch", id=first["id"])
        assert (whole["text"], whole["whole"]) == ("red fox jumps\n\nblue whale swims", True)
        alone = await result_of(client, "fetch", id=first["id"], context=0)
        assert (alone["text"], alone["whole"], alone["start"], alone["end"]) == ("blue whale swims", False, 15, 31)
        beside = await result_of(client, "fetch", id=first["id"], context=1)
        assert (beside["text"], beside["start"], beside["end"]) == ("red fox jumps\n\nblue whale swims", 0, 31)
        said = {"query_id": found["query_id"], "id": first["id"], "kind": "cited"}
        assert await result_of(client, "feedback", **said) == {"new": True}
        assert await result_of(client, "feedback", **said) == {"new": False}
        assert await texts_of(client, "tea", filter={"metadata.year": {"gte": 2026}}) == ["green tea is hot"]
    with open_api.workspace.database.read() as connection:
        rows = connection.execute(select(t.FeedbackRow.query_id, t.FeedbackRow.chunk_id, t.FeedbackRow.kind)).all()
    assert [tuple(row) for row in rows] == [(found["query_id"], first["id"].removeprefix("default/"), "cited")]


@pytest.mark.parametrize("mode", MODES)
async def test_tools_fail_in_our_words(open_api: Api, mode: str) -> None:
    async with over_http(open_api.client.base_url, mode=mode) as client:
        assert await error_of(client, "search", query=" ") == "the query is empty; ask something"
        assert "no collection 'nope'; there are: default" in await error_of(
            client, "search", query="x", collection="nope"
        )
        assert "unknown field 'year'" in await error_of(client, "search", query="x", filter={"year": 1})
        assert "search again" in await error_of(client, "fetch", id=f"default/{NOBODY}")
        assert "no query" in await error_of(client, "feedback", query_id=NOBODY, kind="answer_good")
        found = await result_of(client, "search", query="fox", k=1)
        strange = {"query_id": found["query_id"], "id": f"default/{NOBODY}", "kind": "cited"}
        assert "was not among the hits" in await error_of(client, "feedback", **strange)


@pytest.mark.parametrize("mode", MODES)
async def test_a_document_is_shown_to_its_principals_alone(guarded: Api, mode: str) -> None:
    url, both = guarded.client.base_url, (Scope.SEARCH, Scope.FEEDBACK)
    ann, bob = (make_key(guarded.workspace, *both, principals=[f"user:{name}"]) for name in ("ann", "bob"))
    async with over_http(url, mode=mode, Authorization=f"Bearer {ann}") as client:
        found = await result_of(client, "search", query="merger monday", k=1)
        (first,) = found["results"]
        assert first["text"] == SECRET
        assert (await result_of(client, "fetch", id=first["id"]))["text"] == SECRET
    async with over_http(url, mode=mode, X_API_Key=bob) as client:
        everything = json.dumps(await result_of(client, "search", query="merger monday", k=100))
        assert "merger" not in everything
        assert "Secret" not in everything
        assert "file:///a" in everything
        none = await error_of(client, "fetch", id=f"default/{NOBODY}")
        chunk_id = first["id"].removeprefix("default/")
        assert await error_of(client, "fetch", id=first["id"]) == none.replace(NOBODY, chunk_id)
        said = {"query_id": found["query_id"], "id": first["id"], "kind": "relevant"}
        assert "no query" in await error_of(client, "feedback", **said)


async def test_a_key_may_do_what_it_is_for(guarded: Api) -> None:
    url = guarded.client.base_url
    searches = make_key(guarded.workspace, Scope.SEARCH, collections=["default"])
    async with over_http(url, X_API_Key=searches) as client:
        found = await result_of(client, "search", query="fox", k=1)
        said = {"query_id": found["query_id"], "id": found["results"][0]["id"], "kind": "cited"}
        assert "has not the scope feedback" in await error_of(client, "feedback", **said)
        there = await error_of(client, "search", query="x", collection="other")
        assert there == "no collection 'other'; there are: default"
        none = await error_of(client, "search", query="x", collection="nope")
        assert none == there.replace("other", "nope")
        assert await error_of(client, "fetch", id=f"other/{NOBODY}") == (
            await error_of(client, "fetch", id=f"nope/{NOBODY}")
        ).replace("nope", "other")
    async with over_http(url, X_API_Key=make_key(guarded.workspace, Scope.FEEDBACK)) as client:
        assert "has not the scope search" in await error_of(client, "search", query="x")
        assert "has not the scope search" in await error_of(client, "fetch", id=f"default/{NOBODY}")


async def test_what_is_wrong_inside_is_for_those_who_manage_it(guarded: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("qdrant.intern refused")

    monkeypatch.setattr(Retriever, "search", fail)
    for scopes, told in (((Scope.SEARCH,), False), ((Scope.SEARCH, Scope.ADMIN), True)):
        async with over_http(guarded.client.base_url, X_API_Key=make_key(guarded.workspace, *scopes)) as client:
            said = await error_of(client, "search", query="fox")
        assert ("qdrant.intern" in said) == told
        assert said.endswith("(the same call may succeed in a moment)")


async def test_a_bot_asks_on_behalf_of_its_users(guarded: Api) -> None:
    bot = make_key(guarded.workspace, Scope.SEARCH, Scope.IMPERSONATE)
    for name, seen in (("ann", True), ("bob", False)):
        headers = {"X_API_Key": bot, "X_NVR_Principals": f"user:{name}"}
        async with over_http(guarded.client.base_url, **headers) as client:
            assert (SECRET in await texts_of(client, "merger monday")) == seen


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nvr_wrong"}, {"X-API-Key": "x"}])
def test_nobody_comes_in_without_a_good_key(guarded: Api, headers: dict[str, str]) -> None:
    body = message("search", '{"query": "fox"}')
    time.sleep(MOMENT_SECONDS)  # so long it is remembered that there were no keys
    response = guarded.client.post("/mcp", content=body, headers={**HEADERS, **headers})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["type"] == "urn:nvr-rag:unauthenticated"


def test_a_proxy_may_pass_on_the_name_that_it_was_called_by(guarded: Api) -> None:
    headers = {**HEADERS, "X-API-Key": make_key(guarded.workspace, Scope.SEARCH), "Host": "docs.example.org"}
    response = guarded.client.post("/mcp", content=message("search", '{"query": "fox", "k": 1}'), headers=headers)
    assert response.status_code == 200
    assert "red fox jumps" in response.text


def test_every_request_stands_for_itself(open_api: Api) -> None:
    """Any process of a server can answer any of them."""
    response = open_api.client.post("/mcp", content=message("search", '{"query": "fox", "k": 1}'), headers=HEADERS)
    assert response.headers["Content-Type"] == "application/json"
    assert "mcp-session-id" not in response.headers
    assert response.json()["result"]["structuredContent"]["results"][0]["text"] == "red fox jumps"


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_there_is_no_stream_to_wait_on(open_api: Api, method: str) -> None:
    problem = open_api.call(method, "/mcp", 405, headers=HEADERS)
    assert problem["detail"] == f"{method} is not possible here; possible: POST"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        '{"jsonrpc": "2.0"}',
        "[" * 100_000,
        '{"jsonrpc": "2.0", "id": {}, "method": "tools/call"}',
        '{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}',
        '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": 5}}',
        '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": "x"}}',
        '{"jsonrpc": "2.0", "id": 1, "method": "nothing"}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("version", [None, "2025-06-18", "2026-07-28", "1999-01-01", "\xff"])
def test_what_is_no_message_is_answered(shared_api: Api, body: str | bytes, version: str | None) -> None:
    headers: dict[str, Any] = {**HEADERS, **({"MCP-Protocol-Version": version.encode("latin-1")} if version else {})}
    response = shared_api.client.post("/mcp", content=body, headers=headers)
    assert response.status_code < 500
    assert "Traceback" not in response.text
    assert shared_api.texts("whale")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"query": "x", "k": NaN}', "k must be a valid integer"),
        ('{"query": "x", "filter": {"metadata.year": Infinity}}', "filter must have finite numbers"),
        ('{"query": "\\ud800"}', "query must be valid Unicode"),
        ('{"query": "x", "filter": {"uri": "\\ud800"}}', "filter must be valid Unicode"),
        ('{"query": "x", "filter": ' + '{"not":' * 400 + "{}" + "}" * 400 + "}", "filter must not nest"),
        ('{"query": "x", "k": 1' + "0" * 4000 + "}", "k must be"),
        ('{"query": "x", "k": 3, "k": "3"}', "k must be a valid integer"),
    ],
)
def test_what_only_a_hand_can_write_is_answered(shared_api: Api, arguments: str, words: str) -> None:
    body = message("search", arguments)
    response = shared_api.client.post("/mcp", content=body, headers={**HEADERS, **NEWEST_HEADERS})
    assert response.status_code == 200, response.text
    result = response.json()["result"]
    assert result["isError"] is True
    assert words in result["content"][0]["text"]
    # Before there was a version to name, some of it was no JSON at all.
    assert shared_api.client.post("/mcp", content=body, headers=HEADERS).status_code in (200, 400)


def test_a_body_that_is_too_large_is_refused(shared_api: Api) -> None:
    body = message("search", json.dumps({"query": "x" * MAX_BODY_BYTES}))
    assert shared_api.call("POST", "/mcp", 413, content=body, headers=HEADERS)["status"] == 413
    chunks = iter([body[:10].encode(), body[10:].encode()])  # without a Content-Length
    assert shared_api.call("POST", "/mcp", 413, content=chunks, headers=HEADERS)["status"] == 413


async def test_without_the_sdk_the_path_says_so(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    from nvr_rag import mcp

    def missing() -> None:
        raise ConfigurationError("MCP needs a package")

    monkeypatch.setattr(mcp, "protocol", missing)
    app = create_app(workspace)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://h") as client:
        response = await client.post("/mcp", json={})
    assert response.status_code == 404
    assert response.json()["detail"] == "MCP needs a package"
