"""`nvr-rag retrain` and `nvr-rag mine`: what they do and say, how they end, and how they go on with what was left."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from nvr_rag import cli, jobs
from nvr_rag.commands import common
from nvr_rag.running import processes
from nvr_rag.workspace import Workspace
from tests.integration.lap_support import (
    TRAIN,
    Finished,
    Laboratory,
    lab,
    small_laps,
    undisturbed,
)
from training import running
from training.commands import following
from training.splits import Split

__all__ = ["lab", "small_laps", "undisturbed"]

pytestmark = pytest.mark.usefixtures("small_laps")

PROMOTE = "nvr-rag deploy promote 2 --collection default"
ROLLBACK = "nvr-rag deploy rollback --collection default"


class CommandLine:
    """Runs commands on a laboratory."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab

    def __call__(self, *arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli.app, list(arguments), input=stdin, prog_name="nvr-rag")

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        result = self(*arguments, "--json")
        assert result.exit_code == code, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    def error(self, *arguments: str, code: int = 1) -> str:
        return str(self.json(*arguments, code=code)["error"]["message"])

    def jobs(self) -> list[jobs.Job]:
        with self.lab.open() as workspace:
            return jobs.of_collection(workspace.database, running.KIND, "default")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Laboratory], CommandLine]:
    """A command line on a laboratory."""

    def used(lab: Laboratory) -> CommandLine:
        monkeypatch.setattr(common, "open_workspace", lab.open)
        return CommandLine(lab)

    return used


@pytest.fixture
def run(lab: Laboratory, use: Callable[[Laboratory], CommandLine]) -> CommandLine:
    """The same, and people have said what is right."""
    lab.say()
    return use(lab)


Left = Callable[..., CommandLine]


@pytest.fixture
def left(undisturbed: Finished, use: Callable[[Laboratory], CommandLine], tmp_path: Path) -> Left:
    """What is there when a lap has come to a step: its process died there, or, with `error`, it failed."""

    def leave(step: str, *, error: str | None = None, **options: Any) -> CommandLine:
        line = use(undisturbed.before[step].copy(tmp_path / "left"))
        with line.lab.open() as workspace:
            running.ask(workspace, running.Request(collection="default", run="lap", **options))
            job = jobs.claim(workspace.database, "dead", [running.KIND])
            assert job is not None
            if error is not None:
                jobs.finish(workspace.database, job.id, "dead", result=None, error=error)
        return line

    return leave


# a whole lap


def test_a_lap_from_the_command_line_and_the_commands_that_it_names(run: CommandLine) -> None:
    told = run.json("retrain")
    assert (told["collection"], told["outcome"], told["promoted"]) == ("default", "accept", False)
    assert any(reason.startswith("nDCG@10 on 30 holdout queries rose") for reason in told["reasons"])
    report = json.loads(Path(told["report"]["json"]).read_text())
    assert (report["run"], report["outcome"]) == (told["run"], "accept")
    assert Path(told["report"]["page"]).is_file()
    [job] = run.jobs()
    assert (job.state, job.result) == (
        "done",
        {name: told[name] for name in told if name not in ("collection", "report")},
    )
    [step] = told["next_steps"]
    assert step["command"] == PROMOTE
    assert run(*step["command"].split()[1:]).exit_code == 0
    assert run.lab.states() == {1: "previous", 2: "serving"}
    assert run(*ROLLBACK.split()[1:]).exit_code == 0
    assert run.lab.states() == {1: "serving", 2: "previous"}


def test_without_enough_judgments_it_says_how_many_are_needed(
    lab: Laboratory, use: Callable[[Laboratory], CommandLine]
) -> None:
    result = use(lab)("retrain", "--yes")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "There is not enough evidence; what served still serves."
    assert lines[1].strip().startswith("there are no judgments yet; send feedback on hits (POST /v1/feedback")
    assert lines[2].startswith("Report: ")
    assert Path(lines[2].removeprefix("Report: ")).is_file()


def test_a_dry_run_trains_nothing(run: CommandLine) -> None:
    told = run.json("retrain", "--dry-run", "--rule", "perc-pos")
    assert (told["outcome"], told["promoted"]) == ("dry_run", False)
    assert [step["command"] for step in told["next_steps"]] == ["nvr-rag retrain --collection default"]
    report = json.loads(Path(told["report"]["json"]).read_text())
    assert report["mining"]["settings"]["rule"] == "perc-pos"
    assert report["training"] is None
    assert run.lab.finished(told["run"]) == ["collect", "mine"]
    assert len(list((run.lab.home / "models").iterdir())) == 1
    assert "nothing was trained, nothing was changed" in run("retrain", "--dry-run").stdout


# promoting


@pytest.mark.parametrize(("answer", "serving"), [("y\n", 2), ("n\n", 1)])
def test_a_person_is_asked_whether_to_promote(
    left: Left, monkeypatch: pytest.MonkeyPatch, answer: str, serving: int
) -> None:
    line = left("conclude")
    monkeypatch.setattr(common, "is_watched", lambda: True)
    result = line("retrain", stdin=answer)
    assert result.exit_code == 0
    assert "The gate accepts the candidate. Promote it?" in result.stderr
    assert result.stdout.startswith("The candidate is better.\n")
    assert result.output.index("nDCG@10 on 30 holdout queries rose") < result.output.index("Promote it?")
    assert ("It serves now." in result.stdout) == (serving == 2)
    assert ("nvr-rag deploy rollback" if serving == 2 else PROMOTE) in result.stdout
    assert line.lab.states()[serving] == "serving"


def test_with_json_nobody_is_asked(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "is_watched", lambda: True)
    assert left("conclude").json("retrain")["promoted"] is False


# going on


def test_what_a_dead_process_has_left_is_gone_on_with_at_once(left: Left) -> None:
    line = left("conclude", promote=True)
    result = line("retrain", "--json")
    assert result.stderr == "Going on with lap lap, which was not finished, as it was begun.\n"
    told = json.loads(result.stdout)
    assert (told["run"], told["promoted"]) == ("lap", True)
    assert [step["command"] for step in told["next_steps"]] == [ROLLBACK]
    assert [job.state for job in line.jobs()] == ["done"]
    assert line.lab.states() == {1: "previous", 2: "serving"}


def test_a_lap_that_failed_is_resumed_when_that_is_said(left: Left) -> None:
    line = left("conclude", error="no room", promote=False)
    told = line.json("retrain", "--resume", "--yes")
    assert (told["run"], told["outcome"], told["promoted"]) == ("lap", "accept", True)
    assert [job.state for job in line.jobs()] == ["done"]
    assert line.lab.states() == {1: "previous", 2: "serving"}


def test_a_lap_that_fails_says_why_and_how_to_go_on(run: CommandLine, small_laps: pytest.MonkeyPatch) -> None:
    [kept] = (run.lab.home / "models").iterdir()
    weights = (kept / "model.safetensors").read_bytes()
    (kept / "model.safetensors").write_bytes(b"")
    message = run.error("retrain")
    assert "model.safetensors" in message
    assert message.endswith("nvr-rag retrain --resume --collection default goes on behind the last finished step")
    (kept / "model.safetensors").write_bytes(weights)
    small_laps.setattr(following, "follow", lambda workspace, job_id: {"outcome": job_id, **SHORT})
    assert run.json("retrain", "--resume")["outcome"] == run.jobs()[0].id


SHORT: Mapping[str, Any] = {"run": "x", "promoted": False, "reasons": [], "next_steps": [], "report": {"page": "x"}}


def test_there_must_be_something_to_resume(run: CommandLine) -> None:
    assert "has not failed; leave --resume out to begin a new one" in run.error("retrain", "--resume")


@pytest.mark.parametrize("option", [["--rule", "naive"], ["--recipe", "quick"], ["--dry-run"]])
def test_a_lap_is_resumed_as_it_was_begun(run: CommandLine, option: list[str]) -> None:
    assert "leave the other options out" in run.error("retrain", "--resume", *option, code=2)


@pytest.mark.parametrize(
    ("dry_run", "command", "advice"),
    [
        (False, ["mine"], "a lap of this collection was not finished; nvr-rag retrain --collection default goes on"),
        (False, ["retrain", "--dry-run"], "a lap of this collection was not finished"),
        (True, ["retrain", "--yes"], "a dry run of this collection was not finished; nvr-rag retrain --dry-run"),
    ],
)
def test_nothing_is_gone_on_with_that_was_not_asked_for(
    left: Left, dry_run: bool, command: list[str], advice: str
) -> None:
    line = left("mine", dry_run=dry_run)
    assert advice in line.error(*command)
    assert [job.state for job in line.jobs()] == ["running"]
    assert line.lab.finished() == ["collect"]


def test_a_second_lap_while_one_runs_is_refused(left: Left) -> None:
    line = left("mine")
    with line.lab.folder().owned():
        assert "retrain job 1 is running; wait until it has finished" in line.error("retrain")


def test_what_somebody_else_has_begun_with_is_left_to_them(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    line = left("mine")
    monkeypatch.setattr(following, "take", lambda *_, **__: 1)  # it was free a moment ago
    assert "another process has begun with job 1" in line.error("retrain")


# what cannot be asked for


@pytest.mark.parametrize("command", ["retrain", "mine"])
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--rule", "best"], 2, "the rule is one of naive, margin-pos, perc-pos, not 'best'"),
        (["--recipe", "slow"], 2, "there is no recipe 'slow'; give a TOML file or one of: quick"),
        (["--recipe", "nowhere/recipe.toml"], 2, "nowhere/recipe.toml cannot be read"),
        (["--collection", "nowhere"], 1, "no collection 'nowhere'; there are: default"),
    ],
)
def test_what_cannot_be_asked_for(run: CommandLine, command: str, options: list[str], code: int, words: str) -> None:
    assert words in run.error(command, *options, code=code)
    assert run.jobs() == []


def test_without_the_training_extra_it_says_what_to_install(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "missing_packages", lambda: ["datasets"])
    for command in ("retrain", "mine"):
        assert run.error(command) == "training needs datasets; run: pip install 'nvr-rag[training]'"


# mine


def test_mining_shows_what_it_removed_and_writes_examples(run: CommandLine, tmp_path: Path) -> None:
    told = run.json("mine", "--output", str(tmp_path / "examples.jsonl"))
    assert (told["collection"], told["mining"]["pairs"]) == ("default", TRAIN)
    rows = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert {row["query"] for row in rows} == {question.text for question in run.lab.of(Split.TRAIN)}
    assert all(len(row["negatives"]) == 2 for row in rows)
    assert run.lab.states() == {1: "serving"}
    shown = run("mine").stdout.splitlines()
    assert ["pairs:", str(TRAIN)] in [line.split() for line in shown]
    assert "removed\tcount" in shown


def test_with_nothing_to_mine_it_fails(lab: Laboratory, use: Callable[[Laboratory], CommandLine]) -> None:
    assert use(lab).error("mine").startswith("nothing was mined: there are no judgments yet")


def test_a_place_that_cannot_hold_the_examples_is_refused_at_once(run: CommandLine, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere" / "examples.jsonl"):
        assert f"{place} cannot be a file" in run.error("mine", "--output", str(place), code=2)
    assert run.jobs() == []


# beside a server


@contextmanager
def server(lab: Laboratory, work: Callable[[Workspace, jobs.Job], None]) -> Iterator[list[Mapping[str, Any]]]:
    """A server that does a job that it is asked for; what it was asked for."""

    def serve() -> None:
        until = time.monotonic() + 20
        while (job := jobs.claim(workspace.database, "server", [running.KIND])) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        asked.append(job.payload)
        work(workspace, job)

    asked: list[Mapping[str, Any]] = []
    with lab.open() as workspace:
        processes.announce(workspace.database, "serve")
        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def test_a_server_does_the_work_and_the_command_follows(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(workspace: Workspace, job: jobs.Job) -> None:
        progress = {"step": "mine", "number": 2, "steps": 8, "done": 1, "total": 2, "words": "queries"}
        jobs.heartbeat(workspace.database, job.id, "server", progress)
        time.sleep(0.05)
        result = {**SHORT, "outcome": "reject", "reasons": ["no reliable gain"]}
        jobs.finish(workspace.database, job.id, "server", result=result, error=None)

    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(run.lab.recipe.parent)
    with server(run.lab, work) as asked:
        told = run.json("retrain", "--yes", "--recipe", "./recipe.toml", "--rule", "naive")
    assert (told["outcome"], told["reasons"]) == ("reject", ["no reliable gain"])
    [payload] = asked
    assert (payload["promote"], payload["dry_run"], payload["rule"]) == (True, False, "naive")
    assert run.lab.recipe.samefile(payload["recipe"])
    assert Path(payload["recipe"]).is_absolute()


def test_what_a_server_could_not_do_is_told(run: CommandLine) -> None:
    def work(workspace: Workspace, job: jobs.Job) -> None:
        jobs.finish(workspace.database, job.id, "server", result=None, error="the disk is full")

    with server(run.lab, work):
        assert run.error("retrain").startswith("the disk is full. nvr-rag deploy list --collection default shows")


def test_a_server_that_goes_away_is_not_waited_for(run: CommandLine) -> None:
    def work(workspace: Workspace, job: jobs.Job) -> None:
        processes.withdraw(workspace.database, processes.alive(workspace.database, "serve")[0].id)

    with server(run.lab, work):
        assert "the server has stopped; run nvr-rag retrain again" in run.error("retrain")


def test_a_server_that_does_not_train_is_not_waited_for(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "UNHEARD_SECONDS", 0.1)
    with run.lab.open() as workspace:
        processes.announce(workspace.database, "serve")
        assert "the server does not take the job" in run.error("retrain")
        assert [job.state for job in run.jobs()] == ["queued"]
        assert "retrain job 1 is queued" in run.error("retrain")  # asked for is asked for
