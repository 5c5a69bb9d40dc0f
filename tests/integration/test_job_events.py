"""Progress as server-sent events: what is sent, when it ends, and what it costs."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nvr_rag import jobs
from nvr_rag.access import keys
from nvr_rag.access.callers import Scope
from nvr_rag.api import events
from tests.integration.api_support import Api
from tests.integration.key_support import make_key


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)


def followed(response: httpx.Response) -> Iterator[dict[str, str]]:
    """The events of a stream, as the standard has them: fields by name; comments as {"": text}."""
    event: dict[str, str] = {}
    for line in response.iter_lines():
        if not line:
            if event:
                yield event
            event = {}
            continue
        name, _, value = line.partition(":")
        event[name] = value.removeprefix(" ")


def told(event: dict[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(event["data"])
    return said


def test_a_job_is_followed_to_its_end(api: Api) -> None:
    database = api.workspace.database
    job = jobs.enqueue(database, "work", {"collection": "default"})
    with api.client.stream("GET", f"/v1/jobs/{job}/events") as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Request-ID"]
        stream = followed(response)
        assert next(stream) == {"retry": "3000"}
        assert (told(next(stream))["state"]) == "queued"
        jobs.claim(database, "worker", ["work"])
        assert told(next(stream))["state"] == "running"
        jobs.heartbeat(database, job, "worker", {"done": 1, "total": 2})
        assert told(next(stream))["progress"] == {"done": 1, "total": 2}
        jobs.heartbeat(database, job, "worker", {"done": 1, "total": 2})  # says nothing new
        jobs.finish(database, job, "worker", result={"added": 2}, error=None)
        last = next(stream)
        assert (last["id"], told(last)["state"], told(last)["result"]) == ("end", "done", {"added": 2})
        assert told(last) == api.call("GET", f"/v1/jobs/{job}")
        assert list(stream) == []
    again = api.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "end"})
    assert (again.status_code, again.content) == (204, b"")  # so a browser does not connect again and again
    assert api.client.get(f"/v1/jobs/{job}/events").text.count("data: ") == 1


def test_a_silent_job_sends_signs_of_life(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    job = jobs.enqueue(api.workspace.database, "work", {})
    with api.client.stream("GET", f"/v1/jobs/{job}/events") as response:
        lines = response.iter_lines()
        said = [next(lines) for _ in range(10)]
    assert said[:3] == ["retry: 3000", "", said[2]]
    assert said[4:9] == [":", "", ":", "", ":"]


@pytest.mark.parametrize("how", ["revoked", "the first key is made"])
def test_a_stream_outlives_no_key(api: Api, how: str) -> None:
    key = make_key(api.workspace, Scope.ADMIN) if how == "revoked" else None
    job = jobs.enqueue(api.workspace.database, "work", {})
    headers = {} if key is None else {"X-API-Key": key}
    with api.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as response:
        stream = followed(response)
        assert (next(stream), told(next(stream))["state"]) == ({"retry": "3000"}, "queued")
        if key is None:
            make_key(api.workspace, Scope.SEARCH)
        else:
            with api.workspace.database.write() as connection:
                keys.revoke(connection, keys.all_keys(connection)[0].id)
        assert list(stream) == []  # it ends, although the job has not


def test_what_is_not_there_is_said(api: Api) -> None:
    for path, status in (("99", 404), ("x", 422), ("0", 422), (str(2**40), 422)):
        response = api.client.get(f"/v1/jobs/{path}/events")
        assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json")


def test_there_is_a_bounded_number_of_streams_and_those_that_end_make_room(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 2)
    job = jobs.enqueue(api.workspace.database, "work", {})
    path = f"/v1/jobs/{job}/events"
    with api.client.stream("GET", path) as one, api.client.stream("GET", path) as two:
        assert (one.status_code, two.status_code) == (200, 200)
        full = api.client.get(path)
        assert (full.status_code, full.headers["Content-Type"]) == (503, "application/problem+json")
        assert int(full.headers["Retry-After"]) > 0
    soon = time.monotonic() + 20
    while not is_free(api, job):  # the clients have gone, and the server sees it
        assert time.monotonic() < soon
        time.sleep(0.02)


def test_no_key_takes_all_the_streams(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 3)
    monkeypatch.setattr(events, "MAX_STREAMS_OF_A_KEY", 2)
    greedy, other, last = ({"X-API-Key": make_key(api.workspace, Scope.ADMIN)} for _ in range(3))
    job = jobs.enqueue(api.workspace.database, "work", {})
    path = f"/v1/jobs/{job}/events"
    with api.client.stream("GET", path, headers=greedy), api.client.stream("GET", path, headers=greedy) as two:
        assert two.status_code == 200
        full = api.client.get(path, headers=greedy)
        assert (full.status_code, full.json()["type"]) == (429, "urn:nvr-rag:too-many-requests")
        assert int(full.headers["Retry-After"]) > 0
        with api.client.stream("GET", path, headers=other) as theirs:
            assert theirs.status_code == 200
            assert api.client.get(path, headers=last).status_code == 503  # there are never more in all
    soon = time.monotonic() + 20
    while not is_free(api, job, headers=greedy):
        assert time.monotonic() < soon
        time.sleep(0.02)


def is_free(api: Api, job: int, headers: dict[str, str] | None = None) -> bool:
    """Whether one more stream may be opened."""
    with api.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as response:
        return response.status_code == 200


def test_clients_that_do_not_read_are_let_go(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(events, "MAX_STREAMS", 1)
    database = api.workspace.database
    job = jobs.enqueue(database, "work", {})
    jobs.claim(database, "worker", ["work"])
    url = api.client.base_url
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect((url.host, url.port or 80))
        connection.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        deadline, number = time.monotonic() + 60, 0
        assert connection.recv(12) == b"HTTP/1.1 200"  # and nothing more is read
        while not is_free(api, job):
            number += 1
            jobs.heartbeat(database, job, "worker", {"padding": f"{number}" * 200_000})
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert number > 1  # it was taken until then


def test_followers_hold_no_thread(api: Api) -> None:
    job = jobs.enqueue(api.workspace.database, "work", {})
    open_streams = []
    limits = httpx.Limits(max_connections=100)
    with httpx.Client(base_url=api.client.base_url, timeout=20, limits=limits) as client:
        for _ in range(50):  # more than the pool has threads
            context = client.stream("GET", f"/v1/jobs/{job}/events")
            assert context.__enter__().status_code == 200
            open_streams.append(context)
        started = time.monotonic()
        assert api.call("GET", f"/v1/jobs/{job}")["state"] == "queued"
        assert time.monotonic() - started < 5
        assert threading.active_count() < 60
        jobs.cancel(api.workspace.database, job)
        for context in open_streams:
            context.__exit__(None, None, None)
