"""The loop as a part of a server or a worker: a thread that runs the laps that are asked for. A service of
nvr_rag.running.services.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvr_rag.running.working import JobLoop
from nvr_rag.workspace import Workspace
from training.loop import Request, recipe_of
from training.running import HANDLERS, missing_packages


class TrainerService:
    """Runs laps, one at a time; the heavy steps are child processes."""

    name = "trainer"
    work = "train"

    def __init__(self) -> None:
        self._loop = JobLoop(self.name, {} if missing_packages() else HANDLERS)

    @property
    def job_kinds(self) -> Sequence[str]:
        return self._loop.job_kinds

    def check(self, workspace: Workspace, kind: str, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput: recipe, rule."""
        recipe_of(workspace, Request(**payload))

    def start(self, workspace: Workspace) -> None:
        self._loop.start(workspace)

    def stop(self) -> None:
        self._loop.stop()

    def problem(self) -> str | None:
        return self._loop.problem()
