"""What `retrain` and `mine` share: getting a lap run, here or by the server, and showing how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nvr_rag import output
from nvr_rag.errors import ConfigurationError, Conflict, NvrError

if TYPE_CHECKING:
    from nvr_rag.jobs import Job
    from nvr_rag.workspace import Workspace
    from training.loop import Request

POLL_SECONDS = 0.3
UNHEARD_SECONDS = 20.0  # after which a server that does not take the job is asked about


def check_installed() -> None:
    """Raise ConfigurationError unless everything that a lap imports is there."""
    from training.running import missing_packages

    missing = missing_packages()
    if missing:
        raise ConfigurationError(f"training needs {', '.join(missing)}; run: pip install 'nvr-rag[training]'")


def take(workspace: Workspace, request: Request, *, resume: bool) -> int:
    """The job to run: one that was left behind and is gone on with, the last failed one, or a new one; its id."""
    from nvr_rag import jobs, processes
    from training import running

    database, collection = workspace.database, request.collection
    if resume:
        failed = running.last_failed(workspace, collection)
        if failed is None:
            raise Conflict("the last lap of this collection has not failed; leave --resume out to begin a new one")
        jobs.requeue(database, failed.id)
        return failed.id
    left = running.left_behind(workspace, collection)
    if left is not None:
        jobs.requeue(database, left.id)
    waiting = [job for job in jobs.of_collection(database, running.KIND, collection) if job.state == "queued"]
    if waiting and (left is not None or not processes.alive(database, "serve")):
        output.note(f"Going on with lap {waiting[0].payload['run']}, which was not finished, as it was begun.")
        return waiting[0].id
    return running.ask(workspace, request)


def follow(workspace: Workspace, job_id: int) -> Mapping[str, Any]:
    """Run the job, or watch the server run it; what it came to. Raises NvrError with its error."""
    from nvr_rag import processes

    with output.progress() as bars:
        task = bars.add_task("Beginning", total=None)

        def show(progress: Mapping[str, Any]) -> None:
            if progress:
                words = f"{progress['number']}/{progress['steps']} {progress['step']}: {progress['words']}".rstrip(": ")
                bars.update(task, description=words, completed=progress["done"], total=progress["total"])

        if processes.alive(workspace.database, "serve"):
            return _watch(workspace, job_id, show)
        return _run(workspace, job_id, show)


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
    from nvr_rag import jobs, processes

    asked = time.monotonic()
    while not (job := jobs.get(workspace.database, job_id)).finished:
        show(job.progress)
        if not processes.alive(workspace.database, "serve"):
            raise Conflict("the server has stopped; run nvr-rag retrain again to go on with the lap")
        if job.state == "queued" and time.monotonic() - asked > UNHEARD_SECONDS:
            raise ConfigurationError(
                "the server does not take the job: install 'nvr-rag[training]' where it runs and restart it, or stop "
                "it and run the same command again"
            )
        time.sleep(POLL_SECONDS)
    return _outcome(job)


def _outcome(job: Job) -> Mapping[str, Any]:
    if job.result is None:
        raise NvrError(
            f"{job.error or 'the lap did not finish'}; what serves is untouched. nvr-rag retrain --resume goes on "
            "behind the last finished step"
        )
    return job.result
