"""What every request passes through first: an id, a limit on its body, a line in the log, and an answer whatever
happens inside. Plain ASGI; it knows no route."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvr_rag.api.problems import problem
from nvr_rag.ids import new_id

REQUEST_ID_HEADER = "X-Request-ID"
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

log = logging.getLogger("nvr_rag.api")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """How large a request's body may be."""

    bytes: int
    setting: str  # the variable that raises it


class Gate:
    """Wraps an app. Outside of it nothing but the server may fail."""

    def __init__(self, app: ASGIApp, *, limit_of: Callable[[Scope], Limit]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send, self._limit_of(scope))
        started = time.perf_counter()
        try:
            if request.too_large:
                await request.refuse()
            else:
                await self._app(scope, request.receive, request.send)
        except Exception:
            log.exception("%s %s failed (request %s)", scope["method"], _path(scope), request.id)
            if request.status:
                raise
            await request.fail()
        if log.isEnabledFor(logging.INFO):
            took = 1000 * (time.perf_counter() - started)
            log.info("%s %s %s %.1f ms %s", scope["method"], _path(scope), request.status, took, request.id)


class _Request:
    """One request on its way through the gate."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: Limit) -> None:
        headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        given, length, self._more = b"", b"", True
        for name, value in headers:
            if name == b"x-request-id":
                given = value
            elif name == b"content-length":
                length = value
            elif name == b"expect":
                self._more = False  # the client waits for leave to send its body
        self.id = given.decode() if _SANE.fullmatch(given) else new_id()
        self.too_large = length.isdigit() and int(length) > limit.bytes  # by what its header says
        self.status = 0  # 0 = not answered yet
        scope.setdefault("state", {})["request_id"] = self.id
        self._scope, self._receive, self._send = scope, receive, send
        self._limit, self._left = limit, limit.bytes

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._more = message.get("more_body", False)
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == 413:
                await self._discard()
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID_HEADER.encode(), self.id.encode())]
        await self._send(message)

    async def _discard(self) -> None:
        """Read what the client is still sending, within reason: closing on it would also lose the answer."""
        left = self._limit.bytes
        while self._more and left > 0:
            message = await self._receive()
            self._more = message.get("more_body", False)
            left -= len(message.get("body", b""))

    async def refuse(self) -> None:
        answer = problem(413, self._too_large(), request_id=self.id, headers={"Connection": "close"})
        await answer(self._scope, self._receive, self.send)

    async def fail(self) -> None:
        detail = f"something failed that should not; the server's log has more under the request {self.id}"
        await problem(500, detail, request_id=self.id)(self._scope, self._receive, self.send)

    def _too_large(self) -> str:
        return (
            f"the body is larger than {self._limit.bytes} bytes; send less at once, "
            f"or raise {self._limit.setting} on the server"
        )


def _path(scope: Scope) -> str:
    """As it was sent: percent-encoded, so that it cannot forge a line of the log; queries may tell too much."""
    return str(scope.get("raw_path", b"").decode("ascii", "replace")) or "/"
