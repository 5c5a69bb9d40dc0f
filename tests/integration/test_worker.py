"""`nvr-rag worker`: which services work, how others know of it, and how it stops."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from nvr_rag import jobs, retries
from nvr_rag.errors import ConfigurationError, DatabaseUnavailable, InvalidInput
from nvr_rag.retries import Backoff
from nvr_rag.running import presence, processes, worker, working
from nvr_rag.running.working import JobLoop, Task
from nvr_rag.workspace import Workspace
from tests.integration.command_line import CommandLine
from tests.support import House
from training.service import TrainerService


class Smith:
    """A service whose jobs wait until they are told to stop, or are done at once."""

    name, work = "smith", "forge"

    def __init__(self, *kinds: str) -> None:
        def done(task: Task) -> Mapping[str, Any]:
            return {"by": "smith"}

        def waits(task: Task) -> Mapping[str, Any]:
            task.stop.wait(30)
            task.check()
            return {}

        handlers = {"nail": done, "anvil": waits}
        self._loop = JobLoop(self.name, {kind: handlers[kind] for kind in kinds})
        self.trouble: str | None = None

    @property
    def job_kinds(self) -> Sequence[str]:
        return self._loop.job_kinds

    def check(self, workspace: Workspace, kind: str, payload: Mapping[str, Any]) -> None:
        pass

    def start(self, workspace: Workspace) -> None:
        self._loop.start(workspace)

    def stop(self) -> None:
        self._loop.stop()

    def problem(self) -> str | None:
        return self.trouble or self._loop.problem()


class Baker(Smith):
    name, work = "baker", "bake"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((working, "POLL_SECONDS"), (working, "LOOK_SECONDS"), (worker, "LOOK_SECONDS")):
        monkeypatch.setattr(module, name, 0.01)


def soon(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


# which services


def names(kinds: Sequence[str]) -> list[str]:
    return [one.name for one in worker.chosen([Smith("nail", "anvil"), Baker(), Baker("nail")], kinds)]


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ([], ["smith", "baker"]),  # all that have anything to do
        (["forge"], ["smith"]),
        (["anvil"], ["smith"]),
        (["anvil", "forge"], ["smith"]),
    ],
)
def test_services_are_named_by_their_work_or_by_a_kind_of_job(kinds: list[str], found: list[str]) -> None:
    assert names(kinds) == found


def test_a_kind_that_nobody_offers_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match="the kinds of work are anvil, bake, forge, nail, not 'weave'"):
        names(["forge", "weave"])


def test_what_lacks_its_packages_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"bake cannot be done here.*'nvr-rag\[training\]'"):
        names(["bake"])
    monkeypatch.setattr("training.service.missing_packages", lambda: ["datasets"])
    with pytest.raises(ConfigurationError, match="train cannot be done here"):
        worker.chosen([TrainerService()], ["train"])


def test_the_installed_services_have_the_names_that_the_help_gives() -> None:
    known = {service.work: set(service.job_kinds) for service in worker.installed()}
    assert known["train"] == {"retrain"}
    assert "verify" in known["index"]
    assert known["ingest"] == {"ingest", "upload"}
    result = CommandLine.__call__(None, "worker", "--kinds", "index,weave")  # type: ignore[arg-type]
    assert result.exit_code == 2
    assert "the kinds of work are" in result.stderr
    assert "not 'weave'" in result.stderr


# at work


@contextmanager
def at_work(house: House, *services: Smith) -> Iterator[threading.Event]:
    """A worker in a thread of its own; it is stopped at the end."""
    stop, ready = threading.Event(), threading.Event()
    options = {"on_ready": lambda _services: ready.set()}
    thread = threading.Thread(target=worker.work, args=(house.workspace, services, stop), kwargs=options)
    thread.start()
    try:
        assert ready.wait(30)
        yield stop
    finally:
        stop.set()
        thread.join()


def test_a_worker_does_jobs_and_others_know_of_it(house: House) -> None:
    with at_work(house, Smith("nail", "anvil")):
        [found] = processes.alive(house.database, "worker")
        assert (found.url, found.job_kinds) == (None, ["nail", "anvil"])
        assert [one.id for one in processes.taking(house.database, "nail")] == [found.id]
        job_id = jobs.enqueue(house.database, "nail", {})
        soon(lambda: jobs.get(house.database, job_id).result == {"by": "smith"})
    assert processes.alive(house.database, "worker") == []


def test_a_worker_that_stops_puts_its_job_back(house: House) -> None:
    with at_work(house, Smith("anvil")):
        job_id = jobs.enqueue(house.database, "anvil", {})
        soon(lambda: jobs.get(house.database, job_id).state == "running")
    waiting = jobs.get(house.database, job_id)
    assert (waiting.state, waiting.attempts, waiting.failures) == ("queued", 0, [])


def test_what_is_wrong_with_a_service_is_said_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    smith = Smith("nail")
    with at_work(house, smith):
        smith.trouble = "the fire is out"
        soon(lambda: "the fire is out" in caplog.text)
        time.sleep(0.1)
        smith.trouble = None
        soon(lambda: "smith: is well again" in caplog.text)
    assert caplog.text.count("the fire is out") == 1


def test_the_heartbeat_outlives_a_database_that_is_away(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def beat(*arguments: Any) -> None:
        if away.is_set():
            refused.append(1)
            raise DatabaseUnavailable("the database did not answer: connection refused")
        beats.append(1)

    away, refused, beats = threading.Event(), list[int](), list[int]()
    monkeypatch.setattr(processes, "beat", beat)
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(retries, "OUTAGE", Backoff(first_seconds=0.01, factor=1.0, cap_seconds=0.01))
    with at_work(house, Smith("nail")):
        soon(lambda: len(beats) > 1)
        away.set()
        soon(lambda: len(refused) > 3)
        away.clear()
        before = len(beats)
        soon(lambda: len(beats) > before + 1)
    assert caplog.text.count("connection refused") == 1


# signals: a real process, whose service is made for it

PROGRAM = """
import sys, threading
from nvr_rag.running import worker, working
from nvr_rag.settings import load_settings
working.POLL_SECONDS = working.LOOK_SECONDS = worker.LOOK_SECONDS = 0.01

def waits(task):
    if sys.argv[1] == "heeds":
        task.stop.wait()
        task.check()
    threading.Event().wait()

class Smith:
    name, work, job_kinds = "smith", "forge", ("anvil",)
    def __init__(self):
        self.loop = working.JobLoop("smith", {"anvil": waits})
        self.start, self.stop, self.problem = self.loop.start, self.loop.stop, self.loop.problem

worker.installed = lambda: [Smith()]
worker.run_worker(load_settings(), on_ready=lambda _: print("ready", flush=True),
                  on_stop=lambda: print("stopping", flush=True))
print("ended", flush=True)
"""


@contextmanager
def smithy(manner: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, manner], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(house: House, number: signal.Signals) -> None:
    job_id = jobs.enqueue(house.database, "anvil", {})
    with smithy("heeds") as process:
        assert line(process) == "ready"
        soon(lambda: jobs.get(house.database, job_id).state == "running")
        process.send_signal(number)
        assert [line(process), line(process)] == ["stopping", "ended"]
        assert process.wait(60) == 0
    assert (jobs.get(house.database, job_id).state, jobs.get(house.database, job_id).attempts) == ("queued", 0)
    assert processes.alive(house.database, "worker") == []


def test_a_second_signal_ends_it_at_once(house: House) -> None:
    job_id = jobs.enqueue(house.database, "anvil", {})
    with smithy("stubborn") as process:
        assert line(process) == "ready"
        soon(lambda: jobs.get(house.database, job_id).state == "running")
        process.send_signal(signal.SIGTERM)
        assert line(process) == "stopping"
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert time.monotonic() - asked < working.STOP_SECONDS / 2
    assert jobs.get(house.database, job_id).state == "running"  # until its lease ends
