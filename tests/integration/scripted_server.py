"""A server that answers what a test has written down, one step a request, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What is answered to one request."""

    status: int = 200
    body: Any = None  # as JSON; bytes as they are
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    cut: bool = False  # take the request and close the connection
    silent: bool = False  # take the request and say nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in small letters
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedServer(ThreadingHTTPServer):
    """Goes through its steps, and stays at the last one."""

    daemon_threads = True

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.steps, self.asked = list(steps), list[Asked]()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        names = {name.lower(): value for name, value in self.headers.items()}
        server = self.server
        step = server.steps[min(len(server.asked), len(server.steps) - 1)]
        server.asked.append(Asked(method=self.command, path=self.path, headers=names, body=body))
        if step.silent:
            server.over.wait()
        if step.cut or step.silent:
            self.close_connection = True
        else:
            self._answer(step)

    def _answer(self, step: Step) -> None:
        data = step.body if isinstance(step.body, bytes) else json.dumps(step.body).encode()
        self.send_response(step.status)
        for name, value in {"Content-Type": step.kind, "Content-Length": str(len(data)), **step.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def scripted(*steps: Step) -> Iterator[ScriptedServer]:
    """A server with these steps, while the block runs."""
    server = ScriptedServer(steps)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def problem(status: int, kind: str, detail: str = "it is wrong", headers: Any = (), **more: Any) -> Step:
    """A step that answers a problem document of ours."""
    told = {"type": f"urn:nvr-rag:{kind}", "title": "A title", "status": status, "detail": detail, **more}
    return Step(
        status=status, kind="application/problem+json", body={**told, "request_id": "r-1"}, headers=dict(headers)
    )
