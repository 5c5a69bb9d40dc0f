"""The lap: from judgments to a decision, step after step, each done once however often the process dies.

A workspace and a request enter; a report leaves, and perhaps another deployment serves. What a finished step came to is
in the lap's folder, so that a lap that is run again goes on behind its last finished step and ends the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from nvr_rag import deployments, indexes, registry
from nvr_rag.errors import InvalidInput, Stopped
from nvr_rag.running import processes
from nvr_rag.settings import TrainingSettings
from nvr_rag.workspace import Workspace
from training import judging, preparation
from training.erasing import BeginAnew, obey
from training.lap import Lap, Progress, Tell
from training.recipe import RULES, Recipe, load_recipe
from training.report import write_report
from training.reporting import lap_report
from training.runs import LapConfig, RunFolder, run_folder

Step = Callable[[Lap], dict[str, Any]]

STEPS: tuple[tuple[str, Step], ...] = (
    ("collect", preparation.collect),
    ("mine", preparation.mine),
    ("train", preparation.train),
    ("register", preparation.register),
    ("build", judging.build),
    ("choose", judging.choose),
    ("judge", judging.judge),
    ("conclude", judging.conclude),
)
TRIAL = ("collect", "mine")  # what a dry run does
GOES_ON = ("judge",)  # its decision is followed by another step; any other's ends the lap


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked of a lap."""

    collection: str
    run: str  # id of the lap
    recipe: str | None = None  # name or path; None = what the settings say
    rule: str | None = None  # in the recipe's place
    dry_run: bool = False  # collect and mine, train nothing
    promote: bool = False  # when the gate accepts

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_lap(
    workspace: Workspace,
    request: Request,
    *,
    tell: Tell,
    stop: threading.Event,
    advanced: Callable[[], None],
    serves: bool = False,
) -> dict[str, Any]:
    """Run a lap, or what is left of it, and return its report (see training.report.LapReport).

    `advanced` is called after each finished step. In a process that `serves` searches no index is closed. Raises
    LapBusy while another process works on it, Stopped, and what a step raises; a report of that is left as well.
    """
    folder = run_folder(workspace.home, request.run)
    with folder.owned():
        config = folder.config() or _begin(workspace, request, folder)
        lap = Lap(workspace=workspace, folder=folder, config=config, promote=request.promote, stop=stop, serves=serves)
        try:
            while not _taken(lap, request, tell, advanced):
                lap.results.clear()
        except Stopped:  # it will go on
            raise
        except Exception as error:
            with suppress(OSError):  # on a full disk the cause is what people need to read
                write_report(folder.path, lap_report(lap, error=str(error) or type(error).__name__))
            raise
        finally:
            lap.let_go()
        report = lap_report(lap, dry_run=request.dry_run)
        write_report(folder.path, report)
        folder.forget_files()
        if not request.dry_run:  # what was mined for its own sake is still to be read
            folder.forget_texts()
        return report


def _taken(lap: Lap, request: Request, tell: Tell, advanced: Callable[[], None]) -> bool:
    """Take the steps that are left; False when something they work on was erased and all are to be taken again."""
    try:
        _take_steps(lap, request, tell, advanced)
        obey(lap.folder)
    except BeginAnew:
        return False
    return True


def _take_steps(lap: Lap, request: Request, tell: Tell, advanced: Callable[[], None]) -> None:
    for number, (name, step) in enumerate(STEPS, start=1):
        if request.dry_run and name not in TRIAL:
            return
        obey(lap.folder)
        result = lap.folder.finished(name)
        if result is None:
            lap.check_stop()
            result = _take(lap, name, step, _teller(tell, name, number))
            advanced()
        lap.results[name] = result
        if "decision" in result and name not in GOES_ON and not _tries(lap, request, name):
            return


def _tries(lap: Lap, request: Request, name: str) -> bool:
    """A dry run mines also where a lap would end for want of judgments, as long as there are any."""
    return request.dry_run and name == "collect" and lap.results["collect"]["splits"]["train"] > 0


def _take(lap: Lap, name: str, step: Step, count: Callable[[int, int | None, str], None]) -> dict[str, Any]:
    started = time.monotonic()

    def counted(done: int, total: int | None, words: str) -> None:
        obey(lap.folder, at_work=True)
        count(done, total, words)

    lap.count = counted
    counted(0, None, "")
    result = {**step(lap), "seconds": time.monotonic() - started}
    lap.folder.finish(name, result)
    return result


def _teller(tell: Tell, name: str, number: int) -> Callable[[int, int | None, str], None]:
    at = Progress(step=name, number=number, steps=len(STEPS))
    return lambda done, total, words: tell(replace(at, done=done, total=total, words=words))


def _begin(workspace: Workspace, request: Request, folder: RunFolder) -> LapConfig:
    """Freeze what decides how the lap ends."""
    settings, recipe = workspace.settings.training, recipe_of(workspace, request)
    with workspace.database.read() as connection:
        deployment = deployments.serving(connection, request.collection)
        teacher = registry.get(connection, indexes.get(connection, deployment.index_id).encoder)
        base = registry.root(connection, teacher.fingerprint)
    config = LapConfig(
        run=request.run,
        collection=request.collection,
        recipe=recipe,
        deployment=deployment.id,
        teacher=teacher.fingerprint,
        teacher_source=workspace.location(teacher.source),
        base=base.fingerprint,
        base_source=workspace.location(base.source),
        threads=_threads(workspace, settings),
        min_queries=settings.min_queries,
        min_gain=settings.min_gain,
        started_at=datetime.now(UTC).isoformat(),
    )
    folder.begin(config)
    return config


def recipe_of(workspace: Workspace, request: Request) -> Recipe:
    """The recipe that a lap would begin with. Raises InvalidInput: recipe, rule."""
    recipe = load_recipe(request.recipe or workspace.settings.training.recipe)
    if request.rule is None:
        return recipe
    if request.rule not in RULES:
        raise InvalidInput(f"the rule is one of {', '.join(RULES)}, not {request.rule[:80]!r}", field="rule")
    return replace(recipe, rule=request.rule)


def _threads(workspace: Workspace, settings: TrainingSettings) -> int:
    """As many as there are cores; beside a server one is left to it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = bool(processes.alive(workspace.database, "serve"))
    return settings.threads or max(1, cores - beside)


def report_of(workspace: Workspace, run: str) -> Mapping[str, Any]:
    """Where the report of a lap lies."""
    folder = run_folder(workspace.home, run)
    return {"json": str(folder.path / "report.json"), "page": str(folder.report)}
