"""Files over HTTP: streamed to the disk, parsed by a job, found; or refused, with nothing of them left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from ingest.service import IngestService
from ingest.uploading import Uploads
from nvr_rag import disk, documents, idempotency, jobs, uploads
from nvr_rag.db import tables as t
from nvr_rag.errors import DatabaseUnavailable, NotHere
from nvr_rag.removal import erasing
from nvr_rag.running import working
from nvr_rag.running.services import Service
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.uploads import Folder
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running

WHALE = b"# Whales\n\nThe blue whale is the largest animal."
MAX_FILE, MAX_UPLOAD = 300_000, 500_000


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_INGEST__MAX_FILE_BYTES", str(MAX_FILE))
    monkeypatch.setenv("NVR_INGEST__MAX_UPLOAD_BYTES", str(MAX_UPLOAD))


def opened(bare_home: Path, services: list[Service]) -> Iterator[Api]:
    with (
        Workspace(Settings(home=bare_home), store=MemoryStore(), encoder=HashEncoder()) as workspace,
        running(workspace, services) as api,
    ):
        api.call("POST", "/v1/collections", 201, json={"name": "default"})
        yield api


@pytest.fixture
def taking(limited: None, bare_home: Path) -> Iterator[Api]:
    """An API that takes uploads, and nobody who parses them."""
    yield from opened(bare_home, [])


@pytest.fixture
def ingesting(limited: None, bare_home: Path) -> Iterator[Api]:
    """The same with somebody."""
    yield from opened(bare_home, [IngestService()])


def send(api: Api, *files: tuple[str, bytes], status: int = 202, key: str | None = None, **fields: Any) -> Any:
    parts = [("file", (name, content)) for name, content in files]
    headers = {"Idempotency-Key": key} if key else {}
    return api.call("POST", "/v1/documents", status, files=parts, data=fields, headers=headers)


def stored(api: Api, **options: Any) -> dict[str, dict[str, Any]]:
    """The documents by URI."""
    listed = api.call("GET", "/v1/documents", params=options)["documents"]
    return {one["uri"]: one for one in listed}


def waiting_files(api: Api) -> list[str]:
    return Folder(api.workspace.home).names()


def ended(api: Api, job: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not (found := api.call("GET", f"/v1/jobs/{job}"))["finished_at"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found  # type: ignore[no-any-return]


def parse(api: Api, job: int | None = None) -> dict[str, Any] | None:
    """Do the next upload job, or one, as a worker would; its result."""
    handler = Uploads(api.workspace.settings.ingest)
    try:
        found = jobs.claim(api.workspace.database, "worker", [uploads.KIND], job_id=job)
        assert found is not None
        result = working.run(api.workspace, found, "worker", handler, stop=threading.Event())
        return None if result is None else dict(result)
    finally:
        handler.close()


# what is right


def test_an_upload_is_parsed_and_found(ingesting: Api) -> None:
    api = ingesting
    metadata = {"team": "sea", "year": 2024}
    answer = send(
        api,
        ("whales.md", WHALE),
        status=200,
        uri="doc:whales",
        metadata=json.dumps(metadata),
        wait="true",
    )
    (document,) = answer["documents"]
    assert (answer["state"], answer["indexed"], answer["collection"]) == ("done", True, "default")
    assert (document["uri"], document["outcome"], document["error"]) == ("doc:whales", "added", None)
    assert (document["bytes"], document["sha256"]) == (len(WHALE), hashlib.sha256(WHALE).hexdigest())
    hit = api.search("largest animal")["hits"][0]
    assert (hit["document"]["uri"], hit["document"]["title"]) == ("doc:whales", "Whales")
    assert hit["document"]["metadata"] == metadata
    assert (hit["document"]["id"], hit["document"]["media_type"]) == (document["id"], "text/markdown")
    assert waiting_files(api) == []
    same = send(api, ("whales.md", WHALE), status=200, uri="doc:whales", metadata=json.dumps(metadata), wait="1")
    changed = send(api, ("whales.md", b"small fish"), status=200, uri="doc:whales", wait="true")
    assert [one["documents"][0]["outcome"] for one in (same, changed)] == ["unchanged", "updated"]
    assert api.texts("fish whale") == ["small fish"]


def test_several_files_are_several_documents_named_after_the_files(ingesting: Api) -> None:
    api = ingesting
    files = [("a b.txt", b"red fox"), ("../../x/naïve.html", b"<html><title>Tea</title><p>green tea</p></html>")]
    answer = send(api, *files, status=200, wait="true", metadata='{"team": "land"}')
    assert [one["uri"] for one in answer["documents"]] == ["upload:a%20b.txt", "upload:na%C3%AFve.html"]
    found = stored(api)
    assert {uri: (one["title"], one["source"]) for uri, one in found.items()} == {
        "upload:a%20b.txt": ("a b", ""),
        "upload:na%C3%AFve.html": ("Tea", ""),
    }
    assert all(one["metadata"] == {"team": "land"} for one in found.values())
    assert not list(api.workspace.home.parent.glob("**/*.html"))


def test_what_is_answered_is_durable_and_parsed_later(taking: Api) -> None:
    api = taking
    response = api.client.post("/v1/documents", files={"file": ("a.txt", b"red fox")}, data={"title": "Foxes"})
    answer = response.json()
    assert (response.status_code, answer["state"], answer["indexed"]) == (202, "queued", False)
    assert response.headers["Location"] == f"/v1/jobs/{answer['job']}"
    (name,) = waiting_files(api)
    assert (Folder(api.workspace.home).path / name).read_bytes() == b"red fox"
    assert (Folder(api.workspace.home).path / name).stat().st_mode & 0o777 == 0o600
    job = api.call("GET", f"/v1/jobs/{answer['job']}")
    assert (job["kind"], job["collection"], job["state"]) == ("upload", "default", "queued")
    assert stored(api) == {}
    result = parse(api)
    assert result is not None
    assert (result["documents"][0]["outcome"], result["failed"]) == ("added", 0)
    assert stored(api)["upload:a.txt"]["title"] == "Foxes"
    assert waiting_files(api) == []


def test_a_document_that_cannot_be_parsed_has_failed_in_words_everywhere(ingesting: Api) -> None:
    api = ingesting
    answer = send(api, ("broken.pdf", b"%PDF-1.7\nnothing"), ("good.txt", b"red fox"), status=200, wait="true")
    broken, good = answer["documents"]
    assert (broken["outcome"], good["outcome"]) == ("failed", "added")
    assert broken["error"]
    listed = stored(api, state="failed")
    assert {uri: one["error"] for uri, one in listed.items()} == {"upload:broken.pdf": broken["error"]}
    job = api.call("GET", f"/v1/jobs/{answer['job']}")
    assert (job["state"], job["result"]["failed"]) == ("done", 1)
    assert job["result"]["documents"][0]["error"] == broken["error"]
    assert waiting_files(api) == []


def test_only_those_who_may_read_it_would_be_shown_it(ingesting: Api) -> None:
    """There are no keys yet, so nobody can prove to be among them."""
    api = ingesting
    send(api, ("a.txt", b"red fox"), status=200, acl='["team:sea"]', wait="true")
    with api.workspace.database.read() as connection:
        assert documents.get(connection, "default", "upload:a.txt").acl == ["team:sea"]
    assert api.texts("fox") == []


def test_texts_go_on_as_before(taking: Api) -> None:
    assert taking.put({"uri": "a", "text": "red fox"})[0]["outcome"] == "added"
    assert taking.texts("fox") == ["red fox"]


# two at once


def test_the_upload_that_was_accepted_last_wins_whatever_is_parsed_first(taking: Api) -> None:
    api = taking
    first = send(api, ("a.txt", b"the first"), uri="doc:a")["job"]
    second = send(api, ("a.txt", b"the second"), uri="doc:a")["job"]
    late = parse(api, second)
    early = parse(api, first)
    assert late is not None
    assert early is not None
    assert (late["documents"][0]["outcome"], early["documents"][0]["outcome"]) == ("added", "superseded")
    with api.workspace.database.read() as connection:
        key = documents.get(connection, "default", "doc:a").id
        assert documents.text_of(connection, key) == "the second"
    assert waiting_files(api) == []


def test_two_uploads_of_one_uri_at_once_both_end_and_none_is_half(ingesting: Api) -> None:
    api, answers = ingesting, {}
    begin = threading.Barrier(6)

    def one(number: int) -> None:
        with httpx.Client(base_url=api.client.base_url, timeout=60) as client:
            begin.wait()
            text = f"version {number}\n\n" + f"word{number} " * 5000
            response = client.post("/v1/documents", files={"file": ("a.txt", text)}, data={"uri": "doc:a"})
            assert response.status_code == 202, response.text
            answers[response.json()["job"]] = text.strip()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = {job: ended(api, job)["result"]["documents"][0]["outcome"] for job in answers}
    assert set(outcomes.values()) <= {"added", "updated", "superseded"}
    assert outcomes[max(answers)] in (
        "added",
        "updated",
    )  # under the collection's lock, ids are in the order of acceptance
    with api.workspace.database.read() as connection:
        text = documents.text_of(connection, documents.get(connection, "default", "doc:a").id)
    assert text.strip() == answers[max(answers)]
    assert waiting_files(api) == []


@pytest.mark.parametrize("newer", ["put", "delete"])
def test_what_comes_after_an_upload_counts_more_than_it(taking: Api, newer: str) -> None:
    api = taking
    job = send(api, ("a.txt", b"the upload"), uri="doc:a")["job"]
    if newer == "put":
        api.put({"uri": "doc:a", "text": "the text"})
    else:
        api.call("DELETE", "/v1/documents", params={"uri": "doc:a"})  # it is not there yet, but would come
    result = parse(api, job)
    assert result is not None
    assert result["documents"][0]["outcome"] == "superseded"
    assert api.texts("the") == (["the text"] if newer == "put" else [])
    assert waiting_files(api) == []


# what goes wrong on the way


def test_a_job_that_is_done_again_changes_nothing(taking: Api) -> None:
    api = taking
    job = send(api, ("a.txt", b"red fox"), ("b.pdf", b"%PDF-1.7\nnothing"))["job"]
    first = parse(api, job)
    with api.workspace.database.write() as connection:  # its worker died before it could say so
        values = {"state": "queued", "result": None, "finished_at": None}
        connection.execute(update(t.Job).where(t.Job.id == job).values(**values))
    again = parse(api, job)
    assert first is not None
    assert again is not None
    assert [one["outcome"] for one in first["documents"]] == ["added", "failed"]
    assert [one["outcome"] for one in again["documents"]] == ["unchanged", "failed"]
    assert again["documents"][1]["error"] == first["documents"][1]["error"]


def test_a_file_that_has_gone_is_a_failed_document(taking: Api) -> None:
    api = taking
    job = send(api, ("a.txt", b"red fox"))["job"]
    (name,) = waiting_files(api)
    (Folder(api.workspace.home).path / name).unlink()
    result = parse(api, job)
    assert result is not None
    assert "upload it again" in result["documents"][0]["error"]
    assert stored(api, state="failed")["upload:a.txt"]["error"] == result["documents"][0]["error"]


def test_another_machine_leaves_the_files_to_the_one_that_has_them(taking: Api, tmp_path: Path) -> None:
    api = taking
    job_id = send(api, ("a.txt", b"red fox"))["job"]
    other = Workspace(
        Settings(home=tmp_path / "another", database_url=api.workspace.settings.sql_url())
        if api.workspace.settings.database_url
        else Settings(home=tmp_path / "another", database_url=f"sqlite:///{api.workspace.home / 'corpus.sqlite3'}"),
        store=MemoryStore(),
        encoder=HashEncoder(),
    )
    handler = Uploads(other.settings.ingest)
    job = jobs.claim(other.database, "other", [uploads.KIND])
    assert job is not None
    with pytest.raises(NotHere):
        working.run(other, job, "other", handler, stop=threading.Event())
    put_back = jobs.get(other.database, job_id)
    assert (put_back.state, put_back.attempts) == ("queued", 0)
    assert "not in the data folder of" in put_back.failures[-1]["error"]
    handler.close()
    other.close()
    assert parse(api) is not None
    assert "upload:a.txt" in stored(api)


def test_a_collection_that_is_deleted_takes_its_uploads_with_it(taking: Api) -> None:
    api = taking
    job = send(api, ("a.txt", b"red fox"))["job"]
    api.call("DELETE", "/v1/collections/default")
    assert parse(api, job) is None
    found = api.call("GET", f"/v1/jobs/{job}")
    assert found["state"] == "failed"
    assert "no collection 'default'" in found["error"]
    assert api.call("GET", "/v1/collections")["collections"] == []
    assert waiting_files(api) == []


def test_what_nobody_waits_for_is_swept(taking: Api) -> None:
    api = taking
    folder = Folder(api.workspace.home)
    kept = send(api, ("a.txt", b"red fox"))["job"]
    failed, cancelled = (send(api, (f"{name}.txt", b"x"))["job"] for name in ("f", "c"))
    jobs.cancel(api.workspace.database, cancelled)
    by_job = {
        job: jobs.get(api.workspace.database, job).payload["files"][0]["file"] for job in (kept, failed, cancelled)
    }
    (folder.path / "left-by-a-request-that-died").write_bytes(b"x")
    (folder.path / "of-a-request-that-goes-on").write_bytes(b"x")
    hours = time.time() - 2 * uploads.ORPHAN_SECONDS
    for name in folder.names():
        if name != "of-a-request-that-goes-on":
            os.utime(folder.path / name, (hours, hours))
    assert uploads.sweep(api.workspace.database, folder) == 1
    # The one that was cancelled, and one that failed, may be tried again for a day.
    assert set(folder.names()) == {*by_job.values(), "of-a-request-that-goes-on"}
    with api.workspace.database.write() as connection:
        long_ago = t.now().replace(year=2020)
        j = t.Job
        connection.execute(update(j).where(j.id == failed).values(state="failed", error="x", finished_at=long_ago))
        connection.execute(update(j).where(j.id == cancelled).values(finished_at=long_ago))
    assert uploads.sweep(api.workspace.database, folder) == 2
    assert set(folder.names()) == {by_job[kept], "of-a-request-that-goes-on"}
    assert uploads.sweep(api.workspace.database, folder) == 0


def test_a_database_that_goes_away_leaves_what_may_have_been_promised(
    taking: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the transaction was committed is not known; what nobody needs is swept later."""

    def lost(*_arguments: object, **_options: object) -> int:
        raise DatabaseUnavailable("the connection was lost")

    api, folder = taking, Folder(taking.workspace.home)
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "accept", lost)
        response = api.client.post("/v1/documents", files={"file": ("a.txt", b"red fox")})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    (name,) = folder.names()
    assert uploads.sweep(api.workspace.database, folder) == 0
    hours = time.time() - 2 * uploads.ORPHAN_SECONDS
    os.utime(folder.path / name, (hours, hours))
    assert uploads.sweep(api.workspace.database, folder) == 1


def test_a_job_that_failed_can_be_tried_again_beside_others(taking: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api = taking
    job = send(api, ("a.txt", b"red fox"))["job"]
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "_parsed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            parse(api, job)
    assert jobs.get(api.workspace.database, job).state == "failed"
    send(api, ("b.txt", b"blue whale"))
    jobs.retry(api.workspace.database, job)
    result = parse(api, job)
    assert result is not None
    assert result["documents"][0]["outcome"] == "added"


def test_a_full_disk_is_said_and_leaves_nothing(taking: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api = taking
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free", lambda _folder: 60 * 2**20)
        refused = api.client.post("/v1/documents", files={"file": ("a.txt", b"x" * 100_000)})
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:nvr-rag:no-room")
    assert int(refused.headers["Retry-After"]) > 0

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nvr_rag.api.receiving.os.fsync", full)
        refused = api.client.post("/v1/documents", files={"file": ("a.txt", b"x" * 100_000)})
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:nvr-rag:no-room")
    assert "make room" in refused.json()["detail"]
    assert waiting_files(api) == []
    folder = Folder(api.workspace.home).path
    folder.rename(folder.with_name("away"))
    folder.write_text("a file where the folder should be", encoding="utf-8")
    refused = api.client.post("/v1/documents", files={"file": ("a.txt", b"x")})
    assert (refused.status_code, "cannot be written to" in refused.json()["detail"]) == (503, True)
    folder.unlink()
    assert api.call("POST", "/v1/documents", 202, files={"file": ("a.txt", b"x")})["state"] == "queued"


# the same again


def test_a_key_is_answered_as_before_and_done_once(taking: Api) -> None:
    api = taking
    first = send(api, ("a.txt", b"red fox"), key="k-1", uri="doc:a")
    again = send(api, ("a.txt", b"red fox"), key="k-1", uri="doc:a", wait="true", timeout_seconds="0")
    assert again == first
    assert len(waiting_files(api)) == 1
    parse(api)
    later = send(api, ("a.txt", b"red fox"), key="k-1", uri="doc:a", status=200, wait="true")
    assert (later["job"], later["state"], later["documents"][0]["outcome"]) == (first["job"], "done", "added")
    assert len(jobs.of_collection(api.workspace.database, uploads.KIND, "default")) == 1
    other = send(api, ("a.txt", b"red fox"), uri="doc:a")  # without the key nothing is remembered
    assert other["job"] != first["job"]


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("a.txt", b"red fox!", {"uri": "doc:a"}),
        ("a.md", b"red fox", {"uri": "doc:a"}),
        ("a.txt", b"red fox", {"uri": "doc:b"}),
        ("a.txt", b"red fox", {"uri": "doc:a", "title": "T"}),
        ("a.txt", b"red fox", {"uri": "doc:a", "metadata": '{"x": 1}'}),
        ("a.txt", b"red fox", {"uri": "doc:a", "acl": '["x"]'}),
    ],
)
def test_a_key_of_another_request_is_refused(taking: Api, name: str, content: bytes, fields: dict[str, str]) -> None:
    api = taking
    send(api, ("a.txt", b"red fox"), key="k-1", uri="doc:a")
    problem = send(api, (name, content), key="k-1", status=422, **fields)
    assert problem["field"] == "Idempotency-Key"
    assert "stands for another request" in problem["detail"]
    assert len(waiting_files(api)) == 1


def test_a_key_is_forgotten_after_a_day(taking: Api) -> None:
    api = taking
    first = send(api, ("a.txt", b"red fox"), key="k-1")
    with api.workspace.database.write() as connection:
        connection.execute(update(t.Idempotency).values(created_at=t.now() - idempotency.KEPT))
    assert send(api, ("b.txt", b"blue whale"), key="k-1")["job"] != first["job"]
    with api.workspace.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(t.Idempotency)) == 1


def test_one_key_at_once_is_done_once(taking: Api) -> None:
    api, answers = taking, []
    begin = threading.Barrier(5)

    def one() -> None:
        with httpx.Client(base_url=api.client.base_url, timeout=60) as client:
            begin.wait()
            headers = {"Idempotency-Key": "k"}
            answers.append(client.post("/v1/documents", files={"file": ("a.txt", b"red fox")}, headers=headers).json())

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer["job"] for answer in answers}) == 1
    assert len(jobs.of_collection(api.workspace.database, uploads.KIND, "default")) == 1
    assert len(waiting_files(api)) == 1


def test_texts_have_keys_too(taking: Api) -> None:
    api = taking
    body = {"documents": [{"uri": "a", "text": "red fox"}]}
    headers = {"Idempotency-Key": "k"}
    first = api.client.post("/v1/documents", json=body, headers=headers).json()
    api.put({"uri": "a", "text": "blue whale"})
    again = api.client.post("/v1/documents", json={**body, "wait": True}, headers=headers)
    assert again.json() == {**first, "indexed": True}
    assert api.texts("whale") == ["blue whale"]  # it was not put again
    problem = api.client.post("/v1/documents", json={"documents": [{"uri": "b", "text": "x"}]}, headers=headers)
    assert (problem.status_code, problem.json()["field"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ключ".encode().decode("latin-1")])
@pytest.mark.parametrize("shape", ["json", "form"])
def test_a_bad_key_is_refused(taking: Api, key: str, shape: str) -> None:
    body: dict[str, Any] = (
        {"json": {"documents": [{"uri": "a", "text": "x"}]}} if shape == "json" else {"files": {"file": ("a", b"x")}}
    )
    response = taking.client.post("/v1/documents", headers=[("Idempotency-Key", key.encode("latin-1"))], **body)
    assert (response.status_code, response.json()["field"]) == (422, "Idempotency-Key"), response.text
    assert waiting_files(taking) == []


# what is refused


def refused(api: Api, status: int, **options: Any) -> dict[str, Any]:
    """The problem of an upload that is refused; nothing of it is left."""
    response = api.client.post("/v1/documents", **options)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["detail"]
    assert waiting_files(api) == []
    assert jobs.unfinished(api.workspace.database) == []
    return problem


ONE = {"file": ("a.txt", b"red fox")}


@pytest.mark.parametrize(
    ("files", "fields", "field", "words"),
    [
        ({}, {"uri": "a"}, "file", "file is required"),
        ({"file": ("a.txt", b"")}, {}, "file", "is empty"),
        ({"file": ("", b"")}, {}, "file", "file"),
        ({"file": (None, b"text")}, {}, "file", "without a file name"),
        ({"document": ("a.txt", b"x")}, {}, "document", "files are sent as file"),
        (ONE, {"color": "red"}, "color", "is not a known field"),
        (ONE, {"metadata": "[1]"}, "metadata", "must be a JSON object"),
        (ONE, {"metadata": "7"}, "metadata", "must be a JSON object"),
        (ONE, {"metadata": "{"}, "metadata", "must be JSON"),
        (ONE, {"metadata": "[" * 100_000}, "metadata", "must be JSON"),
        (ONE, {"metadata": '{"a": NaN}'}, "metadata", "finite"),
        (ONE, {"metadata": '{"a": "\\ud800"}'}, "metadata", "surrogate"),
        (ONE, {"metadata": '{"a":{"a":{"a":{"a":{"a":{"a":{"a":1}}}}}}}'}, "metadata", "nest"),
        (ONE, {"metadata": json.dumps({"a": "x" * 70_000})}, "metadata", "64000"),
        (ONE, {"acl": "team:sea"}, "acl", "must be JSON"),
        (ONE, {"acl": '"team:sea"'}, "acl", "list"),
        (ONE, {"acl": '{"a": 1}'}, "acl", "list"),
        (ONE, {"acl": "[1]"}, "acl[0]", "string"),
        (ONE, {"acl": '[""]'}, "acl[0]", "at least 1"),
        (ONE, {"uri": ""}, "uri", "at least 1"),
        (ONE, {"uri": "x" * 5000}, "uri", "4096"),
        (ONE, {"uri": "a\nb"}, "uri", "U+000A"),
        (ONE, {"title": "x" * 1001}, "title", "1000"),
        (ONE, {"title": "y" * 400_000}, "title", "300,000 bytes"),
        (ONE, {"wait": "perhaps"}, "wait", "boolean"),
        (ONE, {"timeout_seconds": "1e9"}, "timeout_seconds", "60"),
        (ONE, {"collection": "x" * 65}, "collection", "64"),
        (ONE, {"uri": ["a", "b"]}, "uri", "more than once"),
        ([("file", ("a.txt", b"1")), ("file", ("b.txt", b"2"))], {"uri": "a"}, "uri", "2 files"),
        ([("file", ("a.txt", b"1")), ("file", ("b.txt", b"2"))], {"title": "a"}, "title", "2 files"),
        ([("file", ("x/a.txt", b"1")), ("file", ("y/a.txt", b"2"))], {}, "uri", "once"),
        ([("file", (f"{n}.txt", b"1")) for n in range(101)], {}, "file", "more than 100"),
    ],
)
def test_a_form_with_something_wrong_is_refused(
    taking: Api, files: Any, fields: dict[str, Any], field: str, words: str
) -> None:
    files = files or {"x": None}
    if files == {"x": None}:  # a form without a file
        body = b'--b\r\nContent-Disposition: form-data; name="uri"\r\n\r\na\r\n--b--\r\n'
        options: dict[str, Any] = {
            "content": body,
            "headers": {"Content-Type": "multipart/form-data; boundary=b"},
        }
    else:
        options = {"files": files, "data": fields}
    problem = refused(taking, 422, **options)
    assert problem["field"] == field
    assert words in problem["detail"]


FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("multipart/form-data", b"--b\r\n", 400, "does not name its boundary"),
        (FORM, b"", 400, "not in it"),
        (FORM, b"no form", 400, "is not the multipart/form-data"),
        (FORM, PART % b'file"; filename="a' + b"x", 400, "cut off"),
        (FORM, b"--b\r\n" + b"A: " + b"x" * 20_000, 400, "Maximum header size"),
        (FORM, PART % b"x" + b"\xff\r\n--b--", 422, "UTF-8"),
        (FORM, b"".join(PART % b"%d" % number + b"\r\n" for number in range(3000)) + b"--b--", 422, "too many fields"),
        ("multipart/mixed; boundary=b", b"--b--", 415, "multipart/form-data"),
        ("text/plain", b"red fox", 415, "application/json"),
        ("application/pdf", b"%PDF-1.7", 415, "application/json"),
    ],
)
def test_a_body_that_is_no_form_is_refused(taking: Api, kind: str, body: bytes, status: int, words: str) -> None:
    problem = refused(taking, status, content=body, headers={"Content-Type": kind})
    assert words in problem["detail"]


def test_thousands_of_files_are_refused(taking: Api) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%d.txt"\r\n\r\nx\r\n'
    body = b"".join(head % number for number in range(5000)) + b"--b--"
    problem = refused(taking, 422, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert "more than 100 files" in problem["detail"]


def test_a_collection_that_is_not_there_is_said(taking: Api) -> None:
    assert "no collection 'nowhere'" in refused(taking, 404, files=ONE, data={"collection": "nowhere"})["detail"]


def test_a_file_over_the_limit_is_refused_and_one_at_it_is_not(taking: Api) -> None:
    problem = refused(taking, 413, files={"file": ("a.txt", b"x" * (MAX_FILE + 1))})
    assert "NVR_INGEST__MAX_FILE_BYTES" in problem["detail"]
    send(taking, ("a.txt", b"x" * MAX_FILE))


def test_an_upload_over_the_limit_is_refused_by_its_header_alone(taking: Api) -> None:
    """Before the body is sent, where the client asks for leave."""
    url = taking.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 9999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65_536), b"")).decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "NVR_INGEST__MAX_UPLOAD_BYTES" in answer
    assert waiting_files(taking) == []


def test_a_body_without_a_length_is_counted(taking: Api) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    asked = 0

    def endless(pieces: int) -> Iterator[bytes]:
        nonlocal asked
        for number in range(pieces):
            asked += 1
            yield (head if number % 50 == 0 else b"") + b"x" * 5000 + (b"\r\n" if number % 50 == 49 else b"")

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem = refused(taking, 413, content=endless(600), headers=headers)  # files of 250 kB, 3 MB in all
    assert "NVR_INGEST__MAX_UPLOAD_BYTES" in problem["detail"]


def test_a_client_that_goes_away_leaves_nothing(taking: Api) -> None:
    url = taking.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 400000\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n' + b"x" * 200_000
        )
    deadline = time.monotonic() + 20
    while waiting_files(taking) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert waiting_files(taking) == []
    assert send(taking, ("a.txt", b"red fox"))["state"] == "queued"


def test_what_is_erased_is_not_named_by_jobs_and_answers_any_more(taking: Api) -> None:
    api = taking
    job = send(api, ("secret.txt", b"red fox"), ("b.pdf", b"%PDF-1.7\nnothing"), key="k")["job"]
    parse(api, job)
    send(api, ("secret.txt", b"again"))  # and it waits once more
    with api.workspace.database.write() as connection:
        jobs.add(connection, "ingest", {"collection": "default"})
        words = {"failures": [{"uri": "upload:secret.txt", "reason": "x"}, {"uri": "upload:other", "reason": "y"}]}
        connection.execute(update(t.Job).where(t.Job.kind == "ingest").values(result=words))
    erasing.erase_documents(api.workspace, "default", ["upload:secret.txt"])
    with api.workspace.database.read() as connection:
        told = [*connection.scalars(select(t.Job.result)), *connection.scalars(select(t.Idempotency.answer))]
        asked = json.dumps(list(connection.scalars(select(t.Job.payload).where(t.Job.kind == "upload"))))
        assert connection.scalar(select(func.count()).select_from(t.Upload)) == 0
    said = json.dumps(told)
    assert "secret" not in said
    assert hashlib.sha256(b"red fox").hexdigest() not in asked
    assert hashlib.sha256(b"%PDF-1.7\nnothing").hexdigest() in asked
    assert {"upload:b.pdf", "upload:other"} <= set(said.replace('"', " ").split())
    result = parse(api)
    assert result is not None
    assert (result["documents"][0]["outcome"], waiting_files(api)) == ("superseded", [])
