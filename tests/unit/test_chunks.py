"""Chunks and placements: names, spans, and who is shown at which number."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from nvr_rag import chunks, collections, placing
from nvr_rag.chunks import PlacedChunk, Version
from nvr_rag.db import tables as t
from nvr_rag.db.session import bytewise
from nvr_rag.errors import NotFound
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.placing import Cutting
from nvr_rag.types import ANYBODY, ChunkDraft, TextFormat
from tests.support import House, document

A = document_id("default", "a")


def versions(house: House, uri: str, seq: int) -> list[int]:
    with house.database.read() as connection:
        return [version.seq for version in chunks.versions_at(connection, [document_id("default", uri)], seq)]


def cut(house: House, uri: str, seq: int, *texts: str) -> Version:
    """Place a version with one chunk for each text."""
    with house.database.write() as connection:
        (version,) = chunks.versions_at(connection, [document_id("default", uri)], seq)
        drafts = [ChunkDraft(text=text, start=0, end=len(text)) for text in texts]
        placing.place(connection, 1, Cutting(version=version, drafts=drafts))
        return version


def placed(house: House, version: Version) -> list[PlacedChunk]:
    with house.database.read() as connection:
        return list(chunks.chunks_of(connection, [version], 1))


def key(text: str, occurrence: int = 0, document: str = A) -> str:
    return chunk_id(document, sha256_text(text), occurrence)


def visible(house: House, ids: list[str], since: int, until: int) -> list[tuple[str, int]]:
    with house.database.read() as connection:
        view = chunks.View(chunking_id=1, since=since, until=until, reader=ANYBODY)
        found = chunks.visible(connection, ids, view)
        return sorted((chunk.text, chunk.version_seq) for chunk in found)


def test_the_chunks_of_several_versions_come_in_order_over_any_number_of_pages(house: House) -> None:
    lengths = {"a": 3, "b": 0, "c": 2100, "d": 5, "e": 1200}  # a page has a thousand
    for uri in lengths:
        house.put(document(uri, "text"))
    cuts = [cut(house, uri, 9, *(f"{uri} {n}" for n in range(length))) for uri, length in lengths.items()]
    for chosen in (cuts, cuts[::-1], cuts[:2], cuts[3:], cuts[:1], []):
        with house.database.read() as connection:
            found = list(chunks.chunks_of(connection, chosen, 1))
        wanted = {version.id: version.document_id for version in chosen}
        assert [(chunk.version_id, chunk.ordinal) for chunk in found] == [
            (version.id, n)
            for version, length in zip(cuts, lengths.values(), strict=True)
            if version.id in wanted
            for n in range(length)
        ]
        assert all(chunk.document_id == wanted[chunk.version_id] for chunk in found)


def test_an_index_shows_the_newest_version_it_has_applied(house: House) -> None:
    house.put(document("a", "1"))  # seq 1
    house.put(document("b", "1"))  # seq 2
    house.put(document("a", "2"))  # seq 3
    assert [versions(house, "a", seq) for seq in range(5)] == [[], [1], [1], [3], [3]]
    assert [versions(house, "b", seq) for seq in range(4)] == [[], [], [2], [2]]


def test_a_deletion_counts_at_once_at_every_number(house: House) -> None:
    house.put(document("a", "1"))
    house.delete("a")
    assert [versions(house, "a", seq) for seq in range(4)] == [[], [], [], []]


def test_a_document_that_came_back_is_shown_from_there_on(house: House) -> None:
    house.put(document("a", "1"))
    house.delete("a")
    house.put(document("a", "1"))
    assert [versions(house, "a", seq) for seq in range(5)] == [[], [], [], [3], [3]]


def test_a_failure_hides_nothing(house: House) -> None:
    house.put(document("a", "1"))
    house.fail("a")
    assert versions(house, "a", 1) == [1]


def test_a_failure_after_a_deletion_brings_nothing_back(house: House) -> None:
    house.put(document("a", "1"))
    house.delete("a")
    house.fail("a")
    assert versions(house, "a", 9) == []


def test_equal_texts_in_a_document_are_told_apart_by_occurrence(house: House) -> None:
    house.put(document("a", "x"))
    version = cut(house, "a", 1, "x", "y", "x", "x")
    assert [chunk.chunk_id for chunk in placed(house, version)] == [key("x"), key("y"), key("x", 1), key("x", 2)]


def test_an_edit_keeps_the_other_chunks(house: House) -> None:
    house.put(document("a", "1"))
    before = placed(house, cut(house, "a", 1, "x", "y", "z"))
    house.put(document("a", "2"))
    after = placed(house, cut(house, "a", 2, "new", "z", "x"))
    assert {chunk.chunk_id for chunk in before} & {chunk.chunk_id for chunk in after} == {key("x"), key("z")}


def test_the_first_cut_of_a_version_counts(house: House) -> None:
    house.put(document("a", "1"))
    cut(house, "a", 1, "x")
    assert [chunk.text for chunk in placed(house, cut(house, "a", 1, "y", "z"))] == ["x"]


def test_a_version_without_chunks_is_cut(house: House) -> None:
    house.put(document("a", ""))
    with house.database.read() as connection:
        (version,) = chunks.versions_at(connection, [A], 1)
        assert placing.unplaced(connection, [version], 1) == [version]
    cut(house, "a", 1)
    with house.database.read() as connection:
        assert placing.unplaced(connection, [version], 1) == []
    assert placed(house, version) == []


def test_a_placed_chunk_tells_where_it_stands_and_what_filters_ask_for(house: House) -> None:
    house.put(document("a", "xyz", title="T", metadata={"n": [1, 2]}, acl=["anna"], source="folder"))
    with house.database.write() as connection:
        stored = datetime(1970, 1, 2, 0, 0, 0, 250_000, tzinfo=UTC)
        connection.execute(update(t.DocumentVersion).values(created_at=stored))
        (version,) = chunks.versions_at(connection, [A], 1)
        draft = ChunkDraft(text="yz", start=1, end=3, headings=["One", "Two"], page=4)
        placing.place(connection, 1, Cutting(version=version, drafts=[draft]))
    (chunk,) = placed(house, version)
    assert (chunk.text, chunk.start, chunk.end, chunk.headings, chunk.page) == ("yz", 1, 3, ["One", "Two"], 4)
    assert (chunk.sha256, chunk.version_seq, chunk.acl) == (sha256_text("yz"), 1, ["anna"])
    assert chunk.fields() == {
        "document_id": A,
        "uri": "a",
        "source": "folder",
        "title": "T",
        "media_type": "text/plain",
        "updated_at": 86_400.25,
        "metadata": {"n": [1, 2]},
    }


def test_thousands_of_chunks_come_in_order(house: House) -> None:
    house.put(document("a", "1"), document("b", "1"))
    texts = [f"text {i}" for i in range(2001)]
    assert [chunk.text for chunk in placed(house, cut(house, "a", 2, *texts))] == texts
    cut(house, "b", 2, "x")
    with house.database.read() as connection:
        ids = [chunk.chunk_id for chunk in chunks.all_chunks(connection, 1, 1, 2)]
        alone = [chunk.text for chunk in chunks.all_chunks(connection, 1, 1, 0)]
    expected = [key(text) for text in texts] + [key("x", document=document_id("default", "b"))]
    assert ids == sorted(expected)
    assert alone == []


def test_ids_are_sorted_as_python_sorts_them_whatever_the_language_of_the_database() -> None:
    """In Danish "aa" comes after "z"."""
    statement = select(t.Chunk.id).order_by(bytewise(_Speaks("postgresql"), t.Chunk.id))  # type: ignore[arg-type]
    assert str(statement.compile(dialect=postgresql.dialect())).endswith('ORDER BY chunk.id COLLATE "C"')
    statement = select(t.Chunk.id).order_by(bytewise(_Speaks("sqlite"), t.Chunk.id))  # type: ignore[arg-type]
    assert str(statement).endswith("ORDER BY chunk.id")  # bytes there already


class _Speaks:
    def __init__(self, name: str) -> None:
        self.dialect = postgresql.dialect() if name == "postgresql" else sqlite.dialect()


def test_memory_is_bounded_where_every_chunk_is_streamed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are fetched a page at a time, by a cursor in the server where there is one."""
    with house.database.read() as connection:
        language = connection.dialect.name
    for i in range(20):
        house.put(document(f"d{i}", "any"))
        cut(house, f"d{i}", i + 1, *[f"{i} {j} " + 2000 * "x" for j in range(100)])
    monkeypatch.setattr(chunks, "_PAGE", 50)
    cursors = set()
    event.listen(
        house.database.engine, "after_cursor_execute", lambda _c, cursor, *_: cursors.add(type(cursor).__name__)
    )
    with house.database.read() as connection:
        tracemalloc.start()
        seen = sum(1 for _ in chunks.all_chunks(connection, 1, 1, 20))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen == 2000
    assert peak < 1_000_000  # of 4 MB of text
    assert language == "sqlite" or "ServerCursor" in cursors


def test_what_is_stale_is_what_may_be_there_and_is_not_shown(house: House) -> None:
    for number, texts in enumerate((["x", "y"], ["y", "z"], ["x", "z"]), start=1):
        house.put(document("a", str(number)))
        cut(house, "a", number, *texts)

    def stale(purged: int, applied: int) -> list[str]:
        with house.database.read() as connection:
            found = set(chunks.stale_chunks(connection, [A], 1, purged=purged, applied=applied))
        return [text for text in "xyz" if key(text) in found]

    assert (stale(0, 1), stale(0, 2), stale(0, 3)) == ([], ["x"], ["y"])
    assert (stale(1, 2), stale(2, 3), stale(3, 3)) == (["x"], ["y"], [])
    house.delete("a")
    assert (stale(0, 3), stale(3, 3), stale(3, 4)) == (["x", "y", "z"], ["x", "z"], ["x", "z"])


def test_what_is_visible_while_an_index_moves(house: House) -> None:
    house.put(document("a", "1"))
    cut(house, "a", 1, "x", "y")
    house.put(document("a", "2"))
    cut(house, "a", 2, "y", "z")
    ids = [key(text) for text in "xyz"]
    assert visible(house, ids, 1, 1) == [("x", 1), ("y", 1)]
    assert visible(house, ids, 2, 2) == [("y", 2), ("z", 2)]
    assert visible(house, ids, 1, 2) == [("x", 1), ("y", 1), ("y", 2), ("z", 2)]
    assert visible(house, ids, 0, 0) == visible(house, ids, 2, 0) == []
    house.delete("a")
    assert visible(house, ids, 1, 2) == []


def test_what_is_not_for_everyone_is_for_nobody_yet(house: House) -> None:
    house.put(document("a", "1", acl=["anna"]), document("b", "1", acl=[]))
    for uri in "ab":
        cut(house, uri, 2, "x")
    assert visible(house, [key("x"), key("x", document=document_id("default", "b"))], 2, 2) == []


def test_equal_texts_are_found_in_their_collection_only(house: House) -> None:
    house.workspace.create_collection("other")
    house.put(document("a", "1"), document("b", "1"))
    for uri in "ab":
        cut(house, uri, 2, "x", uri)
    with house.database.read() as connection:
        found = chunks.same_text(connection, 1, [sha256_text("x"), sha256_text("a"), sha256_text("none")])
        elsewhere = chunks.same_text(connection, 2, [sha256_text("x")])
        others = chunks.same_text(connection, 1, [sha256_text("x"), sha256_text("a")], but=[key("x"), key("a")])
    assert {digest: len(ids) for digest, ids in found.items()} == {sha256_text("x"): 2, sha256_text("a"): 1}
    assert elsewhere == {}
    assert others == {sha256_text("x"): [key("x", document=document_id("default", "b"))]}


def test_a_document_that_changed_since_is_unsettled(house: House) -> None:
    house.put(document("a", "1"), document("b", "1"), document("c", "1"))
    for uri in "abc":
        cut(house, uri, 3, "x")
    house.put(document("a", "2"))
    house.delete("b")
    ids = {uri: key("x", document=document_id("default", uri)) for uri in "abc"}
    with house.database.read() as connection:
        known = [*ids.values(), key("unknown")]
        assert chunks.unsettled(connection, 1, known, 3) == {ids["a"], ids["b"]}
        assert chunks.unsettled(connection, 1, known, 4) == {ids["b"]}
        assert chunks.unsettled(connection, 1, known, 5) == set()


def test_the_text_of_a_version_is_as_it_was_put(house: House) -> None:
    house.put(document("a", "one\ntwo", title="T", page_starts=[0, 4], metadata={"n": 1}))
    with house.database.read() as connection:
        (version,) = chunks.versions_at(connection, [A], 1)
        parsed = placing.parsed_text(connection, version)
    assert (parsed.text, parsed.format, parsed.title) == ("one\ntwo", TextFormat.PLAIN, "T")
    assert (parsed.page_starts, parsed.metadata) == ([0, 4], {"n": 1})


def test_a_collection_deleted_meanwhile_is_said_to_be(house: House) -> None:
    house.put(document("a", "1"))
    with house.database.read() as connection:
        (version,) = chunks.versions_at(connection, [A], 1)
    with house.database.write() as connection:
        collections.remove(connection, "default")
    with house.database.write() as connection:
        with pytest.raises(NotFound):
            placing.place(connection, 1, Cutting(version=version, drafts=[]))
        with pytest.raises(NotFound):
            placing.parsed_text(connection, version)
        assert connection.scalar(select(func.count()).select_from(t.Placed)) == 0


def test_equal_texts_are_found_by_their_hash_in_a_collection_of_any_size(house: House) -> None:
    """SQLite does not know how many documents a collection has, and looked through all of them."""
    said: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        said.append((statement, parameters))

    with house.database.read() as connection:
        event.listen(house.database.engine, "before_cursor_execute", note)
        for count in (1, 256):
            chunks.same_text(connection, 1, [sha256_text(str(number)) for number in range(count)], but=["x"] * count)
        event.remove(house.database.engine, "before_cursor_execute", note)
        if connection.dialect.name == "sqlite":
            for statement, parameters in said:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                words = " ".join(row.detail for row in plan)
                assert "USING INDEX ix_chunk_sha256" in words
                assert "ix_document_collection_id" not in words
