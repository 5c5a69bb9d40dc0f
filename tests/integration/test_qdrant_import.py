"""Texts out of Qdrant collections that other programs have filled, over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from nvr_rag import collections
from nvr_rag.documents import get, list_documents, text_of
from nvr_rag.errors import InvalidInput, NotFound, StoreError, StoreUnavailable
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.foreign import ForeignCollection, foreign_collection
from nvr_rag.transfer.points import Keys
from nvr_rag.transfer.qdrant_import import QdrantReport, import_points
from nvr_rag.workspace import Workspace
from tests.qdrant_stand_in import Fault, StandIn

NAME = "their docs"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as started:
        yield started


def fill(server: StandIn, payloads: list[dict[str, Any]], *, named: bool = False) -> list[str]:
    """A collection as langchain-qdrant makes one: named or unnamed vectors, ids of uuids; returns the ids."""
    client = QdrantClient(url=server.url, check_compatibility=False)
    size = models.VectorParams(size=2, distance=models.Distance.COSINE)
    client.create_collection(NAME, vectors_config={"content": size} if named else size)
    ids = [str(uuid.UUID(int=n + 1)) for n in range(len(payloads))]
    vector: Any = {"content": [1.0, 0.5]} if named else [1.0, 0.5]
    points = [models.PointStruct(id=key, vector=vector, payload=one) for key, one in zip(ids, payloads, strict=True)]
    for start in range(0, len(points), 200):
        client.upsert(NAME, points[start : start + 200], wait=True)
    client.close()
    return ids


def source(server: StandIn, *, key: str | None = None, name: str = NAME) -> ForeignCollection:
    return foreign_collection(QdrantSettings(timeout_seconds=5), server.url, key, name)


def moved(workspace: Workspace, server: StandIn, *, dry_run: bool = False, **keys: Any) -> QdrantReport:
    return import_points(workspace, source(server), "default", keys=Keys(**keys), dry_run=dry_run)


def texts(workspace: Workspace) -> dict[str, str]:
    with workspace.database.read() as connection:
        found = list_documents(connection, "default")
        return {one.uri: text_of(connection, one.id) for one in found}


@pytest.mark.parametrize("named", [False, True])
def test_what_langchain_has_stored(workspace: Workspace, server: StandIn, named: bool) -> None:
    long = "Green tea is hot. Blue whales are large."
    ids = fill(
        server,
        [
            {"page_content": long[12:], "metadata": {"source": "tea.md", "start_index": 12, "title": "Tea", "n": 2}},
            {"page_content": "No source.", "metadata": {"lang": "en"}},
            {"page_content": long[:18], "metadata": {"source": "tea.md", "start_index": 0, "title": "Tea", "n": 1}},
            {"page_content": "No metadata.", "metadata": None},
            {"page_content": "  ", "metadata": {"source": "empty.md"}},
            {"metadata": {"source": "none.md"}},
        ],
        named=named,
    )
    report = moved(workspace, server)
    assert (report.points, report.without_text, report.documents) == (6, 2, 3)
    assert texts(workspace) == {
        "tea.md": long,
        f"qdrant:{NAME}/{ids[1]}": "No source.",
        f"qdrant:{NAME}/{ids[3]}": "No metadata.",
    }
    with workspace.database.read() as connection:
        tea = get(connection, "default", "tea.md")
        alone = get(connection, "default", f"qdrant:{NAME}/{ids[1]}")
    assert (tea.title, tea.metadata, tea.parser) == ("Tea", {"source": "tea.md", "title": "Tea"}, "qdrant")
    assert alone.metadata == {"lang": "en"}


def test_a_collection_with_keys_of_its_own(workspace: Workspace, server: StandIn) -> None:
    fill(server, [{"body": f"part {n}", "doc": {"id": "x"}, "doc_id": f"d{n % 2}", "chunk": 9 - n} for n in range(4)])
    report = moved(workspace, server, text="body", uri=["doc_id"])
    assert report.documents == 2
    assert texts(workspace) == {"d0": "part 2\n\npart 0", "d1": "part 3\n\npart 1"}


def test_every_point_may_be_a_document(workspace: Workspace, server: StandIn) -> None:
    fill(server, [{"page_content": f"part {n}", "metadata": {"source": "one"}} for n in range(3)])
    assert moved(workspace, server, uri=[]).documents == 3


def test_again_changes_nothing_and_an_edit_is_an_update(workspace: Workspace, server: StandIn) -> None:
    payloads = [{"page_content": f"text {n}", "metadata": {"source": f"s{n % 300}", "chunk": n}} for n in range(700)]
    ids = fill(server, payloads)
    first = moved(workspace, server)
    assert first.outcomes == {"added": 300, "updated": 0, "unchanged": 0}
    assert moved(workspace, server).outcomes == {"added": 0, "updated": 0, "unchanged": 300}
    client = QdrantClient(url=server.url, check_compatibility=False)
    edited = models.PointStruct(id=ids[5], vector=[1.0, 0.5], payload={**payloads[5], "page_content": "edited"})
    client.upsert(NAME, [edited], wait=True)
    client.close()
    assert moved(workspace, server, dry_run=True).outcomes == {"added": 0, "updated": 1, "unchanged": 299}
    assert moved(workspace, server).outcomes == {"added": 0, "updated": 1, "unchanged": 299}


def test_a_dry_run_makes_nothing(workspace: Workspace, server: StandIn) -> None:
    fill(server, [{"page_content": "text"}])
    report = moved(workspace, server, dry_run=True)
    assert (report.created, report.outcomes["added"]) == (True, 1)
    assert not _made(workspace)


def _made(workspace: Workspace) -> bool:
    with workspace.database.read() as connection:
        return bool(collections.all_infos(connection))


def test_metadata_that_cannot_be_stored_is_left_out_and_told(workspace: Workspace, server: StandIn) -> None:
    deep: Any = 1
    for _ in range(20):
        deep = {"a": deep}
    fill(server, [{"page_content": "text", "metadata": {"source": "a", "deep": deep, "ok": 1}}])
    report = moved(workspace, server)
    assert report.dropped == {"deep": 1}
    with workspace.database.read() as connection:
        assert get(connection, "default", "a").metadata == {"source": "a", "ok": 1}


@pytest.mark.parametrize(
    ("payloads", "words"),
    [
        ([{"content": "text", "meta": 1}], "payloads have: content, meta"),
        ([{"page_content": 5}], "payloads have: page_content"),
        ([{}], "no payloads"),
        ([], "no points"),
    ],
)
def test_a_collection_without_texts(
    workspace: Workspace, server: StandIn, payloads: list[dict[str, Any]], words: str
) -> None:
    fill(server, payloads)
    with pytest.raises(InvalidInput, match=words):
        moved(workspace, server)
    assert not _made(workspace)


def test_a_collection_that_is_not_there(workspace: Workspace, server: StandIn) -> None:
    fill(server, [{"page_content": "text"}])
    with pytest.raises(NotFound, match=NAME):
        import_points(workspace, source(server, name="other"), "default", keys=Keys())
    assert not _made(workspace)


def test_a_wrong_key_is_told_and_never_shown(workspace: Workspace, server: StandIn) -> None:
    fill(server, [{"page_content": "text"}])
    server.require("the-right-key")
    with pytest.raises(StoreError, match="QDRANT_API_KEY") as caught:
        import_points(workspace, source(server, key="a-wrong-key"), "default", keys=Keys())
    assert "a-wrong-key" not in str(caught.value)
    assert "NVR_" not in str(caught.value)
    assert not _made(workspace)
    assert import_points(workspace, source(server, key="the-right-key"), "default", keys=Keys()).documents == 1


def test_a_page_that_fails_is_asked_for_again(workspace: Workspace, server: StandIn) -> None:
    fill(server, [{"page_content": f"text {n}"} for n in range(600)])
    server.fail(Fault(status=503, only="scroll", times=2, skip=1))
    assert moved(workspace, server).documents == 600


def test_a_server_that_goes_away_in_the_middle_changes_nothing(workspace: Workspace, server: StandIn) -> None:
    fill(server, [{"page_content": f"text {n}"} for n in range(600)])
    server.fail(Fault(kind="hang up", only="scroll", skip=1))
    with pytest.raises(StoreUnavailable):
        moved(workspace, server)
    assert not _made(workspace)


@pytest.mark.parametrize("url", ["localhost:6333", "ftp://x", "http://user:secret@host"])
def test_an_url_that_cannot_be_one(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        foreign_collection(QdrantSettings(), url, None, NAME)
    assert "secret" not in str(caught.value)
