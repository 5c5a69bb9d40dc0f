"""Exports and imports over real databases: what goes out comes in again, exactly, and nothing half."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from nvr_rag import collections, corpus, deployments
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, InvalidInput, NotFound
from nvr_rag.fusion import FusionSettings
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.transfer.exporting import export
from nvr_rag.transfer.importing import import_file
from nvr_rag.transfer.records import Part
from nvr_rag.types import Mode
from nvr_rag.workspace import Workspace
from tests import engines
from tests.integration.transfer_support import ALL, ask, catch_up, fill, lines, write
from tests.support import House, document


@pytest.fixture
def other(empty_home: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A second installation, without collections."""
    home = engines.copy_home(empty_home, tmp_path / "other")
    with Workspace(Settings(**engines.options_of(home)), store=MemoryStore(), encoder=HashEncoder()) as opened:
        yield opened


def kinds(found: list[dict[str, object]]) -> list[object]:
    return [line["type"] for line in found]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_round_trip_is_exact(house: House, other: Workspace, tmp_path: Path, seed: int) -> None:
    house.workspace.create_collection("second", language="german", mode=Mode.LEXICAL)
    fill(house.workspace, "default", seed)
    fill(house.workspace, "second", seed + 100, count=20)
    before = lines(house.database)
    assert {"chunk", "chunking", "judgment", "query"} <= set(kinds(before))
    assert {line.get("state") for line in before if line["type"] == "document"} == {"ready", "failed"}

    import_file(other, write(house.database, tmp_path / "x.jsonl"))

    assert lines(other.database) == before


def test_importing_again_changes_nothing(house: House, other: Workspace, tmp_path: Path) -> None:
    fill(house.workspace, "default", 4)
    path = write(house.database, tmp_path / "x.jsonl")
    import_file(other, path)
    before, stamps = lines(other.database), _stamps(other)

    again = import_file(other, path)

    assert (again.added, again.updated, again.judgments, again.queries, again.feedback) == (0, 0, 0, 0, 0)
    assert again.unchanged > 10
    assert again.failed > 3
    assert lines(other.database) == before
    assert _stamps(other) == stamps


def _stamps(workspace: Workspace) -> tuple[object, ...]:
    with workspace.database.read() as connection:
        seqs = connection.execute(select(t.Collection.name, t.Collection.next_seq)).all()
        return seqs, connection.execute(select(t.Document.id, t.Document.updated_at).order_by(t.Document.id)).all()


def test_chunks_that_came_along_are_not_cut_again_and_are_found(
    house: House, other: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.put(document("file:///tea.md", "green tea is hot\n\nblue whale\n\nblue whale"))
    house.catch_up()
    import_file(other, write(house.database, tmp_path / "x.jsonl", parts=(Part.CHUNKS,)))
    monkeypatch.setattr("tests.integration.transfer_support.paragraphs", None)  # cutting would fail

    catch_up(other, "default")

    with other.database.read() as connection:
        chunks = connection.scalars(select(t.Chunk.id)).all()
    key, digest = document_id("default", "file:///tea.md"), sha256_text("blue whale")
    assert {chunk_id(key, digest, 0), chunk_id(key, digest, 1)} < set(chunks)
    assert len(chunks) == 3


def test_without_parts_only_documents_go(house: House) -> None:
    fill(house.workspace, "default", 5)
    assert set(kinds(lines(house.database, parts=()))) == {"header", "collection", "document", "trailer"}


def test_deleted_documents_stay_behind(house: House, other: Workspace, tmp_path: Path) -> None:
    house.put(document("a", "red fox"), document("b", "green tea"))
    house.catch_up()
    house.delete("a")
    found = lines(house.database)
    assert [line["uri"] for line in found if line["type"] == "document"] == ["b"]
    assert "red fox" not in str(found)


def test_another_name_maps_ids_in_the_same_database(house: House, tmp_path: Path) -> None:
    house.put(document("a", "red fox\n\nred fox"), document("b", "green tea"))
    house.catch_up()
    old = document_id("default", "a")
    digest = sha256_text("red fox")
    ask(house.workspace, "default", "who?", [chunk_id(old, digest, 1), chunk_id(old, digest, 0)])
    before = lines(house.database, "default")
    path = write(house.database, tmp_path / "x.jsonl", "default")

    import_file(house.workspace, path, collection="copy")
    report = import_file(house.workspace, path, collection="copy")

    assert (report.added, report.queries, report.feedback) == (0, 0, 0)
    assert lines(house.database, "default") == before
    copied = lines(house.database, "copy")
    new = document_id("copy", "a")
    assert {line["id"] for line in copied if line["type"] == "document"} == {new, document_id("copy", "b")}
    [query] = [line for line in copied if line["type"] == "query"]
    assert [hit["chunk"] for hit in query["hits"]] == [chunk_id(new, digest, 1), chunk_id(new, digest, 0)]
    assert [item["chunk"] for item in query["feedback"]] == [None, chunk_id(new, digest, 1), chunk_id(new, digest, 1)]
    # and back again, under the first name, it is what it was
    with house.database.write() as connection:
        collections.remove(connection, "default")
    back = write(house.database, tmp_path / "y.jsonl", "copy")
    import_file(house.workspace, back, collection="default")
    told = [{**line, "id": ""} if line["type"] == "query" else line for line in lines(house.database, "default")]
    assert told == [{**line, "id": ""} if line["type"] == "query" else line for line in before]


def test_how_a_collection_answers_goes_along(house: House, other: Workspace, tmp_path: Path) -> None:
    with house.database.write() as connection:
        now = deployments.serving(connection, "default")
        fusion = FusionSettings(method="weighted", dense_weight=3.0, lexical_weight=0.5)
        deployments.serve(connection, now.collection_id, now.index_id, Mode.DENSE, fusion)
    import_file(other, write(house.database, tmp_path / "x.jsonl"))
    with other.database.read() as connection:
        there = deployments.serving(connection, "default")
    assert (there.mode, there.fusion) == (Mode.DENSE, fusion)


def test_a_collection_with_documents_goes_on_answering_as_it_did(
    house: House, other: Workspace, tmp_path: Path
) -> None:
    house.put(document("a", "red fox"))
    other.create_collection("default", mode=Mode.LEXICAL)
    with other.database.write() as connection:
        corpus.put(connection, "default", [document("b", "blue whale"), document("a", "old")])
    report = import_file(other, write(house.database, tmp_path / "x.jsonl"))
    assert (report.created, report.updated, report.added) == ([], 1, 0)
    with other.database.read() as connection:
        assert deployments.serving(connection, "default").mode is Mode.LEXICAL
        texts = connection.execute(select(t.Document.uri, t.DocumentVersion.text).join(t.DocumentVersion)).all()
    assert sorted(map(tuple, texts)) == [("a", "old"), ("a", "red fox"), ("b", "blue whale")]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(house: House, other: Workspace, tmp_path: Path) -> None:
    fill(house.workspace, "default", 6)
    path = write(house.database, tmp_path / "x.jsonl")
    new = import_file(other, path, dry_run=True)
    assert lines(other.database)[1:] == [{"type": "trailer", "counts": dict.fromkeys(_COUNTED, 0)}]
    done = import_file(other, path)
    assert (new.created, new.added, new.failed) == (["default"], done.added, done.failed)

    house.put(document("file:///new", "new"))
    stamps = _stamps(other)
    second = import_file(other, write(house.database, path), dry_run=True)
    assert (second.added, second.unchanged) == (1, done.added)
    assert _stamps(other) == stamps


_COUNTED = ("collections", "documents", "chunks", "judgments", "queries", "feedback")


def test_of_feedback_and_judgments_the_later_word_counts(house: House, other: Workspace, tmp_path: Path) -> None:
    fill(house.workspace, "default", 7)
    path = write(house.database, tmp_path / "x.jsonl")
    import_file(other, path)
    with other.database.write() as connection:
        connection.execute(update(t.FeedbackRow).values(grade=9, created_at=t.now()))
        connection.execute(update(t.JudgmentRow).values(grade=8, created_at=t.now()))
    report = import_file(other, path)
    assert (report.judgments, report.feedback) == (0, 0)
    with other.database.read() as connection:
        assert set(connection.scalars(select(t.FeedbackRow.grade))) == {9}
        assert set(connection.scalars(select(t.JudgmentRow.grade))) == {8}
    with house.database.write() as connection:
        connection.execute(update(t.FeedbackRow).values(grade=1, created_at=t.now()))
    assert import_file(other, write(house.database, path)).feedback > 0
    with other.database.read() as connection:
        assert set(connection.scalars(select(t.FeedbackRow.grade))) == {1}


def test_an_interrupted_import_is_finished_by_the_next(
    house: House, other: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(house.workspace, "default", 8, count=100)
    path = write(house.database, tmp_path / "x.jsonl")
    monkeypatch.setattr("nvr_rag.transfer.importing._BATCH_ITEMS", 10)
    real, calls = corpus.put, []

    def put(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus, "put", put)
    with pytest.raises(KeyboardInterrupt):
        import_file(other, path)
    half = len(lines(other.database, parts=()))
    assert 10 < half < len(lines(house.database, parts=()))
    monkeypatch.setattr(corpus, "put", real)

    import_file(other, path)

    assert lines(other.database) == lines(house.database)


def test_an_export_is_of_one_moment(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house.put(*(document(f"{n:03}", f"text {n}") for n in range(50)))
    monkeypatch.setattr("nvr_rag.transfer.exporting._PAGE", 10)
    expected = lines(house.database)
    seen = []

    def told(done: int, _total: int) -> None:
        seen.append(done)
        house.put(document("000", f"edited {done}"), document(f"zz{done}", "late"))
        if done == 10:
            house.delete("049")

    with (tmp_path / "x.jsonl").open("wb") as file:
        counts = export(house.database, file, parts=ALL, report=told)
    assert counts["documents"] == 50
    assert seen == [10, 20, 30, 40, 50]
    content = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert content[1:] == expected[1:]


def test_a_collection_that_is_not_there(house: House, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there are: default"):
        write(house.database, tmp_path / "x.jsonl", "defautl")


def test_several_collections_cannot_get_one_name(house: House, other: Workspace, tmp_path: Path) -> None:
    house.workspace.create_collection("second")
    with pytest.raises(InvalidInput, match="2 collections"):
        import_file(other, write(house.database, tmp_path / "x.jsonl"), collection="third")
    assert len(lines(other.database)) == 2


def test_a_query_that_another_collection_has_is_not_taken_over(house: House, other: Workspace, tmp_path: Path) -> None:
    house.put(document("a", "red fox"))
    house.catch_up()
    ask(house.workspace, "default", "who?", [chunk_id(document_id("default", "a"), sha256_text("red fox"), 0)])
    path = write(house.database, tmp_path / "x.jsonl")
    import_file(other, path)
    with other.database.write() as connection:
        connection.execute(update(t.Collection).values(name="moved"))
    with pytest.raises(Conflict, match="another collection"):
        import_file(other, path)
