"""Laps as jobs: claimed, kept alive by heartbeats, told how far they are, finished. A process's side of a lap.

A job of the kind `retrain` enters; its result, or its error, is in the database when it leaves. The same for a server,
which runs laps in a thread, and for a command that runs one itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from nvr_rag import deployments, jobs, processes
from nvr_rag.db.session import Database
from nvr_rag.errors import ConfigurationError, Conflict, NotFound, NvrError
from nvr_rag.ids import new_id
from nvr_rag.jobs import Job
from nvr_rag.workspace import Workspace
from training.children import Stopped
from training.lap import Progress
from training.loop import Request, recipe_of, report_of, run_lap
from training.runs import LapBusy, RunFolder, run_folder

KIND = "retrain"
BEAT_SECONDS = 1.0  # what those who follow a lap see is at most this old
_LOOK_SECONDS = 0.1


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
    there is no server to take it; or, if `failed`, it is the newest one and has failed."""
    found = jobs.of_collection(workspace.database, KIND, collection)
    served = bool(processes.alive(workspace.database, "serve"))
    for job in found:
        folder = _folder(workspace, job)
        died = job.state == "running" and (job.lapsed or (folder is not None and folder.abandoned()))
        if died or (job.state == "queued" and not served):
            return job
    return found[-1] if failed and found and found[-1].state == "failed" else None


def run_job(
    workspace: Workspace,
    job: Job,
    worker: str,
    *,
    stop: threading.Event,
    tell: Callable[[Progress], None] = lambda _progress: None,
    serves: bool = False,
) -> Mapping[str, Any] | None:
    """Run a job that `worker` has claimed, and note how it ended; its result, or None when it failed or was stopped.

    A job that is stopped goes back into the queue: whoever comes next goes on with it. Raises LapBusy.
    """
    with _Heartbeat(workspace.database, job.id, worker, stop) as beat:

        def hear(progress: Progress) -> None:
            beat.progress = progress.as_json()
            tell(progress)

        try:
            _forget_older(workspace, job)
            report = run_lap(workspace, _request(job), tell=hear, stop=beat.stop, advanced=beat.advanced, serves=serves)
        except (Stopped, LapBusy, KeyboardInterrupt) as reason:
            jobs.release(workspace.database, job.id, worker)
            if not isinstance(reason, Stopped):
                raise
            return None
        except Exception as error:
            words = str(error) if isinstance(error, NvrError) else f"unexpected {type(error).__name__}: {error}"
            jobs.finish(workspace.database, job.id, worker, result=None, error=words)
            if not isinstance(error, NvrError):
                raise
            return None
    run = str(job.payload["run"])
    result = {
        "run": run,
        "outcome": report["outcome"],
        "promoted": report["promoted"],
        "reasons": [one["text"] for one in (report["decision"] or {}).get("findings", ())],
        "next_steps": report["next_steps"],
        "report": report_of(workspace, run),
    }
    jobs.finish(workspace.database, job.id, worker, result=result, error=None)
    return result


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
    registered = folder.finished("register")
    if registered is not None and not served:
        with suppress(Conflict, NotFound):  # an index needs it, another lap made it again, or it has gone
            workspace.discard(str(registered["encoder"]))


def _request(job: Job) -> Request:
    try:
        return Request(**job.payload)
    except TypeError as error:
        raise ConfigurationError(f"job {job.id} was made by another release: {error}; ask again") from error


class _Heartbeat:
    """Keeps the lease of a job while the block runs; sets `stop` when the job was taken away."""

    def __init__(self, database: Database, job_id: int, worker: str, stop: threading.Event) -> None:
        self._database, self._job_id, self._worker, self._outer = database, job_id, worker, stop
        self.stop = threading.Event()
        self.progress: Mapping[str, Any] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lap-heartbeat", daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def advanced(self) -> None:
        """Something that need not be done again is done."""
        self._beat(advanced=True)

    def _run(self) -> None:
        waited = 0.0
        while not self._ended.wait(_LOOK_SECONDS):
            if self._outer.is_set():
                self.stop.set()
            waited += _LOOK_SECONDS
            if waited >= BEAT_SECONDS:
                waited = 0.0
                self._beat()

    def _beat(self, *, advanced: bool = False) -> None:
        try:
            mine = jobs.heartbeat(self._database, self._job_id, self._worker, self.progress, advanced=advanced)
        except NvrError:  # the database is busy; there is time until the lease ends
            return
        if not mine:
            self.stop.set()
