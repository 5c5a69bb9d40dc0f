"""What the steps of a lap share: where they work, whom they tell, when they must stop. Nothing is done here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from nvr_rag import deployments
from nvr_rag.deployments import Deployment
from nvr_rag.errors import NotFound, Stopped
from nvr_rag.types import OWNER, Mode, Query, SearchResult
from nvr_rag.workspace import Workspace
from training.gate import Finding, GateDecision, GateSettings, Outcome, Verdict
from training.runs import LapConfig, RunFolder

SEARCH_DEPTH = 192  # hits asked for a judged query: many, and no more than are fused when a user asks for ten


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a lap is."""

    step: str
    number: int  # of the step, from 1
    steps: int
    done: int = 0  # of what the step works on
    total: int | None = None
    words: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Tell = Callable[[Progress], None]
Count = Callable[[int, int | None, str], None]  # done, total, words


@dataclass(kw_only=True, slots=True)
class Lap:
    """One lap at work."""

    workspace: Workspace
    folder: RunFolder
    config: LapConfig
    promote: bool  # a candidate that the gate accepts
    stop: threading.Event
    serves: bool = False  # this process answers searches: its indexes stay open
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # what finished steps came to, by step
    count: Count = lambda _done, _total, _words: None  # of the step that is at work

    @property
    def gate(self) -> GateSettings:
        return GateSettings(min_queries=self.config.min_queries, min_gain=self.config.min_gain)

    def check_stop(self) -> None:
        """Raise Stopped when the lap was told to stop."""
        if self.stop.is_set():
            raise Stopped("stopped; what is finished stays finished")

    def let_go(self) -> None:
        """Close the indexes that the lap has opened, so that others may open them; a server keeps its own."""
        if self.serves:
            return
        ids = [self.config.deployment]
        if "build" in self.results:
            ids.append(int(self.results["build"]["deployment"]))
        if "judge" in self.results:
            ids.append(int(self.results["judge"]["base_deployment"]))
        for deployment_id in ids:
            with suppress(NotFound):
                self.workspace.close_index(self.deployment(deployment_id).index_id)

    def deployment(self, deployment_id: int) -> Deployment:
        with self.workspace.database.read() as connection:
            return deployments.get(connection, deployment_id)

    def candidate(self) -> Deployment:
        """The deployment that the step `build` made."""
        return self.deployment(int(self.results["build"]["deployment"]))

    def search(self, text: str, deployment_id: int, mode: Mode | None = None, k: int = SEARCH_DEPTH) -> SearchResult:
        """Ask a deployment, as the search of a user who reads everything would be answered. Nothing is logged."""
        self.check_stop()
        query = Query(text=text, collection=self.config.collection, k=k, mode=mode, reader=OWNER)
        return self.workspace.retriever.search(query, deployment_id=deployment_id)


def early(rule: str, words: str, outcome: Outcome = Outcome.NOT_ENOUGH_EVIDENCE) -> Mapping[str, Any]:
    """A decision that is clear before anything was measured."""
    finding = Finding(rule=rule, verdict=Verdict.FAIL, text=words)
    return GateDecision(outcome=outcome, findings=(finding,), comparisons={}).as_json()
