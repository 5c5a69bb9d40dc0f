"""Folders of the server as jobs: asked for over HTTP, done by whoever sees them, taken over, cancelled, put back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from ingest import mirroring
from ingest.service import IngestService
from nvr_rag import collections, documents, jobs
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, NotHere, StoreUnavailable
from nvr_rag.jobs import Job, Status
from nvr_rag.running import processes, working
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.integration.command_line import CommandLine

HANDLERS = {mirroring.KIND: mirroring.mirror}


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A folder that may be ingested, with a handbook of three files and one that is none."""
    handbook = tmp_path / "share" / "handbook"
    handbook.mkdir(parents=True)
    for name, text in (("a.md", "# A\n\nred fox"), ("b.txt", "blue whale"), ("c.txt", "green tea")):
        (handbook / name).write_text(text, encoding="utf-8")
    (handbook / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    return tmp_path / "share"


@pytest.fixture
def rooted(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_INGEST__ROOTS", str(share))


@pytest.fixture
def mirrored(rooted: None, bare_home: Path) -> Iterator[Workspace]:
    """A workspace with an empty collection "default", whose settings allow the share."""
    with Workspace(Settings(home=bare_home), store=MemoryStore(), encoder=HashEncoder()) as workspace:
        workspace.create_collection("default")
        yield workspace


@pytest.fixture
def asking(mirrored: Workspace) -> Iterator[Api]:
    """An API that nobody does the jobs of."""
    with running(mirrored) as api:
        yield api


@pytest.fixture
def ingesting(mirrored: Workspace) -> Iterator[Api]:
    with running(mirrored, [IngestService()]) as api:
        yield api


def ask(api: Api, path: Path | str, status: int = 202, **options: Any) -> Any:
    return api.call("POST", "/v1/ingest", status, json={"path": str(path), **options})


def ended(api: Api, job: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not (found := api.call("GET", f"/v1/jobs/{job}"))["finished_at"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found  # type: ignore[no-any-return]


def enqueue(workspace: Workspace, source: Path, **options: Any) -> int:
    with workspace.database.read() as connection:
        made = collections.info(connection, "default").created_at.isoformat()
    payload = {"source": str(source), "made": made, **options}
    return jobs.enqueue_alone(workspace.database, mirroring.KIND, "default", payload)


def do(workspace: Workspace, worker: str = "worker", stop: threading.Event | None = None) -> Mapping[str, Any] | None:
    """Do the next job; its result."""
    job = jobs.claim(workspace.database, worker, [mirroring.KIND])
    assert job is not None
    return working.run(workspace, job, worker, mirroring.mirror, stop=stop or threading.Event())


def uris(workspace: Workspace) -> set[str]:
    with workspace.database.read() as connection:
        return {one.uri.rpartition("/")[2] for one in documents.list_documents(connection, "default")}


# what is right


def test_a_folder_is_mirrored_and_the_report_is_the_jobs_result(ingesting: Api, share: Path) -> None:
    api = ingesting
    response = api.client.post("/v1/ingest", json={"path": f"{share}/handbook"})
    assert response.status_code == 202
    asked = response.json()
    assert (asked["kind"], asked["collection"], asked["attempts"]) == ("ingest", "default", asked["attempts"])
    assert response.headers["Location"] == f"/v1/jobs/{asked['id']}"
    done = ended(api, asked["id"])
    assert done["state"] == "done", done
    result = done["result"]
    counts = {name: result[name] for name in ("seen", "added", "updated", "unchanged", "deleted", "failed")}
    assert counts == {"seen": 4, "added": 3, "updated": 0, "unchanged": 0, "deleted": 0, "failed": 1}
    assert api.texts("blue whale")[0] == "blue whale"  # at once
    (failure,) = result["failures"]
    listed = api.call("GET", "/v1/documents", params={"state": "failed"})["documents"]
    assert [(one["uri"], one["error"]) for one in listed] == [(failure["uri"], failure["reason"])]
    assert done["progress"]["total"] == 4
    assert done["progress"]["done"] == 4

    (share / "handbook" / "b.txt").unlink()
    (share / "handbook" / "a.md").write_text("# A\n\nred panda", encoding="utf-8")
    again = ended(api, ask(api, f"{share}/handbook")["id"])["result"]
    assert {name: again[name] for name in ("added", "updated", "unchanged", "deleted")} == {
        "added": 0,
        "updated": 1,
        "unchanged": 1,
        "deleted": 1,
    }
    found = api.texts("whale")
    assert "green tea" in found
    assert "blue whale" not in found


def test_include_and_exclude_are_kept(ingesting: Api, share: Path) -> None:
    asked = ask(ingesting, share, include=["*.txt"], exclude=["c.*"])
    assert ended(ingesting, asked["id"])["result"]["added"] == 1
    assert uris(ingesting.workspace) == {"b.txt"}


def test_failures_are_counted_and_a_hundred_are_named(mirrored: Workspace, share: Path) -> None:
    for number in range(120):
        (share / f"{number:03}.pdf").write_bytes(b"%PDF-1.7\nnothing")
    enqueue(mirrored, share)
    result = do(mirrored)
    assert result is not None
    assert (result["failed"], len(result["failures"])) == (121, 100)
    assert (result["added"], result["chunks"]["encoded"]) == (3, 3)


def test_a_key_makes_asking_twice_asking_once(asking: Api, share: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    first = asking.client.post("/v1/ingest", json={"path": str(share)}, headers=headers)
    again = asking.client.post("/v1/ingest", json={"path": str(share)}, headers=headers)
    assert (first.status_code, again.status_code, again.json()["id"]) == (202, 202, first.json()["id"])
    other = asking.client.post("/v1/ingest", json={"path": f"{share}/handbook"}, headers=headers)
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")


# one at a time


def test_two_jobs_for_one_source_are_not_there_at_once(asking: Api, share: Path) -> None:
    job = ask(asking, f"{share}/handbook")["id"]
    (share / "other").mkdir()
    for path in (f"{share}/handbook", f"{share}/handbook/", f"{share}/handbook/../handbook", share):
        problem = ask(asking, path, 409)
        assert f"job {job} is queued" in problem["detail"]
    ask(asking, f"{share}/handbook/a.md", 409)  # it lies in it
    ask(asking, f"{share}/other")
    asking.call("POST", "/v1/collections", 201, json={"name": "second"})
    ask(asking, f"{share}/handbook", collection="second")
    jobs.cancel(asking.workspace.database, job)
    ask(asking, f"{share}/handbook")
    with pytest.raises(Conflict, match="has a job of this kind already"):
        jobs.retry(asking.workspace.database, job)


# at least once


def test_a_job_whose_worker_dies_is_taken_over_and_what_was_done_is_not_done_again(
    mirrored: Workspace, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = enqueue(mirrored, share)
    with monkeypatch.context() as dying:
        dying.setattr(jobs, "finish", lambda *_args, **_options: None)
        do(mirrored, "the first")  # everything but saying so
    assert jobs.claim(mirrored.database, "the second", [mirroring.KIND]) is None  # its lease lasts
    with mirrored.database.write() as connection:
        connection.execute(update(t.Job).values(lease_until=t.now() - timedelta(seconds=1)))
    result = do(mirrored, "the second")
    assert result is not None
    assert (result["added"], result["unchanged"], result["failed"]) == (0, 3, 1)
    job = jobs.get(mirrored.database, job_id)
    assert (job.state, job.worker) == ("done", "the second")
    assert job.failures[-1]["error"] == jobs.DIED


def test_what_a_retry_can_mend_is_tried_again_later(
    mirrored: Workspace, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_args: object, **_options: object) -> None:
        raise StoreUnavailable("the store is away")

    job_id = enqueue(mirrored, share)
    with monkeypatch.context() as patch:
        patch.setattr(mirroring, "ingest", away)
        assert do(mirrored) is None
    job = jobs.get(mirrored.database, job_id)
    assert (job.state, job.failures[-1]["error"]) == ("queued", "the store is away")
    assert job.due_at is not None
    assert jobs.claim(mirrored.database, "worker", [mirroring.KIND]) is None
    claimed = jobs.claim(mirrored.database, "worker", [mirroring.KIND], job_id=job_id)
    assert claimed is not None
    result = working.run(mirrored, claimed, "worker", mirroring.mirror, stop=threading.Event())
    assert result is not None
    assert result["added"] == 3


class Halting:
    """Stops a run once its first documents are committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
        real = mirroring._Teller.tell

        def tell(teller: Any, stand: Any) -> None:
            real(teller, stand)
            if stand.seen and not self.done:
                self.done = True
                act(teller._task)

        self.done = False
        monkeypatch.setattr(mirroring._Teller, "tell", tell)
        monkeypatch.setattr("ingest.pipeline._BATCH_DOCUMENTS", 1)


def test_a_worker_that_stops_puts_the_job_back_and_the_next_one_goes_on(
    mirrored: Workspace, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        (share / f"{number:02}.txt").write_text(f"document {number}", encoding="utf-8")
    job_id = enqueue(mirrored, share)
    stop = threading.Event()

    def halt(task: Any) -> None:
        stop.set()
        task.stop.wait(10)

    with monkeypatch.context() as patch:
        Halting(patch, halt)
        assert do(mirrored, "the first", stop) is None
    job = jobs.get(mirrored.database, job_id)
    assert (job.state, job.attempts, job.failures) == ("queued", 0, [])
    before = len(uris(mirrored))
    assert 0 < before < 40
    result = do(mirrored, "the second")
    assert result is not None
    assert result["added"] + before == 43
    assert result["deleted"] == 0


def test_a_job_that_is_cancelled_ends(mirrored: Workspace, share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (share / f"{number:02}.txt").write_text(f"document {number}", encoding="utf-8")
    job_id = enqueue(mirrored, share)

    def cancel(task: Any) -> None:
        jobs.cancel(mirrored.database, job_id)
        assert task.stop.wait(20)

    Halting(monkeypatch, cancel)
    assert do(mirrored) is None
    assert jobs.get(mirrored.database, job_id).status is Status.CANCELLED
    assert 0 < len(uris(mirrored)) < 43


# several machines


def taking_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """There are processes on these machines that take such jobs."""
    for host in hosts:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda host=host: host)
            processes.announce(workspace.database, processes.WORKER, job_kinds=[mirroring.KIND])


def attempt(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, host: str, job_id: int) -> Job:
    """The next attempt at a job, on a machine."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: host)
        job = jobs.claim(workspace.database, host, [mirroring.KIND])
        assert job is not None
        with suppress(NotHere):
            working.run(workspace, job, host, mirroring.mirror, stop=threading.Event())
    return jobs.get(workspace.database, job_id)


def test_a_machine_that_does_not_see_the_path_leaves_it_to_others(
    mirrored: Workspace, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taking_on(mirrored, monkeypatch, "one", "two")
    (share / "handbook").rename(share.parent / "away")
    job_id = enqueue(mirrored, share / "handbook")
    job = attempt(mirrored, monkeypatch, "one", job_id)
    assert (job.state, job.attempts) == ("queued", 0)
    assert "not on one" in job.failures[-1]["error"]
    (share.parent / "away").rename(share / "handbook")
    job = attempt(mirrored, monkeypatch, "two", job_id)
    assert job.result is not None
    assert (job.state, job.result["added"]) == ("done", 3)


def test_a_path_that_no_machine_sees_ends_the_job_in_words(
    mirrored: Workspace, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taking_on(mirrored, monkeypatch, "one", "two")
    job_id = enqueue(mirrored, share / "missing")
    assert attempt(mirrored, monkeypatch, "one", job_id).state == "queued"
    assert attempt(mirrored, monkeypatch, "one", job_id).state == "queued"  # the other has not looked yet
    job = attempt(mirrored, monkeypatch, "two", job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert "cannot be ingested by any machine" in job.error
    assert "one: " in job.error
    assert "two: " in job.error
    assert len(job.failures) == 2  # the words that were said already are not said again


def test_a_worker_looks_again_whether_a_path_may_be_read(mirrored: Workspace, share: Path, tmp_path: Path) -> None:
    """A folder that has become a link meanwhile, and a worker whose settings allow less than the server's."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret", encoding="utf-8")
    linked = enqueue(mirrored, share / "handbook")
    (share / "handbook").rename(tmp_path / "away")
    (share / "handbook").symlink_to(tmp_path / "outside")
    assert do(mirrored) is None
    outside = enqueue(mirrored, tmp_path / "outside")
    assert do(mirrored) is None
    for job_id in (linked, outside):
        job = jobs.get(mirrored.database, job_id)
        assert (job.state, "not inside a folder that may be ingested" in str(job.error)) == ("failed", True)
    assert uris(mirrored) == set()


# collections that go


def test_a_collection_that_is_deleted_while_a_job_waits_is_not_made_anew(asking: Api, share: Path) -> None:
    job = ask(asking, share)["id"]
    asking.call("DELETE", "/v1/collections/default")
    assert do(asking.workspace) is None
    found = asking.call("GET", f"/v1/jobs/{job}")
    assert (found["state"], "no collection 'default'" in found["error"]) == ("failed", True)
    assert asking.call("GET", "/v1/collections")["collections"] == []

    asking.call("POST", "/v1/collections", 201, json={"name": "default"})
    job = ask(asking, share)["id"]
    asking.call("DELETE", "/v1/collections/default")
    asking.call("POST", "/v1/collections", 201, json={"name": "default"})
    assert do(asking.workspace) is None
    assert "deleted and made anew" in asking.call("GET", f"/v1/jobs/{job}")["error"]
    assert uris(asking.workspace) == set()


def test_a_collection_that_is_deleted_just_before_a_run_begins_is_not_made_anew(
    asking: Api, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ask(asking, share)["id"]
    delete = lambda *_: asking.call("DELETE", "/v1/collections/default")  # noqa: E731
    monkeypatch.setattr(mirroring, "_check_collection", delete)
    assert do(asking.workspace) is None
    assert "no collection 'default'" in asking.call("GET", f"/v1/jobs/{job}")["error"]
    assert asking.call("GET", "/v1/collections")["collections"] == []


def test_a_collection_that_is_deleted_while_a_job_runs_is_not_made_anew(
    mirrored: Workspace, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        (share / f"{number:02}.txt").write_text(f"document {number}", encoding="utf-8")

    def delete(_task: Any) -> None:
        with mirrored.database.write() as connection:
            collections.remove(connection, "default")

    job_id = enqueue(mirrored, share)
    Halting(monkeypatch, delete)
    assert do(mirrored) is None
    job = jobs.get(mirrored.database, job_id)
    assert (job.state, "'default' was deleted" in str(job.error)) == ("failed", True)
    with mirrored.database.read() as connection:
        assert collections.all_infos(connection) == []


# what is refused


def refused(api: Api, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = api.client.post("/v1/ingest", json=body)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert jobs.unfinished(api.workspace.database) == []
    problem: dict[str, Any] = response.json()
    return problem


@pytest.mark.parametrize(
    "path",
    [
        "{outside}",
        "{outside}/secret.txt",
        "{outside}/missing.txt",
        "{share}/../outside",
        "{share}/link",
        "{share}/link/secret.txt",
        "/",
        "{share}-not/x",
    ],
)
def test_a_path_outside_is_refused_in_the_same_words(asking: Api, share: Path, path: str) -> None:
    outside = share.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    (share / "link").symlink_to(outside)
    problem = refused(asking, 422, {"path": path.format(outside=outside, share=share)})
    assert (problem["field"], problem["detail"]) == (
        "path",
        "path is not inside a folder that may be ingested (NVR_INGEST__ROOTS on the server says which)",
    )


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"path": "handbook"}, "path", "absolute path"),
        ({"path": ""}, "path", "at least 1"),
        ({"path": "/" + "x" * 5000}, "path", "4096"),
        ({"path": "/a\x00b"}, "path", "NUL"),
        ({"path": 7}, "path", "string"),
        ({}, "path", "required"),
        ({"folder": "/x"}, "folder", "is not a known field"),
        ({"include": "*.md"}, "include", "list"),
        ({"include": [""]}, "include[0]", "at least 1"),
        ({"exclude": ["a\nb"]}, "exclude[0]", "U+000A"),
        ({"allow_empty": "yes"}, "allow_empty", "boolean"),
    ],
)
def test_a_request_with_something_wrong_is_refused(
    asking: Api, share: Path, options: dict[str, Any], field: str, words: str
) -> None:
    body = options if "path" in options or not options else {"path": str(share), **options}
    problem = refused(asking, 422, body)
    assert words in problem["detail"]
    assert problem["field"] == field


def test_a_collection_that_is_not_there_is_said(asking: Api, share: Path) -> None:
    assert "no collection 'x'" in refused(asking, 404, {"path": str(share), "collection": "x"})["detail"]


def test_a_path_that_is_not_there_is_said_at_once_where_nobody_else_could_see_it(ingesting: Api, share: Path) -> None:
    problem = refused(ingesting, 422, {"path": f"{share}/missing"})
    assert "there is no such file or folder" in problem["detail"]
    processes.announce(ingesting.workspace.database, processes.WORKER, job_kinds=[mirroring.KIND])
    with ingesting.workspace.database.write() as connection:
        connection.execute(update(t.Process).values(host="another machine"))
    assert ask(ingesting, f"{share}/missing")["state"] == "queued"


def test_without_a_root_nothing_is_ingested_and_how_to_allow_it_is_said(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    problem = refused(api, 409, {"path": "/etc"})
    assert "NVR_INGEST__ROOTS=/srv/documents" in problem["detail"]


# for people


def test_jobs_are_shown_in_words(asking: Api, share: Path, bare_home: Path) -> None:
    line = CommandLine(bare_home)
    number = ask(asking, share)["id"]
    assert str(share) in line("jobs", "list").stdout
    job = jobs.claim(asking.workspace.database, "worker", [mirroring.KIND])
    assert job is not None
    progress = {
        "stage": "reading",
        "done": 1200,
        "total": 5000,
        "words": "documents",
        "seen": 1300,
        "chunks_encoded": 4000,
        "documents_per_second": 12.5,
        "seconds_left": 304.0,
    }
    jobs.heartbeat(asking.workspace.database, number, "worker", progress)
    shown = line("jobs", "show", str(number)).stdout
    assert "1,200 of 5,000 documents" in shown
    assert "12.5 documents/s" in shown
    assert "5 min left" in shown
    jobs.release(asking.workspace.database, number, "worker", reason="not on one: it is away")
    assert "not on one: it is away" in line("jobs", "list").stdout
    result = {"seen": 4, "added": 3, "failed": 1, "failures": [{"uri": "file:///x/b.pdf", "reason": "is damaged"}]}
    jobs.claim(asking.workspace.database, "worker", [mirroring.KIND])
    jobs.finish(asking.workspace.database, number, "worker", result=result, error=None)
    shown = line("jobs", "show", str(number)).stdout
    assert "4 documents: 3 added, 1 failed" in shown
    assert "file:///x/b.pdf is damaged" in shown
    assert "4 documents: 3 added, 1 failed" in line("jobs", "list").stdout
