"""Limits, over a real socket: how much is sent, how slowly, how many ask at once, and how long an answer takes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from nvr_rag.api import gate, protocol
from nvr_rag.observing.meter import Meter
from nvr_rag.settings import ApiSettings, Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.integration.metrics_support import Scrape

AT_ONCE = 3


@pytest.fixture
def api(home: Path) -> Iterator[Api]:
    """An API that takes three requests at a time, with a collection "default"."""
    settings = Settings(home=home, api=ApiSettings(max_in_flight=AT_ONCE))
    with Workspace(settings, store=MemoryStore(), encoder=HashEncoder()) as workspace, running(workspace) as api:
        yield api


def connection(api: Api) -> socket.socket:
    url = api.client.base_url
    return socket.create_connection((url.host, url.port), timeout=20)


def head(body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    lines = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}"
    return lines.encode() + b"\r\n\r\n" + body


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    while part := client.recv(65_536):
        received += part
    return received


def test_a_body_that_stops_coming(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    with connection(api) as client:
        begun = time.monotonic()
        client.sendall(head(b'{"query": ', length=100))
        answer = everything(client)  # and the connection is closed
        took = time.monotonic() - begun
    top, _, body = answer.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in top.lower()
    problem = json.loads(body)
    assert problem["status"] == 408
    assert "0 seconds" in problem["detail"]
    assert 0.5 <= took < 10
    assert Scrape(api.client.get("/metrics").text).value("problems_total", kind="408") == 1


def test_a_body_that_comes_slowly_but_comes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the pauses that count, and the pace."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(gate, "BODY_PACE", 8)  # 3 s for its 16 bytes
    body = json.dumps({"query": "tea"}).encode()
    with connection(api) as client:
        client.sendall(head(b"", length=len(body)))
        for start in range(0, len(body), 4):
            time.sleep(0.3)  # 1.5 s in all
            client.sendall(body[start : start + 4])
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_never_stops_and_never_gets_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 1.5)
    with connection(api) as client:
        begun = time.monotonic()
        client.sendall(head(b"", length=100))
        client.settimeout(0.1)
        answer = b""
        for _ in range(99):  # a byte every 0.1 s, so that no pause is too long
            try:
                answer = client.recv(100)
                break
            except TimeoutError:
                client.sendall(b" ")
        took = time.monotonic() - begun
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 1.5 <= took < 8


def test_time_in_which_the_server_does_not_read_is_not_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while it writes an upload to a slow disk."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.3)
    pieces = iter([b"a", b"b", b"c", b""])

    async def receive() -> Message:
        piece = next(pieces)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def reads_slowly(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            await anyio.sleep(0.2)
        await Response("all of it")(scope, receive, send)

    told: list[Message] = []

    async def send(message: Message) -> None:
        told.append(message)

    whole = gate.Gate(
        reads_slowly,
        limit_of=lambda _: gate.Limit(bytes=10, setting=""),
        max_in_flight=1,
        stopping=threading.Event(),
        counts=Meter(),
    )
    anyio.run(whole, {"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    assert told[0]["status"] == 200


def test_a_body_that_is_too_large_and_stops_coming(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    length = api.workspace.settings.api.max_body_bytes + 1
    with connection(api) as client:
        client.sendall(head(b"{", length=length))
        assert everything(client).startswith(b"HTTP/1.1 413 ")


def test_an_answer_may_take_longer_than_a_body(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    search = api.workspace.retriever.search

    def slowly(*arguments: object, **options: object) -> object:
        time.sleep(0.8)
        return search(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api.workspace.retriever, "search", slowly)
    assert api.search("tea")["hits"] == []


def test_more_requests_than_it_takes_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Semaphore(0), threading.Event()
    search = api.workspace.retriever.search

    def slowly(*arguments: object, **options: object) -> object:
        inside.release()
        assert go_on.wait(20)
        return search(*arguments, **options)  # type: ignore[arg-type]

    deadline = time.monotonic() + 20
    while api.client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    monkeypatch.setattr(api.workspace.retriever, "search", slowly)
    answers: list[dict[str, object]] = []
    threads = [threading.Thread(target=lambda: answers.append(api.search("tea"))) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=10)
    refused = api.client.post("/v1/search", json={"query": "tea"})
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["type"] == "urn:nvr-rag:overloaded"
    assert "NVR_API__MAX_IN_FLIGHT" in refused.json()["detail"]
    # Who looks after the server goes on seeing it.
    assert api.call("GET", "/livez") == {"status": "alive"}
    assert api.call("GET", "/readyz") == {"status": "ready"}
    found = Scrape(api.client.get("/metrics").text)
    assert found.value("requests_in_flight") == AT_ONCE
    assert found.value("problems_total", kind="overloaded") == 1
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(answers) == AT_ONCE
    assert api.search("tea")["hits"] == []  # there is room again


def test_a_refused_request_leaves_its_connection_usable(api: Api) -> None:
    with httpx.Client(base_url=api.client.base_url, timeout=10) as client:
        stuck = [connection(api) for _ in range(AT_ONCE)]
        for one in stuck:
            one.sendall(head(b"{", length=10))
        deadline = time.monotonic() + 10
        while client.post("/v1/search", json={"query": "tea" * 100}).status_code != 503:
            assert time.monotonic() < deadline
        for one in stuck:
            one.close()
        while client.post("/v1/search", json={"query": "tea"}).status_code != 200:
            assert time.monotonic() < deadline


def test_a_request_line_and_headers_that_are_too_long(api: Api) -> None:
    with connection(api) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 100_000)  # and more to come
        assert everything(client).startswith(b"HTTP/1.1 400 ")
    assert api.call("GET", "/livez") == {"status": "alive"}


@pytest.mark.parametrize("begun", [b"", b"GET /livez HTTP/1.1\r\nHost: local"])
def test_a_head_that_does_not_come(api: Api, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with connection(api) as client:
        began = time.monotonic()
        client.sendall(begun)
        assert everything(client) == b""
    assert 0.4 <= time.monotonic() - began < 10


def test_the_head_of_a_second_request_that_does_not_come(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with connection(api) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += client.recv(1000)
        time.sleep(1.0)  # it may wait between requests
        for part in (b"GET /livez HT", b"TP/1.1\r\nHo"):
            client.sendall(part)
            time.sleep(0.1)
        assert everything(client) == b""


def test_an_answer_that_would_come_too_late(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=home, api=ApiSettings(timeout_seconds=0.3))
    encode = HashEncoder.encode_queries

    def slowly(self: HashEncoder, texts: list[str]) -> object:
        if texts[0] == "tea":
            time.sleep(0.5)
        return encode(self, texts)

    monkeypatch.setattr(HashEncoder, "encode_queries", slowly)
    with Workspace(settings, store=MemoryStore(), encoder=HashEncoder()) as workspace, running(workspace) as api:
        late = api.client.post("/v1/search", json={"query": "tea"})
        assert late.status_code == 503
        assert late.json()["type"] == "urn:nvr-rag:timed-out"
        assert late.headers["Retry-After"] == "1"
        assert api.search("coffee")["hits"] == []


def test_a_request_id_is_given_back_or_made(api: Api) -> None:
    given = api.client.get("/livez", headers={"X-Request-ID": "abc-1"})
    assert given.headers["X-Request-ID"] == "abc-1"
    made = [api.client.get("/livez", headers={"X-Request-ID": "no\tspaces"}).headers["X-Request-ID"] for _ in range(2)]
    assert made[0] != made[1]
