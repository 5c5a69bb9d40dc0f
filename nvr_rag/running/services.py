"""What runs beside the API in a server, or by itself in a worker: parts of other packages, found by entry point.

This is how the indexer, which lives in `ingest`, comes to run inside `nvr-rag serve` without being imported by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from nvr_rag.workspace import Workspace

GROUP = "nvr_rag.services"


class Service(Protocol):
    """Something that works in threads of its own from `start` to `stop`."""

    @property
    def name(self) -> str: ...

    @property
    def work(self) -> str:
        """What `nvr-rag worker --kinds` calls everything that it does."""

    @property
    def job_kinds(self) -> Sequence[str]:
        """The jobs that it takes from the database."""

    def check(self, workspace: Workspace, kind: str, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a job of one of its kinds that nobody could do."""

    def start(self, workspace: Workspace) -> None: ...

    def stop(self) -> None:
        """Finish what must be finished and return; called once."""

    def problem(self) -> str | None:
        """None while it is well; otherwise what is wrong, in words: a server with a problem is not ready."""


def installed() -> list[Service]:
    """New instances of all services that installed packages offer, by name."""
    return [entry.load()() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
