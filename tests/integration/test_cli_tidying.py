"""The commands index compact and prune, here and by a server, and the job that does it."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from ingest import handlers
from nvr_rag import jobs, promotion
from nvr_rag.commands import common
from nvr_rag.db import tables as t
from nvr_rag.running import processes, working
from nvr_rag.running.working import JobLoop
from nvr_rag.upkeep import compaction
from tests.integration.command_line import CommandLine
from tests.integration.lifecycle import Doubles, loading
from tests.support import document


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a data folder with a fox and a whale, one of them changed."""
    line = CommandLine(home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    with line.house() as house:
        house.put(document("fox", "red fox"), document("whale", "blue whale"))
        house.catch_up()
        house.put(document("whale", "grey whale"))
        house.catch_up()
    return line


def test_compacting_switches_to_a_copy(run: CommandLine) -> None:
    found = run.json("index", "compact")
    assert (found["index"], found["copied_from"], found["copied"], found["encoded"]) == (2, 1, 2, 0)
    assert run.json("search", "whale")["deployment"]["id"] == 2
    listed = run.json("index", "list")["indexes"]
    assert [(one["id"], one["copied_from"], one["pace"]) for one in listed] == [(1, None, None), (2, 1, None)]
    assert run.json("deploy", "rollback")["serving"] == 1


def test_compacting_tells_people_what_happened(run: CommandLine) -> None:
    result = run("index", "compact")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Index 2 answers for default now, after ")
    assert "2 vectors copied, 0 encoded" in result.stdout
    assert "nvr-rag deploy rollback --collection default" in result.stdout


def test_it_asks_before_it_takes_a_way_back(run: CommandLine, doubles: Doubles) -> None:
    with run.house() as house:
        candidate = doubles.candidate(house.workspace, 1)
        promotion.promote(house.workspace, candidate.id, collection="default")
    refused = run.json("index", "compact", code=2)
    assert "say --yes" in refused["error"]["message"]
    assert run.json("index", "compact", "--yes")["copied_from"] == 2
    states = {one["id"]: one["state"] for one in run.json("deploy", "list")["deployments"]}
    assert states == {1: "retired", 2: "previous", 3: "serving"}


def test_an_unknown_collection_is_told(run: CommandLine) -> None:
    assert "no collection 'nobody'" in run.json("index", "compact", "-c", "nobody", code=1)["error"]["message"]


def test_beside_a_server_the_server_does_it(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "DEAD_AFTER_SECONDS", 600.0)  # it says once that it is alive
    with run.house() as house, loading(house.workspace):
        loop = JobLoop("jobs", handlers.HANDLERS)
        loop.start(house.workspace)
        try:
            found = run.json("index", "compact")
        finally:
            loop.stop()
        assert (found["index"], found["copied"], found["encoded"]) == (2, 2, 0)
        job = jobs.of_collection(house.database, compaction.KIND, "default")[0]
        assert (job.state, job.payload["index_id"]) == ("done", 1)
        assert sorted(house.texts("whale")) == ["grey whale", "red fox"]


def test_a_job_whose_worker_died_after_the_switch_does_nothing_more(run: CommandLine) -> None:
    with run.house() as house:
        for _ in range(2):
            jobs.enqueue_alone(house.database, compaction.KIND, "default", {"index_id": 1})
            job = jobs.claim(house.database, "w", (compaction.KIND,))
            assert job is not None
            working.run(house.workspace, job, "w", handlers.HANDLERS[compaction.KIND], stop=threading.Event())
        done = jobs.of_collection(house.database, compaction.KIND, "default")
        assert [one.state for one in done] == ["done", "done"]
        assert done[1].result == {"collection": "default"}


def test_pruning_shows_asks_and_frees(run: CommandLine) -> None:
    assert run("prune").stdout == "There is nothing to remove.\n"
    with run.house() as house, house.database.write() as connection:
        connection.execute(update(t.DocumentVersion).values(created_at=t.now() - timedelta(days=31)))
    shown = run("prune", "--dry-run")
    assert shown.exit_code == 0, shown.output
    rows = [line.split("\t") for line in shown.stdout.splitlines()]
    assert rows[1][:3] == ["versions", "1", "10 B"]
    assert shown.stdout.splitlines()[-1] == "Would free about 10 B."
    refused = run.json("prune", code=2)
    assert "say --yes" in refused["error"]["message"]
    done = run.json("prune", "--yes")
    counts = {one["rule"]: one["count"] for one in done["removed"] if one["count"]}
    assert (done["dry_run"], counts, done["bytes"]) == (False, {"versions": 1, "chunks": 1}, 20)
    assert run("prune", "--yes").stdout == "There is nothing to remove.\n"
    assert run.json("search", "whale")["hits"][0]["text"] == "grey whale"


def test_a_policy_that_makes_no_sense_is_refused(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_RETENTION__VERSION_DAYS", "-1")
    assert "NVR_RETENTION__VERSION_DAYS" in run.json("prune", code=1)["error"]["message"]
