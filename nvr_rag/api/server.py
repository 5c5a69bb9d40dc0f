"""Running the API: settings in, a listening server until it is told to stop.

Where other machines can reach it, somebody must have made a key. On an address of this machine alone it needs none, but
then it answers only requests that name this machine: a web page whose name was pointed at 127.0.0.1 is refused.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nvr_rag.access import keys
from nvr_rag.api.app import create_app
from nvr_rag.api.doorman import has_key
from nvr_rag.api.listening import is_local_name, is_loopback, listen, url_of
from nvr_rag.api.problems import problem
from nvr_rag.api.protocol import Protocol
from nvr_rag.errors import ConfigurationError
from nvr_rag.ids import new_id
from nvr_rag.observing.metrics import Metrics
from nvr_rag.running import processes
from nvr_rag.running.presence import Presence
from nvr_rag.running.services import Service, installed
from nvr_rag.settings import Settings
from nvr_rag.workspace import Workspace

MAX_HEAD_BYTES = 65_536  # of request line and headers: a long URI as a parameter takes 9 bytes a character
KEEP_ALIVE_SECONDS = 60  # between two requests of a bot that keeps its connection
GRACE_SECONDS = 10  # for requests in flight when the server is told to stop
LINGER_SECONDS = 1.0  # for which it still answers on connections that it has, and tells those clients to leave
_LOOK_SECONDS = 0.05

OnReady = Callable[[str], None]


def run_server(settings: Settings, on_ready: OnReady | None = None, *, api_only: bool = False) -> None:
    """Open the workspace and serve it, with every installed service, until SIGINT or SIGTERM.

    With `api_only` no service runs beside the API: workers do their work. `on_ready` is told the URL once requests are
    answered. Raises ConfigurationError for an address that cannot be listened on, and what opening a workspace raises.
    """
    with listen(settings.api) as listener, Workspace(settings) as workspace:
        serve(workspace, [] if api_only else installed(), listener, on_ready)


def check_keys(workspace: Workspace, listener: socket.socket) -> None:
    """Raise ConfigurationError where strangers could ask and nobody has a key."""
    if is_loopback(listener):
        return
    with workspace.database.read() as connection:
        usable = any(key.usable for key in keys.all_keys(connection))
    if not usable:
        raise ConfigurationError(
            f"{url_of(listener)} can be reached from other machines, and there is no API key: make one first "
            "(nvr-rag keys create NAME --scope search), or set NVR_API__HOST to 127.0.0.1"
        )


def serve(
    workspace: Workspace,
    services: Sequence[Service],
    listener: socket.socket,
    on_ready: OnReady | None = None,
    *,
    figures: Metrics | None = None,
) -> None:
    """Serve an open workspace on a listening socket until SIGINT or SIGTERM; see run_server.

    `figures` are those that it shares with other processes. Raises ConfigurationError where strangers could ask and
    nobody has a key.
    """
    check_keys(workspace, listener)
    url = url_of(listener)
    local = is_loopback(listener)
    app = create_app(workspace, services, local=local, figures=figures)
    kinds = [kind for service in services for kind in service.job_kinds]
    presence = Presence(
        workspace.database, processes.SERVER, job_kinds=kinds, prepared=lambda: app.state.parts.preparer.prepared
    )

    def started() -> None:
        presence.start(url)
        app.state.parts.readiness.watch(presence.problem)
        if on_ready:
            on_ready(url)

    server = _Server(server_config(_LocalOnly(app) if local else app), started, app.state.stopping)
    try:
        with _stopped_by_signals(server):
            server.run(sockets=[listener])
    finally:
        presence.stop()


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn runs an app."""
    return uvicorn.Config(
        app,
        http=Protocol,  # by name, and not what happens to be installed
        lifespan="on",
        ws="none",
        log_config=None,  # logging is set up by whoever runs the process
        access_log=False,  # the gate writes it, without queries
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class _Server(uvicorn.Server):
    """Tells when requests are answered, and when it is about to stop: answers that never end are to end then."""

    def __init__(self, config: uvicorn.Config, started_callback: Callable[[], None], stopping: threading.Event) -> None:
        super().__init__(config)
        self._started_callback, self._stopping = started_callback, stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._started_callback()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop so that no request is lost that somebody has sent: those who wait in the listening socket are let in
        before it closes, and connections that are open are answered on for a moment, and told not to come again."""
        self._stopping.set()
        await self._let_in_the_last(sockets or [])
        until = time.monotonic() + LINGER_SECONDS
        while self.server_state.connections and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(_LOOK_SECONDS)
        await super().shutdown(sockets)

    async def _let_in_the_last(self, sockets: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for listener, server in zip(sockets, self.servers, strict=True):
            waiting = []
            with suppress(OSError):  # nobody waits any more
                while True:
                    waiting.append(listener.accept()[0])
            server.close()
            for connection in waiting:
                connection.setblocking(False)
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them for its connections."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the server in order.

    uvicorn catches them itself, but raises them again at its end, and then they would kill the process. Threads other
    than the main one cannot catch signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, server.handle_exit) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _LocalOnly:
    """Refuses requests that were sent to another name than this machine's own (DNS rebinding), unless they have a key,
    which no web page knows: a reverse proxy may pass on the name that it was called by."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not has_key(headers) and not is_local_name(headers.get("host", "localhost")):
                detail = "this server answers only to localhost, 127.0.0.1 and [::1]; send one of them as Host"
                await problem(421, detail, request_id=new_id())(scope, receive, send)
                return
        await self._app(scope, receive, send)
