"""What is under way when the kill comes: a command, or a client that sends one request after the other.

Both tell the life what was sent before it is sent, and what was acknowledged as soon as the answer is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import httpx

from tests.killing.life import Refused, Server
from tests.killing.oracle import Fault
from tests.killing.processes import Child

_POLL_SECONDS = 0.003

Acknowledge = Callable[[dict[str, Any]], None]
Request = Callable[[Server], None]  # sends one request and tells the life; raises what Server.call raises


class Attempt(Protocol):
    """An operation under way."""

    @property
    def acknowledged(self) -> bool:
        """All of it was."""

    @property
    def seconds(self) -> float | None:
        """What it took, where it was not disturbed."""

    def wait(self, seconds: float) -> None:
        """Return after so long, or when it has ended by itself."""

    def kill(self) -> None:
        """Kill the process that the attempt itself is."""

    def settle(self) -> list[Fault]:
        """Wait for its end, where the kill has left something of it; what was wrong with it."""


class CommandAttempt:
    """A command, acknowledged when it ends with 0 or has written its document."""

    def __init__(self, child: Child, acknowledge: Acknowledge, *, may_fail: bool = False) -> None:
        """`may_fail`: a server that dies beside it is a reason to give up, as long as it says so."""
        self.child, self._may_fail = child, may_fail
        self.acknowledged = False
        self.seconds: float | None = None
        self._acknowledge = acknowledge
        self._killed = False

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.child.said is None and self.child.wait(_POLL_SECONDS) is None:
            if time.monotonic() > until:
                return
        self.seconds = time.monotonic() - self.child.started

    def kill(self) -> None:
        self._killed = self.child.wait(0) is None
        self.child.kill()

    def settle(self) -> list[Fault]:
        code, said = self.child.finish(), self.child.said
        if said is not None and "error" not in said and (code == 0 or self._killed):
            self.acknowledged = True
            self._acknowledge(said)
        if "unexpected " in self.child.errors or not (code == 0 or self._killed or self._may_fail):
            return [Fault(kind="other", about=self.child.name, words=f"ended with {code}: {self.child.errors[-400:]}")]
        return []


class RequestsAttempt:
    """Requests to a server in a thread of their own, until the last was answered or the server is gone."""

    def __init__(self, server: Server, requests: Sequence[Request]) -> None:
        self._server, self._requests = server, requests
        self.acknowledged = False
        self.answered = 0
        self.seconds: float | None = None
        self._faults: list[Fault] = []
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            for request in self._requests:
                request(self._server)
                self.answered += 1
        except httpx.TransportError:
            return  # killed; what was in flight is told already
        except Refused as refused:
            self._faults.append(Fault(kind="other", about="a request", words=str(refused)))
            return
        self.acknowledged, self.seconds = True, time.monotonic() - started

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def kill(self) -> None:
        """It is the server that is killed."""

    def settle(self) -> list[Fault]:
        self._thread.join()
        return self._faults


class BothAttempts:
    """A command, with requests to the server meanwhile."""

    def __init__(self, command: CommandAttempt, requests: RequestsAttempt) -> None:
        self._command, self._requests = command, requests

    @property
    def acknowledged(self) -> bool:
        return self._command.acknowledged

    @property
    def seconds(self) -> float | None:
        return self._command.seconds

    def wait(self, seconds: float) -> None:
        self._command.wait(seconds)

    def kill(self) -> None:
        self._command.kill()

    def settle(self) -> list[Fault]:
        return [*self._command.settle(), *self._requests.settle()]
