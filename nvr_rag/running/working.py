"""Doing jobs: a claimed job and its handler enter, and how it ended is in the database when it leaves.

Knows no kind of job. A handler is a function of a Task; whoever offers jobs of a kind puts its handler into the table
that a JobLoop is made with. What a handler returns is the result; an error that it raises is tried again or not, as
nvr_rag.retries decides; when it is to stop it raises Stopped, and somebody else goes on, unless it was cancelled.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvr_rag import jobs, retries
from nvr_rag.db.session import Database
from nvr_rag.errors import DatabaseUnavailable, NvrError, Stopped
from nvr_rag.ids import new_id
from nvr_rag.jobs import Hold, Job
from nvr_rag.observing import context
from nvr_rag.retries import RetryPolicy
from nvr_rag.running.patience import Patience
from nvr_rag.workspace import Workspace

POLL_SECONDS = 0.5  # between two looks for a job
BEAT_SECONDS = 1.0  # what those who follow a job see is at most this old
LOOK_SECONDS = 0.1  # after which a handler knows that its process stops
AVOID_SECONDS = 30.0  # that a job is left to others which this process cannot do now
STOP_SECONDS = 30.0  # that a job may take to come to an end when its process stops

log = logging.getLogger(__name__)


class Lease:
    """Keeps a job while the block runs, and passes its progress on."""

    def __init__(self, database: Database, job_id: int, worker: str, outer: threading.Event) -> None:
        """`outer` is set when the process stops."""
        self._database, self._job_id, self._worker, self._outer = database, job_id, worker, outer
        self.stop = threading.Event()  # the job is to end: its process stops, or it was cancelled or taken away
        self.hold = Hold.MINE  # what was heard last
        self.progress: Mapping[str, Any] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-of-job-{job_id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def advanced(self) -> None:
        """Something that need not be done again is done."""
        self._beat(advanced=True)

    def _run(self) -> None:
        beaten = time.monotonic()
        while not self._ended.wait(LOOK_SECONDS):
            if self._outer.is_set():
                self.stop.set()
            if time.monotonic() - beaten >= BEAT_SECONDS:
                self._beat()
                beaten = time.monotonic()

    def _beat(self, *, advanced: bool = False) -> None:
        try:
            hold = jobs.heartbeat(self._database, self._job_id, self._worker, self.progress, advanced=advanced)
        except NvrError:  # the database is away: nobody can take the job either, and the next heartbeat tells
            return
        except Exception:  # a progress that no database can hold; the lease is worth more
            log.exception("job %s: what it tells cannot be kept", self._job_id)
            self.progress = None
            return
        self.hold = hold
        if hold is not Hold.MINE:
            self.stop.set()


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A job as its handler sees it."""

    workspace: Workspace
    job: Job
    lease: Lease

    @property
    def stop(self) -> threading.Event:
        """Set when the handler is to come to an end; it then raises Stopped."""
        return self.lease.stop

    @property
    def cancelled(self) -> bool:
        """The job is to stop for good: what is half done is better undone."""
        return self.lease.hold is Hold.CANCEL

    def check(self) -> None:
        """Raise Stopped when the job is to stop."""
        if self.stop.is_set():
            raise Stopped("stopped; what is finished stays finished")

    def tell(self, progress: Mapping[str, Any]) -> None:
        """Say how far it is. `done`, `total` and `words`, where they are there, are shown to people."""
        self.lease.progress = progress

    def advanced(self) -> None:
        """Something that need not be done again is done, so attempts that ended before it no longer count."""
        self.lease.advanced()


Handler = Callable[[Task], Mapping[str, Any]]
Handlers = Mapping[str, Handler]  # by kind of job


def run(
    workspace: Workspace,
    job: Job,
    worker: str,
    handler: Handler,
    *,
    stop: threading.Event,
    policy: RetryPolicy | None = None,
    chance: random.Random | None = None,
) -> Mapping[str, Any] | None:
    """Do a job that `worker` has claimed; its result, or None when it failed or was stopped.

    How often it is tried is `policy`'s to say, by default retries.JOBS. What was stopped, by `stop` or Ctrl-C, is put
    back. Raises, once the job is put back, an error that says that the work is another process's (NvrError.elsewhere),
    and, once it has failed, what nobody has foreseen.
    """
    database = workspace.database
    with context.begun(job_id=job.id, collection=job.collection), Lease(database, job.id, worker, stop) as lease:
        try:
            told = handler(Task(workspace=workspace, job=job, lease=lease))
            result: dict[str, Any] = json.loads(json.dumps(told, allow_nan=False))  # as those who asked will read it
        except (Stopped, KeyboardInterrupt) as reason:
            _surely(stop, lambda: jobs.release(database, job.id, worker))
            if isinstance(reason, KeyboardInterrupt):
                raise
            return None
        except Exception as error:
            _failed(database, job, worker, error, stop, policy or retries.JOBS, chance or random.Random())  # noqa: S311
            if not isinstance(error, NvrError) or error.elsewhere:
                raise
            return None
        _surely(stop, lambda: jobs.finish(database, job.id, worker, result=result, error=None))
        return result


def _failed(
    database: Database,
    job: Job,
    worker: str,
    error: Exception,
    stop: threading.Event,
    policy: RetryPolicy,
    chance: random.Random,
) -> None:
    if isinstance(error, NvrError) and (error.elsewhere or stop.is_set()):
        _surely(stop, lambda: jobs.release(database, job.id, worker, reason=str(error)))
        return
    decision = retries.decide(error, job.attempts, policy, chance)
    again = f"is tried again in {decision.delay_seconds:.0f} s" if decision.again else "failed"
    log.warning("%s job %s %s: %s", job.kind, job.id, again, decision.words)
    _surely(stop, lambda: jobs.fail(database, job.id, worker, decision))


def _surely(stop: threading.Event, write: Callable[[], object]) -> None:
    """Write how a job ended, also when the database is away at that moment; when the process stops, its lease runs out
    instead."""
    patience = Patience("noting how a job ended")
    while True:
        try:
            write()
            patience.succeeded()
            return
        except NvrError as error:
            if not error.retry or stop.wait(patience.failed(error)):
                log.warning("how a job ended could not be noted, and it will be done again: %s", error)
                return


class JobLoop:
    """A thread that does jobs, one after the other, from `start` to `stop`."""

    def __init__(self, name: str, handlers: Handlers) -> None:
        self._name, self._handlers = name, handlers
        self._worker = new_id()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._avoided: dict[int, float] = {}  # job id -> until when it is left to others
        self._patience = Patience(f"the {name}")
        self._away = False  # the database is: that is told of where it is asked, not here

    @property
    def job_kinds(self) -> Sequence[str]:
        return tuple(self._handlers)

    def start(self, workspace: Workspace) -> None:
        self._thread = threading.Thread(target=self._run, args=(workspace,), name=self._name, daemon=True)
        self._thread.start()

    def tell_to_stop(self) -> None:
        """Let the job at hand begin to come to its end."""
        self._stop.set()

    def stop(self) -> None:
        """Have the job at hand put back, or finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def problem(self) -> str | None:
        """None while it is well; otherwise what is wrong."""
        if self._thread is None or not self._thread.is_alive():
            return f"the {self._name} is not running"
        if self._patience.trouble is not None and not self._away:
            return f"the {self._name} failed and tries again: {self._patience.trouble}"
        return None

    def _run(self, workspace: Workspace) -> None:
        while not self._stop.is_set():
            try:
                done = self.step(workspace)
            except Exception as error:  # the thread must outlive what nobody has foreseen
                self._away = isinstance(error, DatabaseUnavailable)
                self._stop.wait(self._patience.failed(error))
                continue
            self._patience.succeeded()
            if not done:
                self._stop.wait(POLL_SECONDS)

    def step(self, workspace: Workspace) -> bool:
        """Do one job, if there is one; whether there was. Raises NvrError when the database is away."""
        if not self._handlers:
            return False
        now = time.monotonic()
        self._avoided = {job_id: until for job_id, until in self._avoided.items() if until > now}
        job = jobs.claim(workspace.database, self._worker, self.job_kinds, skip=self._avoided)
        if job is None:
            return False
        try:
            run(workspace, job, self._worker, self._handlers[job.kind], stop=self._stop)
        except NvrError as error:
            log.info("%s job %s is left to another process: %s", job.kind, job.id, error)
            self._avoided[job.id] = time.monotonic() + AVOID_SECONDS
        except Exception:
            log.exception("%s job %s failed", job.kind, job.id)
        return True
