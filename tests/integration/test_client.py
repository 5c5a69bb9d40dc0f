"""The typed clients against a running server: files and folders in, jobs followed, problems as our errors, and every
method of both of them once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from ingest.service import IngestService
from nvr_rag import jobs
from nvr_rag.access.callers import Scope
from nvr_rag.access.keyring import MOMENT_SECONDS
from nvr_rag.api.search_schemas import MmrRequest, SearchRequest
from nvr_rag.client import EVERYBODY, AsyncClient, Client, TextDocument, UploadFields
from nvr_rag.client.requests import SearchOptions
from nvr_rag.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthenticated
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.types import DocumentState, Feedback, FeedbackKind, Mmr, Query
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.integration.key_support import make_key


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


def test_everything_that_a_search_may_say_can_be_said() -> None:
    """Fields of the request and of what the client takes are the same."""
    sent = set(SearchRequest.model_fields) - {"query"}
    assert set(SearchOptions.__annotations__) == sent
    assert {one.name for one in fields(Query)} - {"text", "reader", "asker"} == sent
    assert {one.name for one in fields(Mmr)} == set(MmrRequest.model_fields)


WHALE = TextDocument(uri="doc:whale", text="blue whale\n\nlives in the sea", metadata={"legs": 0})
FOX = TextDocument(uri="doc:fox", text="red fox\n\nlives in a den", metadata={"legs": 4})


def test_every_method_of_the_client(client: Client) -> None:
    with pytest.raises(Conflict):
        client.create_collection("default")
    stored = client.put([WHALE, FOX], wait=True)
    assert (stored.indexed, [one.outcome for one in stored.documents]) == (True, ["added", "added"])
    assert [one.uri for one in client.documents()] == ["doc:fox", "doc:whale"]
    answer = client.search("lives in a den", k=1, mode="lexical", context=1, explain=True)
    (hit,) = answer.hits
    assert (hit.text, hit.uri, hit.metadata, hit.source) == ("lives in a den", "doc:fox", {"legs": 4}, "")
    assert hit.context is not None
    assert (hit.context.before, hit.context.start) == ("red fox\n\n", 0)
    assert hit.explain is not None
    assert hit.explain.lexical is not None
    assert (hit.explain.lexical.rank, hit.lexical_rank, hit.explain.dense) == (1, 1, None)
    passage = client.chunk(hit.chunk_id)
    assert (passage.text, passage.document_id, passage.context) == (hit.text, hit.document_id, None)
    assert passage.updated_at == hit.updated_at
    filtered, grouped = client.search_batch(
        [Query(text="lives", filter={"metadata.legs": {"gte": 1}}), "lives"], mmr=Mmr(diversity=0.3), k=4
    )
    assert {one.uri for one in filtered.hits} == {"doc:fox"}
    assert len(grouped.hits) == 4
    word = Feedback(query_id=answer.query_id, kind=FeedbackKind.CITED, chunk_id=hit.chunk_id)
    assert (client.feedback(word).new, client.feedback([word, word]).new) == (1, 0)
    judged = Feedback(query_id=answer.query_id, kind=FeedbackKind.RELEVANT, chunk_id=passage.chunk_id)
    assert client.feedback(judged, outside=True).accepted == 1
    known = client.document(hit.document_id, text=True)
    assert (known.text, known.acl, known.state) == (FOX.text, None, DocumentState.READY)
    client.delete(uri="doc:fox")
    with pytest.raises(NotFound):
        client.delete(hit.document_id)
    assert [one.uri for one in client.documents(state=DocumentState.DELETED)] == ["doc:fox"]
    assert [one.name for one in client.collections()] == ["default"]
    assert client.collection("default").documents["ready"] == 1
    with pytest.raises(NotFound):
        client.collection("../jobs")
    vectors = client.embed(["one", "two"]).vectors
    assert [list(one) for one in vectors] == HashEncoder().encode_documents(["one", "two"]).tolist()
    assert client.embed(["word " * 100]).truncated == [0]
    assert client.ready().ready
    with pytest.raises(Conflict, match="cannot train"):
        client.retrain(dry_run=True)


async def test_every_method_of_the_client_that_is_awaited(server: Api, tmp_path: Path) -> None:
    async with AsyncClient(str(server.client.base_url)) as client:
        with pytest.raises(Conflict):
            await client.create_collection("default")
        assert (await client.put([WHALE, FOX], wait=True)).indexed
        assert [one.uri async for one in client.documents()] == ["doc:fox", "doc:whale"]
        answer = await client.search("lives in a den", k=1, mode="lexical", context=1)
        (hit,) = answer.hits
        assert (hit.text, hit.context.before if hit.context else "") == ("lives in a den", "red fox\n\n")
        assert (await client.chunk(hit.chunk_id)).text == hit.text
        assert [len(one.hits) for one in await client.search_batch(["fox", "whale"], k=3)] == [3, 3]
        word = Feedback(query_id=answer.query_id, kind=FeedbackKind.CITED, chunk_id=hit.chunk_id)
        assert (await client.feedback(word)).new == 1
        assert (await client.document(hit.document_id)).uri == "doc:fox"
        await client.delete(hit.document_id)
        assert [one.name for one in await client.collections()] == ["default"]
        assert (await client.collection("default")).documents["ready"] == 1
        assert len((await client.embed(["one"], input_type="query")).vectors[0]) == 64
        assert (await client.ready()).ready
        uploaded = await client.upload(b"green tea", name="tea.txt")
        assert (await client.wait(uploaded.job, timeout_seconds=60, poll_seconds=0.02)).state == "done"
        job = await client.ingest(f"{tmp_path}/share")
        assert (await client.wait(job.id, timeout_seconds=60, poll_seconds=0.02)).state == "done"
        stuck = jobs.enqueue(server.workspace.database, "of nobody", {})
        with pytest.raises(TimeoutError, match="queued"):
            await client.wait(stuck, timeout_seconds=0.05, poll_seconds=0.01)
        with pytest.raises(Conflict, match="cannot train"):
            await client.retrain()


def test_many_documents_come_page_by_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvr_rag.client.requests.PAGE", 2)
    client.put([TextDocument(uri=f"doc:{number}", text="a") for number in range(5)])
    assert [one.uri for one in client.documents()] == [f"doc:{number}" for number in range(5)]


def test_keys_and_those_they_speak_for(server: Api) -> None:
    url = str(server.client.base_url)
    bot = make_key(server.workspace, Scope.SEARCH, Scope.FEEDBACK, Scope.IMPERSONATE)
    writer = make_key(server.workspace, Scope.INGEST, Scope.SEARCH, principals=["user:ann"])
    time.sleep(MOMENT_SECONDS)  # so long a server remembers that there were none
    with pytest.raises(Unauthenticated), Client(url) as nobody:
        nobody.search("fox")
    with Client(url, api_key=writer) as client:
        private = TextDocument(uri="doc:diary", text="red fox diary")  # for whom the key is
        public = TextDocument(uri="doc:poem", text="red fox poem", acl=EVERYBODY)
        others = TextDocument(uri="doc:note", text="red fox note", acl=["user:bob", "user:bärbel"])
        assert client.put([private, public, others], wait=True).indexed
        with pytest.raises(Conflict, match="may not read"):
            client.put([others])  # written for others, it is not one's own any more
        assert [(one.uri, one.acl, one.seq) for one in client.documents()] == [
            ("doc:diary", ["user:ann"], None),
            ("doc:poem", None, None),
        ]
        with pytest.raises(Forbidden, match="scope feedback"):
            client.feedback(Feedback(query_id="q", kind=FeedbackKind.ANSWER_GOOD))
    with Client(url, api_key=bot) as client:
        ann, bob = client.on_behalf_of("user:ann"), client.on_behalf_of("user:zoë", "user:bärbel")
        assert [{hit.uri for hit in one.search("fox").hits} for one in (client, ann, bob)] == [
            {"doc:poem"},
            {"doc:poem", "doc:diary"},
            {"doc:poem", "doc:note"},
        ]
        answer = ann.search("fox")
        word = Feedback(query_id=answer.query_id, kind=FeedbackKind.CITED, chunk_id=answer.hits[0].chunk_id)
        with pytest.raises(NotFound, match="no query"):
            bob.feedback(word)
        assert ann.feedback(word).new == 1


def test_the_package_is_imported_in_no_time_and_has_the_clients() -> None:
    program = (
        "import sys, nvr_rag; before = [m for m in ('httpx', 'torch', 'pydantic', 'sqlalchemy') if m in sys.modules];"
        "from nvr_rag import AsyncClient, Client, Query, TextDocument, Feedback, FeedbackKind, Mode, Mmr, UploadFields;"
        "print(before, 'httpx' in sys.modules, [m for m in ('torch', 'pydantic', 'sqlalchemy') if m in sys.modules],"
        " hasattr(nvr_rag, 'nothing'))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[] True [] False"
