"""Laps as jobs: asked for, gone on with, and the handler that runs one; see nvr_rag.running.working.

A job of the kind `retrain` enters; what the lap came to leaves. The same for a server or a worker, which run laps in a
thread, and for a command that runs one itself. What is told of a lap names no file: others read it too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from nvr_rag import deployments, indexes, jobs
from nvr_rag.errors import ConfigurationError, Conflict, NotFound, NvrError, Stopped
from nvr_rag.ids import new_id
from nvr_rag.jobs import Job, Status
from nvr_rag.retries import ONCE
from nvr_rag.running import processes, working
from nvr_rag.running.working import Handlers, Task
from nvr_rag.workspace import Workspace
from training.lap import Progress
from training.loop import Request, recipe_of, run_lap
from training.runs import RunFolder, run_folder

KIND = "retrain"


def missing_packages() -> list[str]:
    """What has to be installed before a lap can be run."""
    return [name for name in ("accelerate", "datasets", "ir_measures") if find_spec(name) is None]


def ask(workspace: Workspace, request: Request) -> int:
    """Enqueue a lap; returns the job's id.

    Raises Conflict while the collection has one, NotFound, InvalidInput (recipe, rule).
    """
    recipe_of(workspace, request)
    return jobs.enqueue_alone(workspace.database, KIND, request.collection, request.as_json())


def new_request(collection: str, **options: Any) -> Request:
    """A request for a lap of its own."""
    return Request(collection=collection, run=new_id(), **options)


def left_behind(workspace: Workspace, collection: str, *, failed: bool) -> Job | None:
    """The lap of a collection that one may go on with at once: its process has died, on this machine; or it waits, and
    there is no server or worker to take it; or, if `failed`, it is the newest one and has failed."""
    found = jobs.of_collection(workspace.database, KIND, collection)
    served = bool(processes.taking(workspace.database, KIND))
    for job in found:
        folder = _folder(workspace, job)
        died = job.status is Status.RUNNING and (job.lapsed or (folder is not None and folder.abandoned()))
        if died or (job.state == "queued" and not served):
            return job
    return found[-1] if failed and found and found[-1].state == "failed" else None


def lap(task: Task, tell: Callable[[Progress], None] = lambda _progress: None) -> dict[str, Any]:
    """The handler of laps: run one, or what is left of it; what it came to. `tell` hears what the job's row says."""
    workspace, job = task.workspace, task.job
    request, folder = _request(job), run_folder(workspace.home, str(job.payload.get("run", "")))
    if folder.given_up:
        raise Conflict(
            f"lap {request.run} was cancelled and its candidate given up; begin a new one: nvr-rag retrain "
            f"--collection {request.collection}"
        )
    _forget_older(workspace, job)

    def hear(progress: Progress) -> None:
        task.tell(progress.as_json())
        tell(progress)

    try:
        report = run_lap(workspace, request, tell=hear, stop=task.stop, advanced=task.advanced, serves=workspace.serves)
    except Stopped:
        if task.cancelled:
            _give_up(workspace, folder)
        raise
    return {
        "run": request.run,
        "outcome": report["outcome"],
        "promoted": report["promoted"],
        "reasons": [one["text"] for one in (report["decision"] or {}).get("findings", ())],
        "next_steps": report["next_steps"],
        "compared_with": (folder.finished("judge") or {}).get("base_deployment"),
    }


HANDLERS: Handlers = {KIND: lap}


def run_job(
    workspace: Workspace,
    job: Job,
    worker: str,
    *,
    stop: threading.Event,
    tell: Callable[[Progress], None] = lambda _progress: None,
) -> Mapping[str, Any] | None:
    """Run a lap that `worker` has claimed while somebody looks on; see nvr_rag.running.working.run. Nothing is
    tried again behind their back: they hear why it failed."""
    return working.run(workspace, job, worker, lambda task: lap(task, tell), stop=stop, policy=ONCE)


def _folder(workspace: Workspace, job: Job) -> RunFolder | None:
    """The folder of a job's lap; None when another release has made the job."""
    try:
        return run_folder(workspace.home, str(job.payload.get("run", "")))
    except ConfigurationError:
        return None


def _forget_older(workspace: Workspace, job: Job) -> None:
    """Make room: of the collection's laps only the newest can be gone on with. A candidate of an older one that nobody
    has promoted until now is given up: its index would be kept up with the documents for nothing."""
    for other in jobs.of_collection(workspace.database, KIND, str(job.payload.get("collection"))):
        folder = _folder(workspace, other)
        if other.finished and other.id < job.id and folder is not None:
            folder.forget_files()
            folder.forget_texts()
            if not job.payload.get("dry_run"):
                _give_up_candidate(workspace, folder)


def _give_up_candidate(workspace: Workspace, folder: RunFolder) -> None:
    """Reject the candidate of a lap that never served, and remove its encoder once no index needs it."""
    with workspace.database.write() as connection:
        found = deployments.of_run(connection, folder.path.name)
        if found is not None and found.state in deployments.WAITING:
            deployments.reject(connection, found.id)
        served = found is not None and found.state not in (*deployments.WAITING, "rejected")
    if found is not None and not served:
        workspace.close_index(found.index_id)
        with suppress(NvrError):  # whoever keeps the indexes up drops it
            indexes.drop_retired(workspace.database, workspace.store, found.index_id)
    registered = folder.finished("register")
    if registered is not None and not served:
        with suppress(Conflict, NotFound):  # an index needs it, another lap made it again, or it has gone
            workspace.discard(str(registered["encoder"]))


def _give_up(workspace: Workspace, folder: RunFolder) -> None:
    """Undo what a cancelled lap has made for others to see; one that had only begun can still be gone on with."""
    if folder.finished("register") is None:
        return
    folder.give_up()
    _give_up_candidate(workspace, folder)
    folder.forget_files()
    folder.forget_texts()


def _request(job: Job) -> Request:
    try:
        return Request(**job.payload)
    except TypeError as error:
        raise ConfigurationError(f"job {job.id} was made by another release: {error}; ask again") from error
