"""How a claimed job is done: its result, its errors, stopping, cancelling, and a database that is away meanwhile."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import update

from nvr_rag import jobs, retries
from nvr_rag.db import tables as t
from nvr_rag.errors import DatabaseUnavailable, InvalidInput, StoreBusy, StoreUnavailable
from nvr_rag.jobs import Hold, Job, Status
from nvr_rag.retries import Backoff, RetryPolicy
from nvr_rag.running import working
from nvr_rag.running.working import JobLoop, Task
from nvr_rag.workspace import Workspace

QUICK = Backoff(first_seconds=0.01, factor=2.0, cap_seconds=0.05)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEAT_SECONDS", "LOOK_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(working, name, 0.01)
    monkeypatch.setattr(retries, "OUTAGE", QUICK)


def claimed(workspace: Workspace, kind: str = "work") -> Job:
    jobs.enqueue(workspace.database, kind, {})
    job = jobs.claim(workspace.database, "me", [kind])
    assert job is not None
    return job


def do(workspace: Workspace, job: Job, handler: Callable[[Task], Mapping[str, Any]], **options: Any) -> Any:
    stop = options.pop("stop", None) or threading.Event()
    return working.run(workspace, job, "me", handler, stop=stop, **options)


def now(workspace: Workspace, job: Job) -> Job:
    return jobs.get(workspace.database, job.id)


def waits(task: Task) -> Mapping[str, Any]:
    assert task.stop.wait(20), "nobody has told it to stop"
    task.check()
    raise AssertionError("unreachable")


def soon(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


# how it ends


def test_what_a_handler_returns_is_the_result(workspace: Workspace) -> None:
    job = claimed(workspace)
    assert do(workspace, job, lambda task: {"seen": (1, 2), "kind": task.job.kind}) == {"seen": [1, 2], "kind": "work"}
    assert (now(workspace, job).state, now(workspace, job).result) == ("done", {"seen": [1, 2], "kind": "work"})


@pytest.mark.parametrize("result", [{"x": object()}, {"x": float("nan")}])
def test_a_result_that_cannot_be_kept_is_an_error_and_no_death(workspace: Workspace, result: Any) -> None:
    job = claimed(workspace)
    with pytest.raises((TypeError, ValueError)):
        do(workspace, job, lambda _task: result)
    assert now(workspace, job).state == "failed"


def test_an_error_that_time_may_mend_is_tried_again_later(workspace: Workspace) -> None:
    def slow(_task: Task) -> Mapping[str, Any]:
        raise StoreUnavailable("the store is slow")

    job = claimed(workspace)
    policy = RetryPolicy(attempts=2, backoff=Backoff(first_seconds=100.0, factor=2.0, cap_seconds=1000.0))
    assert do(workspace, job, slow, policy=policy, chance=random.Random(1)) is None
    waiting = now(workspace, job)
    assert (waiting.status, waiting.attempts, waiting.error) == (Status.QUEUED, 1, None)
    assert waiting.due_at is not None
    again = jobs.claim(workspace.database, "me", ["work"], job_id=job.id)
    assert again is not None
    assert do(workspace, again, slow, policy=policy) is None
    dead = now(workspace, job)
    assert (dead.status, dead.error) == (Status.FAILED, "the store is slow (given up after 2 attempts)")
    assert len(dead.failures) == 2


def test_an_error_that_time_does_not_mend_is_final(workspace: Workspace) -> None:
    def wrong(_task: Task) -> Mapping[str, Any]:
        raise InvalidInput("there is no such index")

    job = claimed(workspace)
    assert do(workspace, job, wrong) is None
    assert (now(workspace, job).status, now(workspace, job).error) == (Status.FAILED, "there is no such index")


def test_what_nobody_has_foreseen_is_final_and_raised(workspace: Workspace) -> None:
    job = claimed(workspace)
    with pytest.raises(ZeroDivisionError):
        do(workspace, job, lambda _task: {"x": 1 / 0})
    assert now(workspace, job).error == "unexpected ZeroDivisionError: division by zero"


def test_what_is_another_processs_work_is_put_back_at_once(workspace: Workspace) -> None:
    def owned(_task: Task) -> Mapping[str, Any]:
        raise StoreBusy("owned by another process")

    job = claimed(workspace)
    with pytest.raises(StoreBusy):
        do(workspace, job, owned)
    waiting = now(workspace, job)
    assert (waiting.state, waiting.attempts, waiting.due_at) == ("queued", 0, None)
    assert [one["error"] for one in waiting.failures] == ["owned by another process"]


# stopping and cancelling


def test_when_the_process_stops_the_job_is_put_back_and_that_is_no_attempt(workspace: Workspace) -> None:
    stop = threading.Event()
    job = claimed(workspace)
    threading.Timer(0.05, stop.set).start()
    assert do(workspace, job, waits, stop=stop) is None
    assert (now(workspace, job).state, now(workspace, job).attempts) == ("queued", 0)
    assert now(workspace, job).failures == []


def test_ctrl_c_puts_it_back_too(workspace: Workspace) -> None:
    def interrupted(_task: Task) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    job = claimed(workspace)
    with pytest.raises(KeyboardInterrupt):
        do(workspace, job, interrupted)
    assert (now(workspace, job).state, now(workspace, job).attempts) == ("queued", 0)


def test_a_handler_that_is_cancelled_knows_it_and_can_undo(workspace: Workspace) -> None:
    def undoes(task: Task) -> Mapping[str, Any]:
        jobs.cancel(workspace.database, task.job.id)
        try:
            return waits(task)
        finally:
            seen.append(task.cancelled)

    seen: list[bool] = []
    job = claimed(workspace)
    assert do(workspace, job, undoes) is None
    assert seen == [True]
    assert (now(workspace, job).status, now(workspace, job).error) == (Status.CANCELLED, "cancelled")


def test_a_job_that_was_taken_away_is_stopped_and_left_alone(workspace: Workspace) -> None:
    def loses(task: Task) -> Mapping[str, Any]:
        with workspace.database.write() as connection:
            connection.execute(update(t.Job).values(worker="heir"))
        try:
            return waits(task)
        finally:
            seen.append(task.cancelled)

    seen: list[bool] = []
    job = claimed(workspace)
    assert do(workspace, job, loses) is None
    assert seen == [False]
    assert jobs.heartbeat(workspace.database, job.id, "heir") is Hold.MINE


# the lease


def test_the_lease_is_kept_and_progress_is_passed_on(workspace: Workspace) -> None:
    def tells(task: Task) -> Mapping[str, Any]:
        task.tell({"done": 3, "total": 10, "words": "chunks"})
        soon(lambda: now(workspace, job).progress == {"done": 3, "total": 10, "words": "chunks"})
        first = now(workspace, job).lease_until
        soon(lambda: (now(workspace, job).lease_until or first) > first)  # type: ignore[operator]
        return {}

    job = claimed(workspace)
    do(workspace, job, tells)
    assert now(workspace, job).state == "done"


def test_a_progress_that_no_database_can_hold_does_not_cost_the_lease(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    def tells(task: Task) -> Mapping[str, Any]:
        task.tell({"x": object()})
        soon(lambda: "cannot be kept" in caplog.text)
        first = now(workspace, job).lease_until
        soon(lambda: (now(workspace, job).lease_until or first) > first)  # type: ignore[operator]
        return {}

    job = claimed(workspace)
    do(workspace, job, tells)
    assert now(workspace, job).state == "done"


def test_attempts_before_something_lasting_was_done_do_not_count(workspace: Workspace) -> None:
    def advances(task: Task) -> Mapping[str, Any]:
        task.advanced()
        attempts.append(now(workspace, job).attempts)
        return {}

    attempts: list[int] = []
    job = claimed(workspace)
    with workspace.database.write() as connection:
        connection.execute(update(t.Job).values(attempts=4))
    do(workspace, job, advances)
    assert attempts == [1]


# a database that is away


class Outage:
    """Makes functions of nvr_rag.jobs fail as they do when the database is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        self.refused = 0
        for name in ("claim", "heartbeat", "finish", "fail", "release"):
            monkeypatch.setattr(jobs, name, self._broken(getattr(jobs, name)))

    def _broken(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.on:
                self.refused += 1
                raise DatabaseUnavailable("the database did not answer: connection refused")
            return real(*arguments, **options)

        return call


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


def test_a_result_is_kept_until_the_database_is_back(workspace: Workspace, outage: Outage) -> None:
    def falls(_task: Task) -> Mapping[str, Any]:
        outage.on = True
        threading.Timer(0.2, lambda: setattr(outage, "on", False)).start()
        return {"hours": 3}

    job = claimed(workspace)
    assert do(workspace, job, falls) == {"hours": 3}
    assert outage.refused > 1
    assert (now(workspace, job).state, now(workspace, job).result) == ("done", {"hours": 3})


def test_a_process_that_stops_does_not_wait_for_the_database(workspace: Workspace, outage: Outage) -> None:
    def falls(_task: Task) -> Mapping[str, Any]:
        outage.on = True
        threading.Timer(0.1, stop.set).start()
        return {}

    stop = threading.Event()
    job = claimed(workspace)
    do(workspace, job, falls, stop=stop)
    assert now(workspace, job).state == "running"  # its lease runs out, and somebody else does it


@pytest.fixture
def loop(workspace: Workspace) -> Iterator[JobLoop]:
    made = JobLoop("loop", {"work": lambda task: {"id": task.job.id}, "wait": waits})
    made.start(workspace)
    yield made
    made.stop()


def test_a_loop_outlives_a_database_that_is_away_and_says_so_once(
    workspace: Workspace, outage: Outage, caplog: pytest.LogCaptureFixture, loop: JobLoop
) -> None:
    with caplog.at_level(logging.INFO):
        outage.on = True
        soon(lambda: outage.refused > 1)  # a look that began before would still find the job
        job_id = jobs.enqueue(workspace.database, "work", {})
        soon(lambda: outage.refused > 5)
        assert loop.problem() is None
        outage.on = False
        soon(lambda: jobs.get(workspace.database, job_id).state == "done")
        soon(lambda: "the loop goes on" in caplog.text)
    assert caplog.text.count("connection refused") == 1


# the loop


def test_a_loop_does_what_comes_and_goes_on_after_errors(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(task: Task) -> Mapping[str, Any]:
        if task.job.payload.get("bad"):
            raise ZeroDivisionError("x")
        return {}

    loop = JobLoop("loop", {"work": handler})
    assert not loop.step(workspace)
    bad = jobs.enqueue(workspace.database, "work", {"bad": True})
    good = jobs.enqueue(workspace.database, "work", {})
    other = jobs.enqueue(workspace.database, "other", {})
    assert (loop.step(workspace), loop.step(workspace), loop.step(workspace)) == (True, True, False)
    states = [jobs.get(workspace.database, job_id).state for job_id in (bad, good, other)]
    assert states == ["failed", "done", "queued"]


def test_what_is_another_processs_is_left_to_it_for_a_while(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def owned(_task: Task) -> Mapping[str, Any]:
        raise StoreBusy("owned by another process")

    visitor = JobLoop("visitor", {"work": owned})
    owner = JobLoop("owner", {"work": lambda _task: {"by": "owner"}})
    first = jobs.enqueue(workspace.database, "work", {})
    assert visitor.step(workspace)
    assert not visitor.step(workspace)
    assert owner.step(workspace)
    assert jobs.get(workspace.database, first).result == {"by": "owner"}
    second = jobs.enqueue(workspace.database, "work", {})
    monkeypatch.setattr(working, "AVOID_SECONDS", 0.0)
    assert [visitor.step(workspace) for _ in range(10)] == [True] * 10
    assert jobs.get(workspace.database, second).attempts == 0


def test_a_loop_that_stops_puts_its_job_back(workspace: Workspace, loop: JobLoop) -> None:
    job_id = jobs.enqueue(workspace.database, "wait", {})
    soon(lambda: jobs.get(workspace.database, job_id).state == "running")
    loop.stop()
    assert (jobs.get(workspace.database, job_id).state, jobs.get(workspace.database, job_id).attempts) == ("queued", 0)
    assert loop.problem() == "the loop is not running"
