"""`nvr-rag search` beside a server, which answers; one that is gone, or is another program, is passed over."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nvr_rag.commands import common
from nvr_rag.running import processes
from tests.integration.command_line import CommandLine
from tests.support import document

ANSWER = {
    "query_id": "q-1",
    "collection": "default",
    "mode": "dense",
    "deployment": {"id": 1, "index": "ix", "encoder": "e", "mode": "hybrid", "applied_seq": 3},
    "hits": [
        {
            "rank": 1,
            "score": 0.5,
            "chunk_id": "c",
            "text": "from the server",
            "document": {
                "id": "d",
                "uri": "file:///s",
                "source": "",
                "title": "S",
                "media_type": "text/plain",
                "metadata": {"a": 1},
                "sha256": "ab",
                "updated_at": "2024-05-31T12:30:00Z",
            },
            "headings": ["H"],
            "page": 4,
            "start": 0,
            "end": 15,
            "context": None,
            "dense": {"rank": 1, "score": 0.5},
            "lexical": None,
            "explain": None,
        }
    ],
    "took_ms": {"encode": 1.0, "search": 2.0, "hydrate": 3.0, "rerank": 0.0},
}


class FakeServer:
    """Answers every POST alike and keeps what it was asked."""

    def __init__(self) -> None:
        self.status, self.media_type, self.body = 200, "application/json", json.dumps(ANSWER).encode()
        self.asked: list[tuple[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append((self.path, json.loads(content)))
                self.send_response(server.status)
                self.send_header("Content-Type", server.media_type)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def problem(self, status: int, **problem: object) -> None:
        self.status, self.media_type = status, "application/problem+json"
        self.body = json.dumps({"status": status, **problem}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def run(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line whose own index answers "whale"."""
    line = CommandLine(bare_home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not be asked for what is near
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with line.house() as house:
        house.put(document("file:///own", "blue whale"))
        house.catch_up()
    return line


def announce(run: CommandLine, url: str | None) -> None:
    with run.house() as house:
        processes.announce(house.database, "serve", url)


def unused_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_the_server_answers_and_its_index_is_left_alone(run: CommandLine, server: FakeServer) -> None:
    announce(run, server.url)
    with run.house() as house:
        assert house.index  # would be busy, were it opened
        options = ("-k", "3", "--mode", "dense", "--filter", "title=S")
        assert run.json("search", "whale", *options) == ANSWER
    assert server.asked == [("/v1/search", {"query": "whale", "k": 3, "mode": "dense", "filter": {"title": "S"}})]


def test_the_servers_answer_for_a_person(run: CommandLine, server: FakeServer) -> None:
    announce(run, server.url)
    lines = run("search", "whale").stdout.splitlines()
    assert lines == [
        "  1. S > H, page 4  0.5000",
        "     file:///s",
        "     from the server",
        "",
        "1 hit (dense, 6 ms), query q-1",
    ]


def test_the_row_of_a_server_that_died_is_passed_over(run: CommandLine) -> None:
    announce(run, unused_address())
    assert run.json("search", "whale")["hits"][0]["text"] == "blue whale"


def test_of_two_servers_the_one_that_lives_answers(run: CommandLine, server: FakeServer) -> None:
    announce(run, server.url)
    announce(run, unused_address())  # the later one is asked first
    assert run.json("search", "whale")["query_id"] == "q-1"


@pytest.mark.parametrize(
    ("media_type", "body"),
    [("text/html", b"<h1>Hello</h1>"), ("application/json", b"[]"), ("application/json", b'{"hits": []}')],
)
def test_another_program_at_the_address_is_passed_over(
    run: CommandLine, server: FakeServer, media_type: str, body: bytes
) -> None:
    server.media_type, server.body = media_type, body
    announce(run, server.url)
    assert run.json("search", "whale")["hits"][0]["text"] == "blue whale"


@pytest.mark.parametrize(
    ("status", "problem", "kind", "code"),
    [
        (422, {"type": "urn:nvr-rag:invalid-filter", "detail": "no field x"}, "InvalidFilter", 2),
        (422, {"type": "urn:nvr-rag:invalid-input", "detail": "bad k", "field": "k"}, "InvalidInput", 2),
        (404, {"type": "urn:nvr-rag:not-found", "detail": "no collection"}, "NotFound", 1),
        (503, {"type": "urn:nvr-rag:index-busy", "detail": "busy"}, "StoreBusy", 1),
        (500, {"type": "about:blank", "title": "Internal Server Error"}, "StoreUnavailable", 1),
    ],
)
def test_what_the_server_refuses(
    run: CommandLine, server: FakeServer, status: int, problem: dict[str, str], kind: str, code: int
) -> None:
    server.problem(status, **problem)
    announce(run, server.url)
    error = run.json("search", "whale", code=code)["error"]
    assert error["type"] == kind
    assert problem.get("detail", problem.get("title")) in error["message"]
    assert error.get("field") == {"InvalidFilter": "filter", "InvalidInput": "k"}.get(kind)
