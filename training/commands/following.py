"""What `retrain` and `mine` share: getting a lap run, here or by a server or worker, and showing how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvr_rag import output
from nvr_rag.errors import ConfigurationError, Conflict, NvrError

if TYPE_CHECKING:
    from nvr_rag.jobs import Job
    from nvr_rag.workspace import Workspace
    from training.loop import Request

POLL_SECONDS = 0.3
UNHEARD_SECONDS = 20.0  # after which it is asked about that nobody takes the job
_UNTRAINED = (
    "the server does not take the job: install 'nvr-rag[training]' where it runs and restart it, or stop it and run "
    "the same command again"
)


def check_installed() -> None:
    """Raise ConfigurationError unless everything that a lap imports is there."""
    from training.running import missing_packages

    missing = missing_packages()
    if missing:
        raise ConfigurationError(f"training needs {', '.join(missing)}; run: pip install 'nvr-rag[training]'")


def new_request(collection: str, *, recipe: str | None, **options: Any) -> Request:
    """A request for a lap of its own. The file of a recipe is named in full: a server has another working folder."""
    from training import running

    path = Path(recipe) if recipe else None
    if path is not None and (path.name != recipe or path.suffix):
        recipe = str(path.absolute())
    return running.new_request(collection, recipe=recipe, **options)


def take(workspace: Workspace, request: Request, *, resume: bool) -> int:
    """The job to run: one that was left behind, with `resume` also the newest one when it has failed, or a new one.

    Raises Conflict when there is nothing to resume, and rather than going on with a lap when a dry run was asked for,
    or the other way round; ConfigurationError where a server owns the indexes and does not train.
    """
    from nvr_rag import jobs
    from training import running

    _check_reachable(workspace)
    left = running.left_behind(workspace, request.collection, failed=resume)
    if left is None and resume:
        raise Conflict("the last lap of this collection has not failed; leave --resume out to begin a new one")
    if left is None:
        return running.ask(workspace, request)
    dry_run = bool(left.payload.get("dry_run"))
    if not resume and dry_run != request.dry_run:
        raise Conflict(
            f"a {'dry run' if dry_run else 'lap'} of this collection was not finished; nvr-rag retrain "
            f"{'--dry-run ' if dry_run else ''}--collection {request.collection} goes on with it"
        )
    if left.state != "queued":
        jobs.requeue(workspace.database, left.id)
    output.note(f"Going on with lap {left.payload.get('run')}, which was not finished, as it was begun.")
    return left.id


def follow(workspace: Workspace, job_id: int) -> dict[str, Any]:
    """Run the job, or watch a server or worker run it; what it came to, and where its report is. Raises NvrError with
    its error."""
    from nvr_rag.running import processes
    from training.loop import report_of
    from training.running import KIND

    with output.progress() as bars:
        task = bars.add_task("Beginning", total=None)

        def show(progress: Mapping[str, Any]) -> None:
            if progress:
                words = f"{progress['number']}/{progress['steps']} {progress['step']}: {progress['words']}".rstrip(": ")
                bars.update(task, description=words, completed=progress["done"], total=progress["total"])

        others = bool(processes.taking(workspace.database, KIND))
        result = (_watch if others else _run)(workspace, job_id, show)
    return {**result, "report": report_of(workspace, str(result["run"]))}


def _check_reachable(workspace: Workspace) -> None:
    """Raise ConfigurationError where the indexes are a server's that does not train: a lap could not open them here."""
    from nvr_rag.running import processes
    from training.running import KIND

    servers = processes.alive(workspace.database, processes.SERVER)
    if servers and workspace.settings.qdrant.url is None and not processes.taking(workspace.database, KIND):
        raise ConfigurationError(_UNTRAINED)


def _run(workspace: Workspace, job_id: int, show: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    from nvr_rag import jobs
    from nvr_rag.ids import new_id
    from training.running import KIND, run_job

    worker = new_id()
    job = jobs.claim(workspace.database, worker, (KIND,), job_id=job_id)
    if job is None:
        raise Conflict(f"another process has begun with job {job_id}; nvr-rag status shows how far it is")
    run_job(workspace, job, worker, stop=threading.Event(), tell=lambda progress: show(progress.as_json()))
    return _outcome(jobs.get(workspace.database, job_id))


def _watch(workspace: Workspace, job_id: int, show: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    from nvr_rag import jobs
    from nvr_rag.running import processes
    from training.running import KIND

    asked = time.monotonic()
    while not (job := jobs.get(workspace.database, job_id)).finished:
        show(job.progress)
        if not processes.taking(workspace.database, KIND):
            raise Conflict("the server has stopped; run nvr-rag retrain again to go on with the lap")
        if job.state != "queued" or job.due_at is not None or _others_run(workspace, job_id):
            asked = time.monotonic()
        elif time.monotonic() - asked > UNHEARD_SECONDS:
            raise ConfigurationError(_UNTRAINED)
        time.sleep(POLL_SECONDS)
    return _outcome(job)


def _others_run(workspace: Workspace, job_id: int) -> bool:
    """Whether they are busy with another lap: each runs one at a time."""
    from nvr_rag import jobs
    from training.running import KIND

    return any(
        job.kind == KIND and job.state == "running" and job.id != job_id for job in jobs.unfinished(workspace.database)
    )


def _outcome(job: Job) -> Mapping[str, Any]:
    from nvr_rag.jobs import Status

    if job.result is None:
        collection = job.payload.get("collection")
        if job.status is Status.CANCELLED:
            raise NvrError("the lap was cancelled; what served still serves")
        raise NvrError(
            f"{job.error or 'the lap did not finish'}. nvr-rag deploy list --collection {collection} shows what "
            f"serves; nvr-rag retrain --resume --collection {collection} goes on behind the last finished step"
        )
    return job.result
