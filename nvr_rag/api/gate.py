"""What every request passes through first: an id, limits on how much and how slowly it may be sent and on how many are
answered at a time, a line in the log, a figure for the metrics, and an answer whatever happens inside. Plain ASGI; it
knows no route."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Event

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvr_rag.api.problems import RETRY_AFTER_SECONDS, problem
from nvr_rag.ids import new_id
from nvr_rag.observing import context, meter
from nvr_rag.observing.meter import Meter

REQUEST_ID_HEADER = "X-Request-ID"
BODY_SECONDS = 30.0  # between two pieces of a body, and that all of it may take beyond what its pace allows
BODY_PACE = 10_000  # bytes a second
# Who asks for these wants to know what is wrong, also while everybody else has to wait.
ALWAYS = frozenset({"/livez", "/readyz", "/metrics"})
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_CLOSE = (b"connection", b"close")
_NO_STORE = (b"cache-control", b"no-store")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")

log = logging.getLogger("nvr_rag.api")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """How large a request's body may be."""

    bytes: int
    setting: str  # the variable that raises it


class Gate:
    """Wraps an app. Outside of it nothing but the server may fail."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit_of: Callable[[Scope], Limit],
        max_in_flight: int,
        stopping: Event,
        counts: Meter,
    ) -> None:
        """`stopping`: from then on no connection is kept for another request."""
        self._app, self._limit_of = app, limit_of
        self._max_in_flight, self._stopping, self._meter = max_in_flight, stopping, counts
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send, self._limit_of(scope), self._stopping)
        with context.begun(request_id=request.id):
            started = time.perf_counter()
            try:
                await self._let_through(scope, request)
            finally:
                self._tell(scope, request, time.perf_counter() - started)

    async def _let_through(self, scope: Scope, request: _Request) -> None:
        if scope["path"] in ALWAYS:
            await self._answer(scope, request)
        elif self._in_flight >= self._max_in_flight:
            await request.turn_away(self._max_in_flight)
        else:
            self._in_flight += 1
            self._meter.occupied(self._in_flight)
            try:
                await self._answer(scope, request)
            finally:
                self._in_flight -= 1
                self._meter.occupied(self._in_flight)

    async def _answer(self, scope: Scope, request: _Request) -> None:
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

    def _tell(self, scope: Scope, request: _Request, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        kind = scope["state"].get("problem")
        method, status = scope["method"], request.status
        self._meter.answered(meter.Request(route=route, method=method, status=status, seconds=seconds, problem=kind))
        if log.isEnabledFor(logging.INFO):
            fields = {"method": method, "path": _path(scope), "status": status, "took_ms": round(1000 * seconds, 3)}
            words = (*fields.values(), request.id)
            log.info("%s %s %s %.1f ms %s", *words, extra={"fields": fields})


class _Request:
    """One request on its way through the gate."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: Limit, stopping: Event) -> None:
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
        self._scope, self._receive, self._send, self._stopping = scope, receive, send, stopping
        self._limit, self._left = limit, limit.bytes
        self._came, self._waited = 0, 0.0  # bytes of the body, and the seconds that they were waited for
        self._whole = False  # the body has been read to its end

    async def receive(self) -> Message:
        message = await self._piece()
        if message["type"] == "http.request":
            self._more = message.get("more_body", False)
            self._whole = not self._more
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
        return message

    async def _piece(self) -> Message:
        """What comes next: of the body within some time, after it whenever the client leaves. Only the time in which
        we do nothing but wait is held against the client."""
        if self._whole:
            return await self._receive()
        begun, in_all = time.monotonic(), BODY_SECONDS + self._came / BODY_PACE
        try:
            async with asyncio.timeout(min(BODY_SECONDS, in_all - self._waited)):
                message = await self._receive()
        except TimeoutError:
            self._more = False  # nobody waits for the rest
            detail = (
                f"nothing more of the body came for {BODY_SECONDS:.0f} seconds, or less than {BODY_PACE} bytes a "
                "second in all; send it faster, or less at once"
            )
            raise HTTPException(408, detail, {"Connection": "close"}) from None
        self._waited += time.monotonic() - begun
        self._came += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == 413:
                await self._discard()
            headers = [*message.get("headers", ()), (REQUEST_ID_HEADER.encode(), self.id.encode()), _NO_SNIFFING]
            if all(name.lower() != _NO_STORE[0] for name, _ in headers):
                headers.append(_NO_STORE)  # caches know that an answer depends on Authorization, and of no other key
            if self._stopping.is_set() and _CLOSE not in headers:
                headers.append(_CLOSE)  # the next request goes to another process, or waits for the next one
            message["headers"] = headers
        await self._send(message)

    async def _discard(self) -> None:
        """Read what the client is still sending, within reason: closing on it would also lose the answer."""
        left = self._limit.bytes
        while self._more and left > 0:
            try:
                message = await self._piece()
            except HTTPException:
                return
            self._more = message.get("more_body", False)
            left -= len(message.get("body", b""))

    async def refuse(self) -> None:
        answer = problem(413, self._too_large(), request_id=self.id, headers={"Connection": "close"})
        await answer(self._scope, self._receive, self.send)

    async def turn_away(self, most: int) -> None:
        detail = (
            f"{most} requests are being answered already; come again a little later, or raise NVR_API__MAX_IN_FLIGHT "
            "on the server, or add a process"
        )
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        kind = ("overloaded", "The server has too much to do")
        answer = problem(503, detail, request_id=self.id, kind=kind, headers=headers)
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
