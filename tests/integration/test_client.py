"""The typed client against a running server: files and folders in, jobs followed, problems as our errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.service import IngestService
from nvr_rag import jobs
from nvr_rag.client import Client, UploadFields
from nvr_rag.errors import Conflict, InvalidInput, NotFound
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.types import Query
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running


@pytest.fixture
def server(bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("NVR_INGEST__ROOTS", str(tmp_path / "share"))
    monkeypatch.setenv("NVR_INGEST__MAX_FILE_BYTES", "1000")
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "a.txt").write_text("red fox", encoding="utf-8")
    with (
        Workspace(Settings(home=bare_home), store=MemoryStore(), encoder=HashEncoder()) as workspace,
        running(workspace, [IngestService()]) as api,
    ):
        api.call("POST", "/v1/collections", 201, json={"name": "default"})
        yield api


@pytest.fixture
def client(server: Api) -> Iterator[Client]:
    with Client(str(server.client.base_url)) as client:
        yield client


def test_files_and_bytes_are_uploaded_and_found(client: Client, tmp_path: Path) -> None:
    (tmp_path / "whale.md").write_text("blue whale", encoding="utf-8")
    fields = UploadFields(metadata={"team": "sea"}, title="Whales")
    path = client.upload(tmp_path / "whale.md", fields=fields, wait=True)
    assert (path.uri, path.indexed, path.outcome, path.error) == ("upload:whale.md", True, "added", None)
    hit = client.search(Query(text="whale", k=1)).hits[0]
    assert (hit.document_id, hit.title, hit.metadata) == (path.id, "Whales", {"team": "sea"})
    data = client.upload(b"green tea", name="tea.txt", fields=UploadFields(uri="doc:tea"), idempotency_key="k")
    done = client.wait(data.job, timeout_seconds=60, poll_seconds=0.02)
    assert (done.state, done.finished, done.kind, done.collection) == ("done", True, "upload", "default")
    assert client.upload(b"green tea", name="tea.txt", fields=UploadFields(uri="doc:tea"), idempotency_key="k").job == (
        data.job
    )


def test_a_folder_is_ingested_and_waited_for(client: Client, tmp_path: Path) -> None:
    job = client.ingest(f"{tmp_path}/share", exclude=["*.pdf"])
    done = client.wait(job.id, timeout_seconds=60, poll_seconds=0.02)
    assert done.result is not None
    assert (done.state, done.result["added"], done.error) == ("done", 1, None)
    assert client.search(Query(text="fox", k=1)).hits[0].text == "red fox"


def test_problems_are_our_errors(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not inside a folder"):
        client.ingest("/etc")
    with pytest.raises(NotFound, match="no job 99"):
        client.job(99)
    with pytest.raises(NotFound, match="no collection 'x'"):
        client.upload(b"x", name="a.txt", collection="x")
    with pytest.raises(InvalidInput, match="MAX_FILE_BYTES"):
        client.upload(b"x" * 1001, name="a.txt")
    client.upload(b"one", name="a.txt", idempotency_key="k")
    with pytest.raises(InvalidInput, match="stands for another request"):
        client.upload(b"two", name="a.txt", idempotency_key="k")


def test_waiting_has_an_end(server: Api, client: Client) -> None:
    job = jobs.enqueue(server.workspace.database, "of nobody", {})
    with pytest.raises(TimeoutError, match="queued"):
        client.wait(job, timeout_seconds=0.05, poll_seconds=0.01)
    jobs.enqueue_alone(server.workspace.database, "ingest", "default", {})  # about the whole collection
    with pytest.raises(Conflict):
        client.ingest(f"{server.workspace.home.parent}/share")
