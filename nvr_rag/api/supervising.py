"""Several server processes behind one address: settings and a number in, and they answer until told to stop.

All of them accept on one listening socket, which they inherit. One that dies is replaced; nobody notices, since
connections wait in the socket for whoever takes them. They are told to stop together, and end when what they have begun
is answered. Only for indexes on a Qdrant server: an Edge shard has one owner.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nvr_rag import retries
from nvr_rag.api.listening import listen, url_of
from nvr_rag.api.server import GRACE_SECONDS, LINGER_SECONDS, check_keys
from nvr_rag.errors import ConfigurationError
from nvr_rag.observing import metrics
from nvr_rag.running.signals import stopped_by_signals
from nvr_rag.settings import Settings
from nvr_rag.workspace import Workspace

LOOK_SECONDS = 0.1
STOP_SECONDS = GRACE_SECONDS + LINGER_SECONDS + 30.0  # after which one that does not end is killed
WELL_SECONDS = 60.0  # one that has lived so long is replaced at once

log = logging.getLogger(__name__)


def run_processes(settings: Settings, count: int, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve the API with so many processes until SIGINT or SIGTERM; a second signal ends it at once.

    `on_ready` is told the URL once all of them answer. Raises ConfigurationError where there can be only one process,
    and for what is wrong with settings, address or data folder.
    """
    if settings.qdrant.url is None:
        raise ConfigurationError(
            "several server processes need a Qdrant server (NVR_QDRANT__URL): the indexes are Edge shards in the data "
            "folder, and each has one owner; leave --processes out"
        )
    with listen(settings.api) as listener, TemporaryDirectory(prefix="nvr-rag-metrics-") as folder:
        with Workspace(settings) as workspace:  # what is wrong is said once, and the tables are made once
            check_keys(workspace, listener)
        _Supervisor(settings, count, listener, Path(folder)).run(on_ready)


@dataclass(kw_only=True, slots=True)
class _Child:
    """A place among the processes, and who has it."""

    name: str
    process: subprocess.Popen[bytes] | None = None  # None = nobody at the moment
    began: float = 0.0
    ready: bool = False
    failures: int = 0  # in a row
    due: float = 0.0  # not to be begun before; by the monotonic clock


class _Supervisor:
    """Starts, replaces and stops the processes."""

    def __init__(self, settings: Settings, count: int, listener: socket.socket, folder: Path) -> None:
        self._listener, self._folder = listener, folder
        self._url = url_of(listener)
        self._children = [_Child(name=str(number)) for number in range(count)]
        self._environment = {**os.environ, **_given(settings, count)}
        self._chance = random.Random()  # noqa: S311
        self._serves = False  # all were ready once

    def run(self, on_ready: Callable[[str], None] | None) -> None:
        with stopped_by_signals() as stop:
            try:
                while not stop.is_set():
                    for child in self._children:
                        self._look(child)
                    if not self._serves and all(child.ready for child in self._children):
                        self._serves = True
                        if on_ready is not None:
                            on_ready(self._url)
                    stop.wait(LOOK_SECONDS)
            finally:
                self._end()

    def _look(self, child: _Child) -> None:
        """See to it that somebody has this place. Raises ConfigurationError when the first one could not start."""
        process = child.process
        if process is None:
            if time.monotonic() >= child.due:
                self._begin(child)
        elif process.poll() is not None:
            self._bury(child, process)
        elif not child.ready:
            assert process.stdout is not None
            child.ready = bool(process.stdout.read(1))  # it does not block

    def _begin(self, child: _Child) -> None:
        descriptor = self._listener.fileno()
        child.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "nvr_rag.api.child", str(descriptor), child.name, str(self._folder)],
            stdin=subprocess.PIPE,  # ends when we do, and then the child does as well
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
            env=self._environment,
        )
        assert child.process.stdout is not None
        os.set_blocking(child.process.stdout.fileno(), False)
        child.began, child.ready = time.monotonic(), False

    def _bury(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        if not self._serves:
            raise ConfigurationError("a server process could not start; it has said why")
        now = time.monotonic()
        child.failures = 1 if now - child.began > WELL_SECONDS else child.failures + 1
        wait = 0.0 if child.failures == 1 else retries.OUTAGE.seconds(child.failures - 1, self._chance)
        log.warning(
            "the server process %s has ended with %s; another one begins in %.1f s",
            process.pid,
            process.returncode,
            wait,
        )
        self._let_go(process)
        metrics.died(self._folder, child.name)
        child.process, child.due = None, now + wait

    def _end(self) -> None:
        """Have all of them answer what they have begun, and end."""
        self._listener.close()  # or new connections would wait in it for nobody
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        late = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, late - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("the server process %s does not end and is killed", process.pid)
                process.kill()
                process.wait()
            self._let_go(process)

    def _let_go(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _given(settings: Settings, count: int) -> dict[str, str]:
    """What the children are told beside the environment: they share the processors."""
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // count)
    return {"NVR_API__HOST": settings.api.host, "NVR_API__PORT": str(settings.api.port), "NVR_THREADS": str(threads)}
