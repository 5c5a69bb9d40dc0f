"""Laps as jobs: claimed, kept alive, told, finished, failed, put back, gone on with. Their steps do nearly nothing."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import insert, update

from nvr_rag import deployments, indexes, jobs, retries
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, InvalidInput, NotFound, NvrError, StoreUnavailable
from nvr_rag.jobs import Hold, Job, Status
from nvr_rag.retries import Backoff, RetryPolicy
from nvr_rag.running import processes, working
from nvr_rag.workspace import Workspace
from training import loop, running, service
from training.children import run_child
from training.commands import retrain
from training.gate import Outcome
from training.lap import Lap, early
from training.loop import Request
from training.runs import LapBusy, run_folder
from training.service import TrainerService

Step = Callable[[Lap], dict[str, Any]]


def finds_nothing(_lap: Lap) -> dict[str, Any]:
    counts = {"splits": {"train": 0}, "judgments": {"origins": {}}, "hashes": {}}
    return {**counts, "decision": early("training", "there is nothing to learn", Outcome.REJECT)}


@pytest.fixture
def opened(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with an empty collection "default", quick heartbeats, and laps that end at once with a rejection."""
    workspace.create_collection("default")
    monkeypatch.setattr(working, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(working, "LOOK_SECONDS", 0.01)
    steps_are(monkeypatch, collect=finds_nothing)
    return workspace


def steps_are(patch: pytest.MonkeyPatch, **steps: Step) -> None:
    patch.setattr(loop, "STEPS", tuple(steps.items()))


def asked(workspace: Workspace, run: str = "lap", **options: Any) -> Job:
    """A job that the worker "me" has just claimed."""
    running.ask(workspace, Request(collection="default", run=run, **options))
    job = jobs.claim(workspace.database, "me", [running.KIND])
    assert job is not None
    return job


def work(workspace: Workspace, job: Job, stop: threading.Event | None = None) -> Any:
    return running.run_job(workspace, job, "me", stop=stop or threading.Event())


def now(workspace: Workspace, job: Job) -> Job:
    return jobs.get(workspace.database, job.id)


# how a job ends


def test_a_lap_that_ends_leaves_its_result_in_the_job(opened: Workspace) -> None:
    job = asked(opened)
    result = work(opened, job)
    ended = now(opened, job)
    assert (ended.state, ended.error, ended.result) == ("done", None, result)
    folder = opened.home / "runs" / "lap"
    assert result == {
        "run": "lap",
        "outcome": "reject",
        "promoted": False,
        "reasons": ["there is nothing to learn"],
        "next_steps": [],
        "compared_with": None,
    }
    assert str(opened.home) not in str(ended)  # others read it too
    assert (folder / "report.html").is_file()


def test_a_lap_that_fails_leaves_the_reason_in_the_job(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_lap: Lap) -> dict[str, Any]:
        raise NvrError("the disk is full; make room")

    steps_are(monkeypatch, collect=fails)
    job = asked(opened)
    assert work(opened, job) is None
    assert (now(opened, job).state, now(opened, job).error) == ("failed", "the disk is full; make room")


def test_what_nobody_has_foreseen_is_in_the_job_and_raised(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_are(monkeypatch, collect=lambda lap: {"x": 1 / 0})
    job = asked(opened)
    with pytest.raises(ZeroDivisionError):
        work(opened, job)
    ended = now(opened, job)
    assert (ended.state, ended.error) == ("failed", "unexpected ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    "payload", [{"run": "x", "collection": "default", "colour": 1}, {"collection": "default"}, {}, {"run": "../x"}]
)
def test_a_job_of_another_release_fails_in_words(opened: Workspace, payload: dict[str, Any]) -> None:
    with opened.database.write() as connection:
        connection.execute(insert(t.Job).values(kind=running.KIND, payload=payload))
    job = jobs.claim(opened.database, "me", [running.KIND])
    assert job is not None
    assert running.left_behind(opened, "default", failed=True) is None
    assert work(opened, job) is None
    failed = now(opened, job)
    assert failed.state == "failed"
    assert failed.error is not None
    assert "another release" in failed.error or "is not the id of a lap" in failed.error


# stopping


def waits(lap: Lap) -> dict[str, Any]:
    """Works until it is told to stop."""
    assert lap.stop.wait(10), "nobody has told the lap to stop"
    lap.check_stop()
    raise AssertionError("unreachable")


def test_a_lap_that_is_stopped_waits_for_whoever_comes_next(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    steps_are(monkeypatch, collect=waits)
    job = asked(opened)
    threading.Timer(0.05, stop.set).start()
    assert work(opened, job, stop) is None
    assert (now(opened, job).state, now(opened, job).error) == ("queued", None)
    steps_are(monkeypatch, collect=finds_nothing)
    again = jobs.claim(opened.database, "me", [running.KIND])
    assert again is not None
    assert work(opened, again)["run"] == "lap"


def test_ctrl_c_puts_the_job_back(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_lap: Lap) -> dict[str, Any]:
        raise KeyboardInterrupt

    steps_are(monkeypatch, collect=interrupted)
    job = asked(opened)
    with pytest.raises(KeyboardInterrupt):
        work(opened, job)
    assert now(opened, job).state == "queued"


def test_a_lap_whose_job_was_taken_away_stops_and_leaves_the_job_alone(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(lap: Lap) -> dict[str, Any]:
        with opened.database.write() as connection:
            connection.execute(update(t.Job).values(worker="somebody else"))
        return waits(lap)

    steps_are(monkeypatch, collect=loses)
    job = asked(opened)
    assert work(opened, job) is None
    assert now(opened, job).state == "running"
    assert jobs.heartbeat(opened.database, job.id, "somebody else") is Hold.MINE


def test_a_lap_that_another_process_works_on_is_put_back(opened: Workspace) -> None:
    """Its lease ran out, because its machine slept, and it has not noticed yet."""
    job = asked(opened)
    with run_folder(opened.home, "lap").owned(), pytest.raises(LapBusy, match="another process works on the lap lap"):
        work(opened, job)
    assert now(opened, job).state == "queued"


# how far it is


def test_those_who_follow_see_how_far_it_is_and_the_lease_is_kept(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tells(lap: Lap) -> dict[str, Any]:
        lap.count(3, 10, "chunks")
        until = time.monotonic() + 10
        while not now(opened, job).progress.get("done"):
            assert time.monotonic() < until
            time.sleep(0.01)
        seen.append(dict(now(opened, job).progress))
        return finds_nothing(lap)

    seen: list[dict[str, Any]] = []
    steps_are(monkeypatch, collect=tells)
    job = asked(opened)
    with opened.database.write() as connection:
        connection.execute(update(t.Job).values(lease_until=t.now()))  # about to run out
    work(opened, job)
    assert seen == [{"step": "collect", "number": 1, "steps": 1, "done": 3, "total": 10, "words": "chunks"}]
    assert now(opened, job).state == "done"


def test_workers_that_died_before_a_finished_step_do_not_count(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(lap: Lap) -> dict[str, Any]:
        attempts.append(now(opened, job).attempts)
        return finds_nothing(lap)

    attempts: list[int] = []
    steps_are(monkeypatch, first=lambda lap: {}, collect=looks)
    job = asked(opened)
    with opened.database.write() as connection:
        connection.execute(update(t.Job).values(attempts=jobs.MAX_ATTEMPTS))
    work(opened, job)
    assert attempts == [1]


# asking, and going on


def test_a_second_lap_while_one_is_there_is_refused(opened: Workspace) -> None:
    asked(opened)
    with pytest.raises(Conflict, match="retrain job 1 is running"):
        running.ask(opened, running.new_request("default"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"collection": "nowhere"}, NotFound, "no collection 'nowhere'; there are: default"),
        ({"rule": "best"}, InvalidInput, "the rule is one of naive, margin-pos, perc-pos, not 'best'"),
        ({"recipe": "slow"}, InvalidInput, "there is no recipe 'slow'"),
        ({"recipe": "/nowhere/recipe.toml"}, InvalidInput, "/nowhere/recipe.toml cannot be read"),
    ],
)
def test_what_cannot_be_asked_for_is_no_job(
    opened: Workspace, options: dict[str, Any], error: type[NvrError], words: str
) -> None:
    with pytest.raises(error, match=words):
        running.ask(opened, running.new_request(**{"collection": "default", **options}))
    assert jobs.unfinished(opened.database) == []


def test_what_was_left_behind_here_can_be_gone_on_with_at_once(opened: Workspace) -> None:
    job = asked(opened)
    folder = run_folder(opened.home, "lap")
    assert running.left_behind(opened, "default", failed=False) is None  # on another machine, for all that is known
    with folder.owned():
        assert running.left_behind(opened, "default", failed=False) is None  # at work
    left = running.left_behind(opened, "default", failed=False)
    assert left is not None
    assert left.id == job.id
    assert running.left_behind(opened, "other", failed=False) is None


def test_what_waits_is_left_to_a_server_if_there_is_one(opened: Workspace) -> None:
    job_id = running.ask(opened, running.new_request("default"))
    left = running.left_behind(opened, "default", failed=False)
    assert left is not None
    assert left.id == job_id
    processes.announce(opened.database, "serve")
    assert running.left_behind(opened, "default", failed=True) is None


def test_only_the_newest_lap_is_resumed_and_only_when_it_has_failed(opened: Workspace) -> None:
    for run, error in (("first", "no room"), ("second", None), ("third", "no memory")):
        job = asked(opened, run)
        jobs.finish(opened.database, job.id, "me", result=None if error else {"run": run}, error=error)
        left = running.left_behind(opened, "default", failed=True)
        assert (left.payload["run"] if left else None) == (run if error else None)
        assert running.left_behind(opened, "default", failed=False) is None


def test_the_files_of_laps_that_nobody_can_go_on_with_make_room(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(lap: Lap) -> dict[str, Any]:
        lap.folder.corpus.mkdir()
        raise NvrError("no room")

    steps_are(monkeypatch, collect=fails)
    old, new = run_folder(opened.home, "old"), run_folder(opened.home, "new")
    work(opened, asked(opened, "old"))
    assert old.corpus.is_dir()
    work(opened, asked(opened, "new"))
    assert (old.corpus.exists(), new.corpus.exists()) == (False, True)


@pytest.mark.parametrize(("wanted", "beside_a_server", "threads"), [(None, False, 4), (None, True, 3), (2, True, 2)])
def test_a_lap_leaves_a_core_to_a_server(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch, wanted: int | None, beside_a_server: bool, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 2, 3}, raising=False)
    opened.settings.training.threads = wanted
    if beside_a_server:
        processes.announce(opened.database, "serve")
    work(opened, asked(opened))
    config = run_folder(opened.home, "lap").config()
    assert config is not None
    assert config.threads == threads


# the server's side


@pytest.fixture
def trainer(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainerService]:
    monkeypatch.setattr(working, "POLL_SECONDS", 0.01)
    made = TrainerService()
    assert made.problem() == "the trainer is not running"
    made.start(opened)
    yield made
    made.stop()
    assert made.problem() == "the trainer is not running"


def test_a_server_runs_what_it_is_asked_for(opened: Workspace, trainer: TrainerService) -> None:
    for run in ("first", "second"):
        job_id = running.ask(opened, Request(collection="default", run=run))
        job = until(opened, job_id, lambda job: job.finished)
        assert (job.state, (job.result or {})["run"]) == ("done", run)
    assert trainer.problem() is None
    assert list(trainer.job_kinds) == [running.KIND]


def test_a_server_survives_what_nobody_has_foreseen(
    opened: Workspace, trainer: TrainerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_are(monkeypatch, collect=lambda lap: {"x": 1 / 0})
    job_id = running.ask(opened, running.new_request("default"))
    assert until(opened, job_id, lambda job: job.finished).state == "failed"
    assert trainer.problem() is None


def test_a_server_that_stops_leaves_its_lap_to_the_next_one(
    opened: Workspace, trainer: TrainerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_are(monkeypatch, collect=waits)
    job_id = running.ask(opened, running.new_request("default"))
    until(opened, job_id, lambda job: job.state == "running")
    trainer.stop()
    assert jobs.get(opened.database, job_id).state == "queued"


def test_without_the_training_extra_a_server_takes_no_laps(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "missing_packages", lambda: ["datasets"])
    assert list(TrainerService().job_kinds) == []


def until(workspace: Workspace, job_id: int, there: Callable[[Job], bool]) -> Job:
    """The job once it is as it should be."""
    latest = time.monotonic() + 20
    while not there(job := jobs.get(workspace.database, job_id)):
        assert time.monotonic() < latest, job
        time.sleep(0.01)
    return job


# what older laps have left


def test_a_candidate_that_nobody_has_promoted_is_given_up_when_another_lap_begins(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proposes(lap: Lap) -> dict[str, Any]:
        with lap.workspace.database.read() as connection:
            now = deployments.serving(connection, "default")
            encoder = indexes.get(connection, now.index_id).encoder
        if lap.config.run != "trial":
            lap.workspace.propose("default", encoder, run=lap.config.run)
        return finds_nothing(lap)

    def state(run: str) -> str:
        with opened.database.read() as connection:
            found = deployments.of_run(connection, run)
        assert found is not None
        return found.state

    steps_are(monkeypatch, collect=proposes)
    work(opened, asked(opened, "first"))
    assert state("first") == "candidate"
    work(opened, asked(opened, "trial", dry_run=True))
    assert state("first") == "candidate"  # a dry run changes nothing
    work(opened, asked(opened, "second"))
    assert (state("first"), state("second")) == ("rejected", "candidate")
    with opened.database.read() as connection:
        assert [index.id for index in indexes.kept(connection)] == [1, 3]


def test_a_lap_whose_lease_has_run_out_can_be_gone_on_with(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process was killed before it had begun with the lap's folder."""
    monkeypatch.setattr(jobs, "LEASE_SECONDS", -1.0)
    job = asked(opened)
    found = running.left_behind(opened, "default", failed=False)
    assert found is not None
    assert found.id == job.id


# cancelling


def proposes(lap: Lap) -> dict[str, Any]:
    """Makes a candidate, as the step `build` does."""
    with lap.workspace.database.read() as connection:
        serving = deployments.serving(connection, "default")
        encoder = indexes.get(connection, serving.index_id).encoder
    return {"deployment": lap.workspace.propose("default", encoder, run=lap.config.run).id}


def cancels(lap: Lap) -> dict[str, Any]:
    """Somebody cancels the lap while it is at work."""
    [job] = jobs.unfinished(lap.workspace.database)
    jobs.cancel(lap.workspace.database, job.id)
    return waits(lap)


def test_a_lap_that_is_cancelled_stops_and_its_candidate_is_given_up(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_are(monkeypatch, register=lambda lap: {"encoder": "0" * 64}, build=proposes, judge=cancels)
    job = asked(opened)
    assert work(opened, job) is None
    ended = now(opened, job)
    assert (ended.state, ended.status, ended.error) == ("failed", Status.CANCELLED, "cancelled")
    with opened.database.read() as connection:
        found = deployments.of_run(connection, "lap")
        assert found is not None
        assert found.state == "rejected"
        assert [index.id for index in indexes.kept(connection)] == [1]


def test_a_lap_whose_candidate_was_given_up_is_not_gone_on_with(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_are(monkeypatch, register=lambda lap: {"encoder": "0" * 64}, build=proposes, judge=cancels)
    job = asked(opened)
    work(opened, job)
    jobs.retry(opened.database, job.id)
    again = jobs.claim(opened.database, "me", [running.KIND])
    assert again is not None
    assert work(opened, again) is None
    error = now(opened, job).error
    assert error is not None
    assert error.startswith("lap lap was cancelled and its candidate given up; begin a new one: nvr-rag retrain")


def test_a_lap_that_was_cancelled_early_can_be_gone_on_with(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_are(monkeypatch, first=lambda lap: {"seen": 1}, collect=cancels)
    job = asked(opened)
    work(opened, job)
    assert now(opened, job).status is Status.CANCELLED
    steps_are(monkeypatch, first=lambda lap: {"seen": 2}, collect=finds_nothing)
    jobs.retry(opened.database, job.id)
    again = jobs.claim(opened.database, "me", [running.KIND])
    assert again is not None
    assert work(opened, again)["outcome"] == "reject"
    assert run_folder(opened.home, "lap").finished("first")["seen"] == 1  # type: ignore[index]


def test_cancelling_a_lap_ends_its_child_process(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real way to run a child, with a child that would take an hour."""
    pids: list[int] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        program = "import time; time.sleep(3600)"
        pids.append((child := real([command[0], "-c", program], **options)).pid)
        return child

    def mines(lap: Lap) -> dict[str, Any]:
        threading.Timer(0.3, lambda: jobs.cancel(opened.database, job.id)).start()
        return run_child("mine", lap.folder, threads=1, report=lambda line: None, stop=lap.stop)

    monkeypatch.setattr(subprocess, "Popen", popen)
    steps_are(monkeypatch, mine=mines)
    job = asked(opened)
    began = time.monotonic()
    assert work(opened, job) is None
    assert time.monotonic() - began < 20
    assert now(opened, job).status is Status.CANCELLED
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_server_goes_on_after_a_cancelled_lap(
    opened: Workspace, trainer: TrainerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_are(monkeypatch, collect=waits)
    job_id = running.ask(opened, running.new_request("default"))
    until(opened, job_id, lambda job: job.state == "running")
    jobs.cancel(opened.database, job_id)
    assert until(opened, job_id, lambda job: job.finished).status is Status.CANCELLED
    steps_are(monkeypatch, collect=finds_nothing)
    second = running.ask(opened, running.new_request("default"))
    assert until(opened, second, lambda job: job.finished).state == "done"
    assert trainer.problem() is None


# trying again


def test_a_lap_in_a_server_is_tried_again_when_the_store_was_away(
    opened: Workspace, trainer: TrainerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once_away(lap: Lap) -> dict[str, Any]:
        tries.append(1)
        if len(tries) == 1:
            raise StoreUnavailable("the store is slow")
        return finds_nothing(lap)

    tries: list[int] = []
    quick = Backoff(first_seconds=0.01, factor=2.0, cap_seconds=0.1)
    monkeypatch.setattr(retries, "JOBS", RetryPolicy(attempts=5, backoff=quick))
    steps_are(monkeypatch, collect=once_away)
    job_id = running.ask(opened, running.new_request("default"))
    done = until(opened, job_id, lambda job: job.finished)
    assert (done.state, len(tries)) == ("done", 2)
    assert [one["error"] for one in done.failures] == ["the store is slow"]


def test_whoever_looks_on_hears_at_once_that_the_store_is_away(
    opened: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_lap: Lap) -> dict[str, Any]:
        raise StoreUnavailable("the store is slow")

    steps_are(monkeypatch, collect=away)
    job = asked(opened)
    assert work(opened, job) is None
    assert (now(opened, job).state, now(opened, job).error) == ("failed", "the store is slow")


# promoting what was compared before


def test_only_what_was_compared_with_what_serves_now_is_promoted(
    opened: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lap that was begun without --yes and gone on with later: somebody may have promoted something else."""
    assert retrain._serves_still(opened, "default", {"compared_with": 1})
    assert capsys.readouterr().err == ""
    for result in ({"compared_with": 7}, {"compared_with": None}, {}):
        assert not retrain._serves_still(opened, "default", result)
        assert "Not promoted: what serves now, deployment 1, is not what" in capsys.readouterr().err
