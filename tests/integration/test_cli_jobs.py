"""`nvr-rag jobs`: what is listed, shown, cancelled, tried again, and refused in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from nvr_rag import jobs
from nvr_rag.commands import common
from nvr_rag.commands.jobs import progress_in_words
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.retries import RetryDecision
from nvr_rag.running import processes
from tests.integration.command_line import CommandLine
from tests.support import House


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a data folder with an empty collection "default"."""
    line = CommandLine(home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    return line


def error(run: CommandLine, *arguments: str, code: int = 1) -> str:
    return str(run.json(*arguments, code=code)["error"]["message"])


def in_house(run: CommandLine, work: Callable[[House], Any]) -> Any:
    with run.house() as house:
        return work(house)


def begin(house: House) -> jobs.Job:
    job = jobs.claim(house.database, "someone", ["verify", "retrain"])
    assert job is not None
    return job


def test_without_jobs_it_says_so(run: CommandLine) -> None:
    assert run("jobs", "list").stdout == "There are no jobs.\n"
    assert run("jobs", "list", "--kind", "verify").stdout == "There are no such jobs.\n"
    assert run.json("jobs", "list") == {"jobs": [], "more": False}


def test_jobs_are_listed_newest_first_with_their_state_and_progress(run: CommandLine) -> None:
    with run.house() as house:
        jobs.enqueue(house.database, "verify", {"index_id": 1})
        begin(house)
        jobs.heartbeat(house.database, 1, "someone", {"checked": 12000})
        jobs.enqueue(house.database, "retrain", {"collection": "default"})
        jobs.enqueue(house.database, "retrain", {"collection": "other"})
        jobs.cancel(house.database, 3)
    head, third, second, first = run("jobs", "list").stdout.splitlines()
    assert head.split("\t") == ["id", "kind", "collection", "status", "attempts", "created (UTC)", "now"]
    assert [cell for i, cell in enumerate(first.split("\t")) if i != 5] == [
        *("1", "verify", "", "running", "1", "checked 12,000")
    ]
    assert second.split("\t")[:5] == ["2", "retrain", "default", "queued", "0"]
    assert third.split("\t")[:5] == ["3", "retrain", "other", "cancelled", "0"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", first.split("\t")[5])
    found = run.json("jobs", "list", "--limit", "2")
    assert ([job["id"] for job in found["jobs"]], found["more"]) == ([3, 2], True)
    assert "These are the newest 2" in run("jobs", "list", "--limit", "2").stderr
    assert "newest" not in run("jobs", "list", "--limit", "3").stderr


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--state", "queued"], [2]),
        (["--state", "cancelled"], [3]),
        (["--state", "failed"], []),
        (["--kind", "retrain"], [3, 2]),
        (["--collection", "default"], [2]),
        (["--collection", "default", "--state", "running"], []),
    ],
)
def test_only_some_are_listed(run: CommandLine, options: list[str], ids: list[int]) -> None:
    with run.house() as house:
        jobs.enqueue(house.database, "verify", {"index_id": 1})
        begin(house)
        jobs.enqueue(house.database, "retrain", {"collection": "default"})
        jobs.enqueue(house.database, "retrain", {"collection": "other"})
        jobs.cancel(house.database, 3)
    assert [job["id"] for job in run.json("jobs", "list", *options)["jobs"]] == ids


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["list", "--state", "lost"], "the state is one of queued, running, cancelling, done, failed, cancelled"),
        (["list", "--limit", "0"], "Invalid value for '--limit'"),
        (["show", "x"], "Invalid value for 'ID'"),
        (["cancel", "0"], "Invalid value for 'ID'"),
        (["retry", str(2**40)], "Invalid value for 'ID'"),
    ],
)
def test_wrong_usage_is_told(run: CommandLine, command: list[str], words: str) -> None:
    assert words in error(run, "jobs", *command, code=2)


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
def test_a_job_that_is_not_there(run: CommandLine, command: str) -> None:
    assert error(run, "jobs", command, "7") == "there is no job 7; nvr-rag jobs list shows those that there are"


def test_a_job_is_shown_with_everything_that_is_known(run: CommandLine) -> None:
    with run.house() as house:
        jobs.enqueue(house.database, "retrain", {"collection": "default", "run": "x"})
        again = RetryDecision(again=True, delay_seconds=3600, words="the store is \x1b[31mslow")
        jobs.fail(house.database, begin(house).id, "someone", again)
    lines = dict(line.split(":", 1) for line in run("jobs", "show", "1").stdout.splitlines() if ":" in line)
    told = {name: value.strip() for name, value in lines.items()}
    assert (told["job"], told["kind"], told["collection"], told["status"]) == ("1", "retrain", "default", "queued")
    assert re.fullmatch(r"not before \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: the store is slow", told["waits"])
    assert json.loads(told["asked for"]) == {"collection": "default", "run": "x"}
    found = run.json("jobs", "show", "1")
    assert (found["status"], found["attempts"], found["payload"]["run"]) == ("queued", 1, "x")
    assert found["due_at"].endswith("+00:00")
    assert found["failures"][0]["attempt"] == 1


def test_a_job_that_is_given_up_shows_why(run: CommandLine) -> None:
    with run.house() as house:
        jobs.enqueue(house.database, "verify", {})
        jobs.finish(house.database, begin(house).id, "someone", result=None, error="the disk is full")
    assert "the disk is full" in run("jobs", "list").stdout
    shown = run("jobs", "show", "1").stdout
    assert re.search(r"(?m)^error: +the disk is full$", shown)
    assert re.search(r"(?m)^  attempt 1, \S+\+00:00: the disk is full$", shown)


def test_a_job_whose_worker_has_died_is_told(run: CommandLine) -> None:
    with run.house() as house:
        jobs.enqueue(house.database, "verify", {})
        begin(house)
        with house.database.write() as connection:
            ago = clock.now(connection) - timedelta(seconds=1)
            connection.execute(update(t.Job).values(lease_until=ago))
    assert "its worker has died" in run("jobs", "list").stdout
    assert run.json("jobs", "show", "1")["lapsed"] is True


@pytest.mark.parametrize(
    "payload", [{}, {"collection": ["x"]}, {"collection": 7}, {"deep": {"er": [1, None, "\x07é"]}}]
)
def test_a_job_of_a_kind_that_nobody_knows_is_shown(run: CommandLine, payload: dict[str, Any]) -> None:
    with run.house() as house, house.database.write() as connection:
        progress = {"step": 3, "total": "many", "done": None, "odd_name": [1], "words": {"a": 1}}
        connection.execute(insert(t.Job).values(kind="from-the-future", payload=payload, progress=progress))
    assert "from-the-future" in run("jobs", "list").stdout
    assert run("jobs", "show", "1").exit_code == 0
    assert run.json("jobs", "show", "1")["payload"] == payload
    assert run.json("jobs", "list", "--collection", "x")["jobs"] == []
    assert run("jobs", "cancel", "1").exit_code == 0
    assert "No server or worker that takes such jobs" in run("jobs", "retry", "1").stderr or "collection" in payload


def test_a_job_that_waits_is_cancelled_and_tried_again(run: CommandLine) -> None:
    in_house(run, lambda house: jobs.enqueue(house.database, "verify", {}))
    assert run("jobs", "cancel", "1").stdout == "Cancelled verify job 1.\n"
    assert run.json("jobs", "cancel", "1")["status"] == "cancelled"
    result = run("jobs", "retry", "1")
    assert result.stdout == "Queued verify job 1 again.\n"
    assert "start nvr-rag serve or nvr-rag worker" in result.stderr
    assert "verify job 1 is queued: it goes on by itself" in error(run, "jobs", "retry", "1")
    in_house(run, lambda house: processes.announce(house.database, "worker", job_kinds=["verify"]))
    run("jobs", "cancel", "1")
    assert run("jobs", "retry", "1").stderr == ""
    assert run.json("jobs", "show", "1")["status"] == "queued"


def test_the_worker_of_a_job_that_runs_is_asked_to_stop(run: CommandLine) -> None:
    with run.house() as house:
        jobs.enqueue(house.database, "verify", {})
        begin(house)
    assert run("jobs", "cancel", "1").stdout.startswith("Asked the worker of verify job 1 to stop; nvr-rag jobs show 1")
    assert run.json("jobs", "show", "1")["status"] == "cancelling"
    assert "cancelling" in run("status").stdout


def test_what_has_ended_well_is_neither_cancelled_nor_done_again(run: CommandLine) -> None:
    with run.house() as house:
        jobs.enqueue(house.database, "verify", {})
        jobs.finish(house.database, begin(house).id, "someone", result={"clean": True}, error=None)
    assert "has ended already (done): there is nothing to cancel" in error(run, "jobs", "cancel", "1")
    assert "is done: it has ended well; only a failed one can be tried again" in error(run, "jobs", "retry", "1")
    assert re.search(r'(?m)^result: +\{"clean": true\}$', run("jobs", "show", "1").stdout)


def test_workers_are_shown_in_the_status(run: CommandLine) -> None:
    assert re.search(r"(?m)^workers: +none$", run("status").stdout)
    in_house(run, lambda house: processes.announce(house.database, "worker", job_kinds=["verify", "retrain"]))
    [worker] = run.json("status")["workers"]
    assert worker["job_kinds"] == ["verify", "retrain"]
    assert re.search(rf"(?m)^workers: +verify, retrain \(process {worker['pid']} on ", run("status").stdout)


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ({}, ""),
        ({"checked": 12000}, "checked 12,000"),
        (
            {"step": "mine", "number": 2, "steps": 8, "done": 3, "total": 10, "words": "queries"},
            "2/8 mine, 3 of 10 queries",
        ),
        ({"step": "train", "number": 3, "steps": 8, "done": 0, "total": None, "words": ""}, "3/8 train"),
        ({"done": 1500, "total": None, "words": "chunks"}, "1,500 chunks"),
        ({"words": "copying"}, "copying"),
        ({"bytes_freed": 5, "done": 1, "total": 2}, "1 of 2, bytes freed 5"),
    ],
)
def test_progress_in_words(progress: dict[str, Any], words: str) -> None:
    assert progress_in_words(progress) == words
