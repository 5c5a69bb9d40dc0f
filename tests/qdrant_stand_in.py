"""A stand-in for a Qdrant server: real HTTP, points in memory, and faults on demand.

    python -m tests.qdrant_stand_in --port 0        prints its URL and serves until it is stopped

    with StandIn() as server:                       the same in this process
        connect(QdrantSettings(url=server.url))
        server.fail(Fault(kind="answer", status=503, times=2))

Any number of processes may use it at once; requests are answered one after the other. Another process injects faults
through `Control(url)`, which has the same methods over `/_control/...`; those paths need no key and never fail.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic_core import to_json

from tests.qdrant_rest import VERSION, Refused, Rest

_CONTROL = "/_control/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What goes wrong with the requests that it matches; of several faults the first that applies decides."""

    kind: Literal["answer", "delay", "cut", "hang up"] = "answer"
    # answer: an error with `status`; delay: `seconds` later than usual; cut: half of the true answer, then silence;
    # hang up: the connection is closed without an answer
    status: int = 503
    seconds: float = 0.0
    after: bool = False  # "answer" and "hang up" come after the request was carried out; "cut" always does
    only: str = ""  # a regular expression, searched for in "PUT /collections/x/points"; empty: all requests
    times: int | None = None  # how many requests; None: until `heal`
    skip: int = 0  # how many matching requests are let through first
    share: float = 1.0  # of the matching requests, chosen by a fixed seed
    retry_after: int | None = None  # seconds, as the header that a rate limit has


class StandIn:
    """A server on 127.0.0.1. `start` and `stop` may be repeated: it comes back on its port with what it had."""

    def __init__(
        self,
        *,
        port: int = 0,
        api_key: str | None = None,
        certificate: tuple[Path, Path] | None = None,
        strict_mode: Mapping[str, Any] | None = None,
    ) -> None:
        """`certificate` is a certificate and its key in PEM files; with it the server speaks TLS. `strict_mode` is what
        new collections are limited to."""
        self.port = port
        self.api_key = api_key
        self.requests: Counter[str] = Counter()  # "PUT /collections/x/points": how often
        self._certificate = certificate
        self._rest = Rest(strict_mode)
        self._lock = threading.Lock()
        self._faults: list[_Active] = []
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; connections are refused before and after."""
        self._server = _Server(self.port, self)
        self.port = self._server.server_port
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def fail(self, fault: Fault) -> None:
        """Add a fault."""
        with self._lock:
            self._faults.append(_Active(fault))

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()

    def lose(self, collection: str) -> bool:
        """A collection is gone; False when there was none."""
        with self._lock:
            return self._rest.lose(collection)

    def require(self, api_key: str | None) -> None:
        """Refuse requests without this key from now on."""
        self.api_key = api_key

    def collections(self) -> list[str]:
        with self._lock:
            return self._rest.names()

    def count(self, only: str = "") -> int:
        """How many requests matched this regular expression so far."""
        with self._lock:
            return sum(times for request, times in self.requests.items() if re.search(only, request))

    def fault_for(self, request: str) -> Fault | None:
        with self._lock:
            self.requests[request] += 1
            return next((active.fault for active in self._faults if active.applies(request)), None)

    def answer(self, method: str, target: str, body: Any) -> Any:
        """The result of a request, or Refused."""
        parts = urlsplit(target)
        with self._lock:
            return self._rest.answer(method, unquote(parts.path), dict(parse_qsl(parts.query)), body)

    def control(self, name: str, values: Mapping[str, Any]) -> Any:
        """Do what a Control asks for."""
        match name:
            case "fail":
                return self.fail(Fault(**values))
            case "require":
                return self.require(values["api_key"])
            case "heal" | "lose" | "collections" | "count":
                return getattr(self, name)(**values)
        raise ValueError(f"no control {name!r}")


class Control:
    """The faults of a stand-in in another process; the methods are those of StandIn."""

    def __init__(self, url: str) -> None:
        self._url = url

    def fail(self, fault: Fault) -> None:
        self._call("fail", asdict(fault))

    def heal(self) -> None:
        self._call("heal", {})

    def lose(self, collection: str) -> bool:
        return bool(self._call("lose", {"collection": collection}))

    def require(self, api_key: str | None) -> None:
        self._call("require", {"api_key": api_key})

    def collections(self) -> list[str]:
        return list(self._call("collections", {}))

    def count(self, only: str = "") -> int:
        return int(self._call("count", {"only": only}))

    def _call(self, name: str, values: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            self._url + _CONTROL + name, json.dumps(values).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["result"]


class _Active:
    """A fault and how often it has applied."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._seen = 0
        self._done = 0
        self._random = random.Random(0)

    def applies(self, request: str) -> bool:
        fault = self.fault
        if not re.search(fault.only, request):
            return False
        self._seen += 1
        if self._seen <= fault.skip or (fault.times is not None and self._done >= fault.times):
            return False
        if self._random.random() >= fault.share:
            return False
        self._done += 1
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, stand_in: StandIn) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.stand_in = stand_in

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        stand_in = self.server.stand_in
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = urlsplit(self.path).path
        if path.startswith(_CONTROL):
            return self._send(200, {"result": stand_in.control(path.removeprefix(_CONTROL), json.loads(raw))})
        fault = stand_in.fault_for(f"{self.command} {path}")
        if fault is not None and fault.kind == "delay":
            time.sleep(fault.seconds)
        if fault is not None and not fault.after and fault.kind in ("answer", "hang up"):
            return self._fail(fault)
        status, answer = self._answer(raw, path)
        if fault is None or fault.kind == "delay":
            return self._send(status, answer)
        return self._cut(status, answer) if fault.kind == "cut" else self._fail(fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _handle  # noqa: N815

    def _answer(self, raw: bytes, path: str) -> tuple[int, Any]:
        stand_in, started = self.server.stand_in, time.perf_counter()
        if path in ("/healthz", "/livez", "/readyz"):
            return 200, "all shards are ready"
        sent = self.headers.get("api-key") or (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if stand_in.api_key is not None and sent != stand_in.api_key:
            return 401, "Invalid API key or JWT" if sent else "Must provide an API key or an Authorization bearer token"
        if path == "/":
            return 200, {"title": "qdrant - vector search engine", "version": VERSION}
        try:
            result = stand_in.answer(self.command, self.path, json.loads(raw) if raw else None)
        except json.JSONDecodeError as error:
            return 400, _envelope(None, {"error": f"Format error in JSON body: {error}"}, started)
        except Refused as refused:
            error_of = {"error": str(refused)}
            return refused.status, _envelope(None, error_of, started) if str(refused) else ""
        return 200, _envelope(result, "ok", started)

    def _fail(self, fault: Fault) -> None:
        if fault.kind == "hang up":
            self._close()
            return
        self._send(fault.status, _envelope(None, {"error": "Service internal error: injected"}, 0.0), fault.retry_after)

    def _send(self, status: int, answer: Any, retry_after: int | None = None) -> None:
        self.wfile.write(self._bytes(status, answer, retry_after))

    def _cut(self, status: int, answer: Any) -> None:
        whole = self._bytes(status, answer, None)
        self.wfile.write(whole[: -(len(whole) // 4 + 1)] if len(whole) < 400 else whole[: len(whole) // 2])
        self._close()

    def _close(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the client was faster

    def _bytes(self, status: int, answer: Any, retry_after: int | None) -> bytes:
        text = isinstance(answer, str)
        data = answer.encode() if text else to_json(answer)
        lines = [
            f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}",
            f"content-type: {'text/plain; charset=utf-8' if text else 'application/json'}",
            f"content-length: {len(data)}",
        ]
        if retry_after is not None:
            lines.append(f"retry-after: {retry_after}")
        return "\r\n".join((*lines, "", "")).encode() + data

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def _envelope(result: Any, status: Any, started: float) -> dict[str, Any]:
    return {"result": result, "status": status, "time": time.perf_counter() - started if started else 0.0}


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--api-key", help="refuse requests without it")
    arguments = parser.parse_args()
    with StandIn(port=arguments.port, api_key=arguments.api_key) as server:
        print(server.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
