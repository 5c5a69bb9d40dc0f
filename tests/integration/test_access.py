"""Who comes in: keys, what they are for, on whose behalf they ask, how often; and that no route forgot to ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from nvr_rag import corpus
from nvr_rag.access import keyring, keys
from nvr_rag.access.callers import Scope
from nvr_rag.api import listening, server
from nvr_rag.api.app import create_app
from nvr_rag.errors import DatabaseUnavailable, EncoderError, NoRoom, NvrError, StoreUnavailable
from nvr_rag.retriever import Retriever
from nvr_rag.settings import ApiSettings
from nvr_rag.types import Reader
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api
from tests.integration.key_support import make_key
from tests.isolation.hunt import flat
from tests.support import document

WRONG = "nvr_" + "a" * 12 + "_" + "b" * 43


@pytest.fixture
def full(api: Api) -> Api:
    """An API with a document for everybody and one for the group sea."""
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put({"uri": "open", "text": "green tea"}, {"uri": "closed", "text": "green sea", "acl": ["group:sea"]})
    return api


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def uris(api: Api, headers: dict[str, str]) -> list[str]:
    found = api.call("GET", "/v1/documents", headers=headers)["documents"]
    return [one["uri"] for one in found]


def test_every_route_asks_who_calls(workspace: Workspace) -> None:
    asked = 0
    for path, route in flat(create_app(workspace).routes):
        if path.startswith("/v1/"):
            dependencies = route.dependant.dependencies  # type: ignore[attr-defined]
            names = [getattr(one.call, "__qualname__", "") for one in dependencies]
            assert "allowed.<locals>.caller" in names, path
            asked += 1
    assert asked > 20


def test_keys_and_what_is_none(full: Api) -> None:
    assert uris(full, {}) == ["open"]  # there are no keys yet
    for headers in (bearer(WRONG), {"X-API-Key": WRONG}, {"X-API-Key": ""}, {"Authorization": "Bearer"}):
        problem = full.call("GET", "/v1/collections", 401, headers=headers)
        assert problem["type"] == "urn:nvr-rag:unauthenticated"
    key = make_key(full.workspace, Scope.SEARCH, principals=["group:sea"])
    assert uris(full, bearer(key)) == uris(full, {"X-API-Key": key}) == ["closed", "open"]
    assert uris(full, {"Authorization": f"bearer {key}", "X-API-Key": key}) == ["closed", "open"]
    deadline = time.monotonic() + 1.5  # that there were no keys is believed for a moment
    while full.client.get("/v1/documents").status_code != 401:
        assert time.monotonic() < deadline
    for wrong in ({}, bearer(WRONG), {"X-API-Key": WRONG}, {"Authorization": f"Basic {key}"}):
        response = full.client.get("/v1/documents", headers=wrong)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert key.rpartition("_")[2] not in response.text
    two = full.call("GET", "/v1/documents", 401, headers={**bearer(key), "X-API-Key": WRONG})
    assert "two different keys" in two["detail"]


def test_every_path_but_the_open_ones_needs_a_key(full: Api) -> None:
    make_key(full.workspace, Scope.SEARCH)
    time.sleep(1.1)
    for path in ("/v1/documents", "/v1/nothing", "/metrics", "/mcp", "/", "/v1/documents%23forms"):
        assert full.client.get(path).status_code == 401, path
    for path in ("/livez", "/readyz", "/openapi.json"):
        assert full.client.get(path).status_code == 200


ELSEWHERE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},  # another port of this machine
    {"Origin": "https://elsewhere.example"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "null"},
    {"Origin": "file://"},
    {"Origin": "http://["},
    {"X-Forwarded-For": "203.0.113.7"},  # a proxy that strangers can reach
    {"Forwarded": "for=203.0.113.7"},
]


@pytest.mark.parametrize("said", ELSEWHERE)
def test_what_comes_from_elsewhere_needs_a_key(full: Api, said: dict[str, str]) -> None:
    """A form is sent anywhere without the browser's asking first, and a page can see which addresses answer."""
    form: dict[str, Any] = {"files": {"file": ("a.txt", b"not from here")}}
    problem = full.call("POST", "/v1/documents", 403, headers=said, **form)
    assert problem["type"] == "urn:nvr-rag:forbidden"
    full.call("GET", "/v1/collections", 403, headers=said)
    assert full.client.get("/livez", headers=said).status_code == 200
    key = make_key(full.workspace, Scope.INGEST)  # which no page knows
    full.call("POST", "/v1/documents", 202, headers={**said, **bearer(key)}, **form)


def test_a_page_of_this_server_needs_none(full: Api) -> None:
    own = str(full.client.base_url).rstrip("/")
    for said in ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": own.upper()}):
        full.call("GET", "/v1/collections", headers=said)


@pytest.mark.parametrize("how", ["revoked", "expired", "rotated"])
def test_a_key_ends_within_a_second(full: Api, how: str) -> None:
    lifetime = timedelta(seconds=0.5) if how == "expired" else None
    key = make_key(full.workspace, Scope.SEARCH, lifetime=lifetime)
    assert full.client.get("/v1/documents", headers=bearer(key)).status_code == 200
    if how != "expired":
        with full.workspace.database.write() as connection:
            (made,) = keys.all_keys(connection)
            (keys.revoke if how == "revoked" else keys.rotate)(connection, made.id)
    ended = time.monotonic() + (0.5 if how == "expired" else 0)
    asked = time.monotonic()  # an answer may take long on a busy machine: what counts is when it was asked for
    while (response := full.client.get("/v1/documents", headers=bearer(key))).status_code == 200:
        assert asked < ended + keyring.MOMENT_SECONDS
        asked = time.monotonic()
    words = {"revoked": "was revoked", "expired": "has expired", "rotated": "not known"}
    assert response.status_code == 401
    assert words[how] in response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("POST", "/v1/search", {Scope.SEARCH}),
        ("POST", "/v1/search/batch", {Scope.SEARCH}),
        ("GET", "/v1/chunks/x", {Scope.SEARCH}),
        ("GET", "/v1/documents", {Scope.SEARCH}),
        ("POST", "/v1/documents", {Scope.INGEST}),
        ("DELETE", "/v1/documents?uri=x", {Scope.INGEST}),
        ("POST", "/v1/ingest", {Scope.INGEST}),
        ("POST", "/v1/feedback", {Scope.FEEDBACK}),
        ("POST", "/v1/retrain", {Scope.TRAIN}),
        ("GET", "/v1/jobs/1", {Scope.INGEST, Scope.TRAIN, Scope.ADMIN}),
        ("GET", "/v1/jobs/1/events", {Scope.INGEST, Scope.TRAIN, Scope.ADMIN}),
        ("POST", "/v1/collections", {Scope.ADMIN}),
        ("PATCH", "/v1/collections/default", {Scope.ADMIN}),
        ("DELETE", "/v1/collections/nothing", {Scope.ADMIN}),
        ("POST", "/v1/embeddings", {Scope.SEARCH}),
        ("GET", "/v1/models", {Scope.SEARCH}),
        ("GET", "/metrics", {Scope.METRICS}),
    ],
)
def test_what_a_scope_is_for(full: Api, method: str, path: str, scopes: set[Scope]) -> None:
    for scope in Scope:
        key = make_key(full.workspace, scope)
        body: dict[str, Any] = {} if method == "GET" else {"json": {}}
        response = full.client.request(method, path, headers=bearer(key), **body)
        assert (response.status_code == 403) == (scope not in scopes), (scope, response.text)
        assert response.status_code != 401


def test_collections_that_a_key_is_not_for_are_as_none(full: Api) -> None:
    full.call("POST", "/v1/collections", 201, json={"name": "secret"})
    full.call("POST", "/v1/documents", 202, json={"collection": "secret", "documents": [{"uri": "a", "text": "b"}]})
    key = bearer(make_key(full.workspace, *Scope, collections=["default"]))
    listed = full.call("GET", "/v1/collections", headers=key)["collections"]
    assert [one["name"] for one in listed] == ["default"]
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/v1/collections/{}", {}),
        ("PATCH", "/v1/collections/{}", {"json": {"mode": "dense"}}),
        ("DELETE", "/v1/collections/{}", {}),
        ("GET", "/v1/documents?collection={}", {}),
        ("GET", "/v1/documents/5b0c1f0e-7d0b-5b0a-9a6e-6e7672726167?collection={}", {}),
        ("DELETE", "/v1/documents?uri=a&collection={}", {}),
        ("POST", "/v1/search", {"json": {"query": "b", "collection": "{}"}}),
        ("POST", "/v1/documents", {"json": {"documents": [{"uri": "a", "text": "b"}], "collection": "{}"}}),
        ("POST", "/v1/documents", {"data": {"collection": "{}"}, "files": {"file": ("a.txt", b"b")}}),
        ("POST", "/v1/retrain", {"json": {"collection": "{}"}}),
    ]
    for method, path, options in asked:
        answers = []
        for name in ("secret", "nosuch"):
            named: dict[str, Any] = {
                kind: {k: name if v == "{}" else v for k, v in values.items()} if kind != "files" else values
                for kind, values in options.items()
            }
            response = full.client.request(method, path.format(name), headers=key, **named)
            answers.append((response.status_code, response.json()["detail"].replace(name, "*")))
        assert answers[0] == answers[1], (method, path)
        assert answers[0][0] == 404
    made = [full.call("POST", "/v1/collections", 403, headers=key, json={"name": name}) for name in ("secret", "new")]
    assert made[0]["detail"] == made[1]["detail"]


def test_on_whose_behalf(full: Api) -> None:
    plain = make_key(full.workspace, Scope.SEARCH, principals=["group:sea"])
    bot = make_key(full.workspace, Scope.SEARCH, Scope.IMPERSONATE, principals=["group:sea"])
    full.call("GET", "/v1/documents", 403, headers={**bearer(plain), "X-NVR-Principals": "group:sea"})
    for named, expected in (
        ("user:ann", ["open"]),
        ("user:ann, group:sea", ["closed", "open"]),
        ("", ["open"]),  # on behalf of nobody in particular
        ("group:SEA", ["open"]),
    ):
        assert uris(full, {**bearer(bot), "X-NVR-Principals": named}) == expected
    assert uris(full, bearer(bot)) == ["closed", "open"]
    for wrong in (b"x" * 257, b"a\xff", b"a\xc2\x85b", b",".join(b"p%d" % n for n in range(257))):
        headers: Any = [(b"Authorization", b"Bearer " + bot.encode()), (b"X-NVR-Principals", wrong)]
        problem = full.call("GET", "/v1/documents", 422, headers=headers)
        assert problem["field"] == "X-NVR-Principals"


def test_principals_are_said_once(full: Api) -> None:
    """A proxy that says whose request it is must not hand on what the client has said before."""
    bot = make_key(full.workspace, Scope.SEARCH, Scope.IMPERSONATE)
    headers: Any = [
        ("Authorization", f"Bearer {bot}"), ("X-NVR-Principals", "group:sea"), ("X-NVR-Principals", "user:ann")
    ]  # fmt: skip
    problem = full.call("GET", "/v1/documents", 422, headers=headers)
    assert (problem["field"], "once" in problem["detail"]) == ("X-NVR-Principals", True)


def test_principals_are_utf_8(full: Api) -> None:
    full.put({"uri": "jürgen", "text": "tea of jürgen", "acl": ["user:jürgen"]})
    bot = make_key(full.workspace, Scope.SEARCH, Scope.IMPERSONATE)
    headers: Any = [
        (b"Authorization", b"Bearer " + bot.encode()), (b"X-NVR-Principals", "user:jürgen".encode())
    ]  # fmt: skip
    assert uris(full, headers) == ["jürgen", "open"]


def test_a_key_may_ask_only_so_often(full: Api) -> None:
    slow = bearer(make_key(full.workspace, Scope.SEARCH, per_minute=6))  # one in ten seconds, and no more at once
    other = bearer(make_key(full.workspace, Scope.SEARCH))
    assert full.client.get("/v1/documents", headers=slow).status_code == 200
    refused = full.client.get("/v1/documents", headers=slow)
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:nvr-rag:too-many-requests"
    assert 1 <= int(refused.headers["Retry-After"]) <= 10
    assert [full.client.get("/v1/documents", headers=other).status_code for _ in range(5)] == [200] * 5


@pytest.fixture
def public(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """A server that other machines can reach, and a key."""
    workspace.create_collection("default")
    key = make_key(workspace, Scope.SEARCH)
    listener = listening.listen(ApiSettings(host="0.0.0.0", port=0))
    ready, made = threading.Event(), list[server._Server]()

    class Watched(server._Server):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_Server", Watched)
        thread = threading.Thread(target=server.serve, args=(workspace, [], listener, lambda _url: ready.set()))
        thread.start()
        assert ready.wait(10)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", key
    made[0].should_exit = True
    thread.join()


def test_with_a_key_other_machines_are_served(public: tuple[str, str], workspace: Workspace) -> None:
    url, key = public
    assert httpx.get(f"{url}/v1/collections").status_code == 401
    answer = httpx.get(f"{url}/v1/collections", headers={**bearer(key), "Host": "search.example"})
    assert answer.status_code == 200
    with workspace.database.write() as connection:
        keys.revoke(connection, keys.all_keys(connection)[0].id)
    time.sleep(1.1)
    for headers in ({}, bearer(key)):
        assert httpx.get(f"{url}/v1/collections", headers=headers).status_code == 401


def test_why_a_server_is_not_ready_is_told_to_those_who_manage_it(full: Api) -> None:
    full.indexer.trouble = "the disk is full"
    assert "small indexer: the disk is full" in full.call("GET", "/readyz", 503)["reasons"]
    admin, other = make_key(full.workspace, Scope.ADMIN), make_key(full.workspace, Scope.SEARCH)
    assert "small indexer: the disk is full" in full.call("GET", "/readyz", 503, headers=bearer(admin))["reasons"]
    for headers in ({}, bearer(other), bearer(WRONG), {"Authorization": "Basic x"}):
        response = full.client.get("/readyz", headers=headers)
        assert response.status_code == 503
        assert "disk" not in response.text


INSIDE = [
    DatabaseUnavailable("the database did not answer: db.intern port 5432, user nvr"),
    StoreUnavailable("qdrant.intern refused"),
    EncoderError("the files in /srv/intern are damaged"),
    NoRoom("there is no room on the disk of /srv/intern"),
]


@pytest.mark.parametrize("error", INSIDE, ids=lambda error: type(error).__name__)
def test_what_is_wrong_inside_is_told_to_those_who_manage_it(
    full: Api, error: NvrError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Retriever, "search", fail)
    asked: dict[str, Any] = {"json": {"query": "green"}}
    plain, admin = make_key(full.workspace, Scope.SEARCH), make_key(full.workspace, Scope.SEARCH, Scope.ADMIN)
    assert full.call("POST", "/v1/search", 503, headers=bearer(admin), **asked)["detail"] == str(error)
    problem = full.call("POST", "/v1/search", 503, headers=bearer(plain), **asked)
    assert "intern" not in str(problem)
    assert problem["detail"].endswith(f"under the request {problem['request_id']}")
    assert problem["type"] != "about:blank"


@pytest.mark.parametrize("open_", [True, False])
def test_strangers_are_told_nothing_of_a_database_that_is_away(
    full: Api, open_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not open_:
        make_key(full.workspace, Scope.SEARCH)
    time.sleep(1.1)
    assert full.client.get("/v1/documents").status_code == (200 if open_ else 401)

    class Away:
        def read(self) -> None:
            raise DatabaseUnavailable("db.intern is away")

    time.sleep(1.1)
    monkeypatch.setattr(full.app.state.parts.keyring, "_database", Away())
    assert ("db.intern" in full.call("GET", "/v1/documents", 503)["detail"]) == open_
    assert "db.intern" not in full.call("GET", "/v1/documents", 503, headers=bearer(WRONG))["detail"]


def test_no_cache_keeps_an_answer(full: Api) -> None:
    key = {"X-API-Key": make_key(full.workspace, Scope.SEARCH)}
    for path in ("/v1/documents", "/v1/documents/x", "/v1/nothing", "/livez"):
        headers = full.client.get(path, headers=key).headers
        assert headers.get_list("Cache-Control") == ["no-store"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_reader_needs_leave_from_the_version_too(full: Api) -> None:
    """While the index lags it shows an old version of what everybody may read by now."""
    full.put({"uri": "opened", "text": "the secret tea\n\nboth tea", "acl": ["group:sea"]})
    with full.indexer.paused():
        with full.workspace.database.write() as connection:
            from nvr_rag import corpus

            corpus.put(connection, "default", [document("opened", "the public tea\n\nboth tea")])
        from sqlalchemy import select

        from nvr_rag import chunks, indexes
        from nvr_rag.db import tables as t

        with full.workspace.database.read() as connection:
            (index,) = indexes.all_infos(connection)
            every = list(connection.scalars(select(t.Chunk.id)))
            for reader, shown in ((Reader(), False), (Reader(principals=frozenset({"group:sea"})), True)):
                view = chunks.View(
                    chunking_id=index.chunking_id, since=index.applied_seq, until=index.applied_seq, reader=reader
                )
                texts = {one.text for one in chunks.visible(connection, every, view)}
                assert ("the secret tea" in texts) == shown


def test_ranks_do_not_count_what_was_restricted_until_just_now(api: Api) -> None:
    """What everybody may read by now hides its old version for as long as the index shows that one."""
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    old = {"uri": "opened", "text": "black tea\n\nblack tea leaves", "acl": ["group:sea"]}
    api.put(old, {"uri": "other", "text": "black"})
    with api.indexer.paused():
        with api.workspace.database.write() as connection:
            corpus.put(connection, "default", [document("opened", "white tea")])
        for mode in ("dense", "lexical"):
            found = api.search("black tea leaves", mode=mode)["hits"]
            assert [(hit["document"]["uri"], hit[mode]["rank"]) for hit in found] == [("other", 1)]
