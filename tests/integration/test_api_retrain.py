"""Retraining over HTTP: a job is asked for and seen; what cannot be asked for is refused in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pytest

from nvr_rag import jobs
from nvr_rag.access.callers import Scope
from nvr_rag.api import retrain
from nvr_rag.running import processes
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.integration.key_support import make_key
from training import running as laps
from training.loop import Request
from training.service import TrainerService


class Trainer:
    """Says that it trains, and does nothing."""

    name = "idle trainer"
    work = "train"
    job_kinds: Sequence[str] = ("retrain",)

    def start(self, workspace: Workspace) -> None:
        pass

    def stop(self) -> None:
        pass

    def check(self, workspace: Workspace, kind: str, payload: Mapping[str, Any]) -> None:
        TrainerService().check(workspace, kind, payload)

    def problem(self) -> str | None:
        return None


@pytest.fixture
def training_api(workspace: Workspace) -> Iterator[Api]:
    with running(workspace, [Trainer()]) as api:
        api.call("POST", "/v1/collections", 201, json={"name": "default"})
        yield api


def test_a_lap_is_asked_for_and_followed(training_api: Api) -> None:
    api, database = training_api, training_api.workspace.database
    response = api.client.post("/v1/retrain", json={"rule": "naive", "promote": True})
    assert response.status_code == 202
    asked = response.json()
    assert (asked["kind"], asked["collection"], asked["state"], asked["result"]) == (
        "retrain",
        "default",
        "queued",
        None,
    )
    job = jobs.claim(database, "worker", ["retrain"])
    assert job is not None
    request = Request(**job.payload)  # what the loop reads is what the API has written
    assert (request.rule, request.promote, request.dry_run, request.recipe) == ("naive", True, False, None)
    jobs.heartbeat(database, job.id, "worker", {"step": "mine", "done": 3})
    followed = api.call("GET", response.headers["Location"])
    assert (followed["state"], followed["progress"]) == ("running", {"step": "mine", "done": 3})
    jobs.finish(database, job.id, "worker", result={"outcome": "accept"}, error=None)
    ended = api.call("GET", f"/v1/jobs/{job.id}")
    assert (ended["state"], ended["result"], ended["error"]) == ("done", {"outcome": "accept"}, None)


def test_the_api_and_the_loop_agree_on_names() -> None:
    assert retrain.KIND == laps.KIND
    assert {field.name for field in fields(Request)} == {
        *("collection", "run", "recipe", "rule", "dry_run", "promote"),
    }


def test_a_second_lap_while_one_waits_is_refused(training_api: Api) -> None:
    first = training_api.call("POST", "/v1/retrain", 202, json={})
    problem = training_api.call("POST", "/v1/retrain", 409, json={})
    assert f"retrain job {first['id']} is queued" in problem["detail"]
    training_api.call("POST", "/v1/collections", 201, json={"name": "other"})
    training_api.call("POST", "/v1/retrain", 202, json={"collection": "other"})


def test_nobody_learns_of_anothers_lap_more_than_that_there_is_one(training_api: Api) -> None:
    mine, other, admin = (
        {"X-API-Key": make_key(training_api.workspace, Scope.TRAIN, *more)} for more in ((), (), (Scope.ADMIN,))
    )
    job = training_api.call("POST", "/v1/retrain", 202, json={}, headers=mine)["id"]
    for headers in (mine, admin):
        problem = training_api.call("POST", "/v1/retrain", 409, json={}, headers=headers)
        assert f"retrain job {job} is queued" in problem["detail"]
    problem = training_api.call("POST", "/v1/retrain", 409, json={}, headers=other)
    assert (
        problem["detail"] == "the collection 'default' has a job of this kind already, one at a time; ask again later"
    )


def test_a_server_that_cannot_train_says_so(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    assert "nvr-rag[training]" in api.call("POST", "/v1/retrain", 409, json={})["detail"]
    processes.announce(api.workspace.database, "worker", job_kinds=["verify"])
    api.call("POST", "/v1/retrain", 409, json={})
    processes.announce(api.workspace.database, "worker", job_kinds=["retrain"])  # on a machine with a GPU
    assert api.call("POST", "/v1/retrain", 202, json={})["state"] == "queued"


def test_no_paths_of_the_server_are_shown(training_api: Api) -> None:
    """The release before has left them in the results of its jobs."""
    api, database = training_api, training_api.workspace.database
    job_id = api.call("POST", "/v1/retrain", 202, json={})["id"]
    jobs.claim(database, "worker", ["retrain"])
    report = {"json": "/srv/nvr/runs/1/report.json"}
    jobs.finish(database, job_id, "worker", result={"outcome": "reject", "report": report}, error=None)
    assert api.call("GET", f"/v1/jobs/{job_id}")["result"] == {"outcome": "reject"}


def test_a_cancelled_lap_says_so(training_api: Api) -> None:
    api, database = training_api, training_api.workspace.database
    asked = api.call("POST", "/v1/retrain", 202, json={})
    assert (asked["cancelled"], asked["attempts"], asked["finished_at"]) == (False, 0, None)
    jobs.cancel(database, asked["id"])
    ended = api.call("GET", f"/v1/jobs/{asked['id']}")
    assert (ended["state"], ended["cancelled"], ended["error"]) == ("failed", True, "cancelled")
    assert ended["finished_at"] is not None


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"collection": "nowhere"}, 404, "no collection 'nowhere'"),
        ({"rule": "best"}, 422, "rule must be 'naive', 'margin-pos' or 'perc-pos'"),
        ({"recipe": "../../etc/passwd"}, 422, "recipe must match pattern"),
        ({"recipe": 7}, 422, "recipe must be a valid string"),
        ({"promote": "yes"}, 422, "promote must be a valid boolean"),
        ({"epochs": 5}, 422, "epochs is not a known field"),
        ({"recipe": "slow"}, 422, "there is no recipe 'slow'; give a TOML file or one of: quick"),
    ],
)
def test_what_cannot_be_asked_for(training_api: Api, body: dict[str, Any], status: int, words: str) -> None:
    assert words in training_api.call("POST", "/v1/retrain", status, json=body)["detail"]
    assert jobs.unfinished(training_api.workspace.database) == []


@pytest.mark.parametrize(("job", "status"), [("1", 404), ("0", 422), ("x", 422), (str(2**40), 422)])
def test_jobs_that_are_not_there(training_api: Api, job: str, status: int) -> None:
    training_api.call("GET", f"/v1/jobs/{job}", status)
