"""A worker: services at work without the HTTP API, as many workers on as many machines as are wanted.

Settings and the kinds of work enter; it works until it is told to stop by SIGINT or SIGTERM. What it cannot finish then
goes back for others. It knows no kind of work: those are the services that installed packages offer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from nvr_rag.errors import ConfigurationError, InvalidInput
from nvr_rag.running import processes
from nvr_rag.running.presence import Presence
from nvr_rag.running.services import Service, installed
from nvr_rag.running.signals import stopped_by_signals
from nvr_rag.settings import Settings
from nvr_rag.workspace import Workspace

LOOK_SECONDS = 1.0  # between two looks at how the services are

log = logging.getLogger(__name__)


def run_worker(
    settings: Settings,
    kinds: Sequence[str] = (),
    *,
    on_ready: Callable[[Sequence[Service]], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Work until SIGINT or SIGTERM; a second one ends the process at once.

    `on_ready` is told which services work, `on_stop` that the worker begins to stop. Raises InvalidInput for a kind
    that nobody offers, ConfigurationError where a package is missing, and what opening a workspace raises.
    """
    services = chosen(installed(), kinds)
    with Workspace(settings) as workspace, stopped_by_signals() as stop:
        work(workspace, services, stop, on_ready=on_ready, on_stop=on_stop)


def chosen(services: Sequence[Service], kinds: Sequence[str]) -> list[Service]:
    """The services that do these kinds of work: each by its own name for all that it does, or by a kind of its jobs.
    All that can work here, when no kind is named. Raises InvalidInput, ConfigurationError."""
    if not kinds:
        return [service for service in services if service.job_kinds]
    for kind in kinds:
        if not any(_does(service, kind) for service in services):
            known = sorted({name for service in services for name in (service.work, *service.job_kinds)})
            raise InvalidInput(f"the kinds of work are {', '.join(known)}, not {kind[:80]!r}", field="kinds")
    found = [service for service in services if any(_does(service, kind) for kind in kinds)]
    for service in found:
        if not service.job_kinds:
            raise ConfigurationError(
                f"{service.work} cannot be done here: packages are missing. Install 'nvr-rag[training]', or leave "
                f"{service.work} out of --kinds"
            )
    return found


def work(
    workspace: Workspace,
    services: Sequence[Service],
    stop: threading.Event,
    *,
    on_ready: Callable[[Sequence[Service]], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Have services work on an open workspace until `stop` is set, and other processes know of it."""
    kinds = [kind for service in services for kind in service.job_kinds]
    presence = Presence(workspace.database, processes.WORKER, job_kinds=kinds)
    with ExitStack() as running:
        presence.start()
        running.callback(presence.stop)
        for service in services:
            service.start(workspace)
            running.callback(service.stop)
        if on_ready is not None:
            on_ready(services)
        _watch(services, presence, stop)
        if on_stop is not None:
            on_stop()


def _does(service: Service, kind: str) -> bool:
    return kind in (service.work, *service.job_kinds)


def _watch(services: Sequence[Service], presence: Presence, stop: threading.Event) -> None:
    """Wait, and say it once when something is wrong with a service: there is nobody who could ask /readyz."""
    said: dict[str, str | None] = {}
    while not stop.wait(LOOK_SECONDS):
        problems = {"the worker": presence.problem(), **{service.name: service.problem() for service in services}}
        for name, problem in problems.items():
            if problem != said.get(name):
                log.warning("%s: %s", name, problem or "is well again")
        said = problems
