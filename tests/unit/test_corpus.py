"""The corpus log: what a put, a failure and a deletion come to, and what may not be stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError

from nvr_rag import corpus, documents
from nvr_rag.corpus import Outcome
from nvr_rag.db import tables as t
from nvr_rag.documents import Known
from nvr_rag.errors import InvalidInput, NotFound
from nvr_rag.ids import document_id, sha256_text
from nvr_rag.storable import storable
from nvr_rag.types import Document, DocumentState
from tests import engines
from tests.support import House, document


def stored(house: House, key: str) -> Document:
    with house.database.read() as connection:
        return documents.get(connection, "default", key)


def changes(house: House) -> list[tuple[int, str, str]]:
    with house.database.read() as connection:
        rows = connection.execute(
            select(t.Change.seq, t.Document.uri, t.Change.kind).join(t.Document).order_by(t.Change.seq)
        )
        return [(row.seq, row.uri, row.kind) for row in rows]


def outcomes(house: House, *documents: Any) -> list[tuple[str, int]]:
    return [(put.outcome.value, put.seq) for put in house.put(*documents)]


def test_added_updated_unchanged(house: House) -> None:
    assert outcomes(house, document("a", "one"), document("b", "two")) == [("added", 1), ("added", 2)]
    assert outcomes(house, document("b", "two"), document("a", "uno")) == [("unchanged", 0), ("updated", 3)]
    assert outcomes(house, document("a", "uno")) == [("unchanged", 0)]
    assert changes(house) == [(1, "a", "put"), (2, "b", "put"), (3, "a", "put")]
    assert (stored(house, "a").generation, stored(house, "a").seq, stored(house, "b").generation) == (2, 3, 1)


def test_an_id_names_its_own_document_whatever_others_are_called(house: House) -> None:
    real = document_id("default", "real")
    house.put(document(real, "called by the id of another one"))
    house.put(document("real", "the one that has it"))
    assert stored(house, real).uri == "real"


def test_going_back_to_an_older_text_is_a_change(house: House) -> None:
    for text_, expected in (("A", ("added", 1)), ("B", ("updated", 2)), ("A", ("updated", 3))):
        assert outcomes(house, document("a", text_)) == [expected]
    with house.database.read() as connection:
        assert documents.text_of(connection, stored(house, "a").id) == "A"


def test_the_same_content_at_two_uris_is_two_documents(house: House) -> None:
    first, second = house.put(document("a", "same"), document("b", "same"))
    assert first.document_id != second.document_id
    assert (first.outcome, second.outcome) == (Outcome.ADDED, Outcome.ADDED)


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"year": 2021}},
        {"metadata": {"year": True}},  # equal to 1 in Python, and not the same
        {"title": "Tea"},
        {"parser": "p-2"},
        {"acl": ["anna"]},
        {"sha256": sha256_text("other bytes")},
    ],
)
def test_whatever_an_answer_shows_counts_as_a_change(house: House, change: dict[str, Any]) -> None:
    before: dict[str, Any] = {"metadata": {"year": 1}, "title": "", "parser": "p-1"}
    house.put(document("a", "text", **before))
    assert outcomes(house, document("a", "text", **before)) == [("unchanged", 0)]
    assert outcomes(house, document("a", "text", **{**before, **change})) == [("updated", 2)]


def test_a_failure_keeps_the_old_version_and_its_reason(house: House) -> None:
    house.put(document("a", "one"))
    house.fail("a", "is encrypted")
    failed = stored(house, "a")
    assert (failed.state, failed.error, failed.generation) == (DocumentState.FAILED, "is encrypted", 1)
    assert changes(house) == [(1, "a", "put")]


def test_a_failed_document_that_reads_as_before_is_ready_again(house: House) -> None:
    house.put(document("a", "one"))
    house.fail("a")
    assert outcomes(house, document("a", "one")) == [("unchanged", 0)]
    assert (stored(house, "a").state, stored(house, "a").error) == (DocumentState.READY, None)


def test_a_document_may_fail_before_it_was_ever_read(house: House) -> None:
    house.fail("a", "is 0 bytes long")
    assert (stored(house, "a").generation, stored(house, "a").characters) == (0, 0)
    assert outcomes(house, document("a", "one")) == [("added", 1)]
    assert stored(house, "a").error is None


def test_delete_and_come_back(house: House) -> None:
    house.put(document("a", "one"))
    assert house.delete("a") == [document_id("default", "a")]
    assert house.delete("a") == []
    assert (stored(house, "a").state, stored(house, "a").seq) == (DocumentState.DELETED, 2)
    assert outcomes(house, document("a", "one")) == [("added", 3)]
    assert (stored(house, "a").state, stored(house, "a").generation) == (DocumentState.READY, 2)


def test_a_deleted_document_that_comes_back_unreadable_and_then_as_before_is_added(house: House) -> None:
    house.put(document("a", "one", source="file:///"))
    house.delete("a")
    house.fail("a", source="file:///")
    assert outcomes(house, document("a", "one", source="file:///")) == [("added", 3)]


def test_a_document_that_was_never_read_leaves_nothing_when_it_is_deleted(house: House) -> None:
    house.fail("a")
    assert house.delete("a") == [document_id("default", "a")]
    assert changes(house) == []
    with pytest.raises(NotFound):
        stored(house, "a")


def test_deleting_keeps_order_and_ignores_what_is_not_there(house: House) -> None:
    a, b = (put.document_id for put in house.put(document("a", "1"), document("b", "2")))
    with house.database.write() as connection:
        assert corpus.delete_documents(connection, "default", [b, document_id("default", "x"), a, b]) == [b, a]
    assert changes(house)[2:] == [(3, "b", "delete"), (4, "a", "delete")]


def test_a_document_of_another_collection_is_not_deleted(house: House) -> None:
    house.workspace.create_collection("other")
    house.put(document("a", "1"))
    with house.database.write() as connection:
        assert corpus.delete_documents(connection, "other", [document_id("default", "a")]) == []
    assert stored(house, "a").state == DocumentState.READY


def test_thousands_in_one_call(house: House) -> None:
    documents = [document(f"d{i:04}", f"text {i}") for i in range(1200)]
    assert {put.outcome for put in house.put(*documents)} == {Outcome.ADDED}
    assert {put.outcome for put in house.put(*documents)} == {Outcome.UNCHANGED}
    with house.database.write() as connection:
        ids = [document_id("default", item.uri) for item in documents]
        assert corpus.delete_documents(connection, "default", ids) == ids


def test_what_no_database_can_hold_becomes_a_replacement_character(house: House) -> None:
    house.put(
        document("a", "x\x00y\ud800z", title="\udfff", metadata={"k\x00": ["\ud800"]}, source="s\udc80", acl=["p\x00"])
    )
    found = stored(house, "a")
    assert (found.title, found.metadata, found.characters) == ("\ufffd", {"k\ufffd": ["\ufffd"]}, 5)
    assert (found.source, found.acl) == ("s\ufffd", ["p\ufffd"])
    with house.database.read() as connection:
        assert documents.text_of(connection, found.id) == "x\ufffdy\ufffdz"
    house.fail("a", "bad name \udc80")
    assert stored(house, "a").error == "bad name \ufffd"


def test_storable_leaves_everything_else_alone() -> None:
    assert storable("plain") == "plain"
    assert storable("grün 😀 \ufffd") == "grün 😀 \ufffd"


@pytest.mark.parametrize("uri", ["", "x" * 4097, "a\x00b", "a\ud800b"])
def test_a_uri_that_cannot_be_stored_is_refused(house: House, uri: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        house.put(document("good", "x"), document(uri, "x"))
    assert caught.value.field == "uri"
    with pytest.raises(InvalidInput):
        house.fail(uri)
    assert changes(house) == []


def test_a_uri_twice_in_one_call_is_refused(house: House) -> None:
    with pytest.raises(InvalidInput, match="once"):
        house.put(document("a", "1"), document("a", "2"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, object()])
def test_metadata_that_is_not_json_is_refused(house: House, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        house.put(document("a", "1", metadata={"deep": [{"x": value}]}))
    assert caught.value.field == "metadata"


def test_metadata_nests_sixteen_levels_deep(house: House) -> None:
    deep: dict[str, Any] = {}
    for _ in range(16):
        deep = {"a": deep}
    house.put(document("a", "1", metadata=deep))
    with pytest.raises(InvalidInput, match="16 levels"):
        house.put(document("b", "1", metadata={"a": deep}))


def test_an_unknown_collection_is_named_with_those_there_are(house: House) -> None:
    with house.database.write() as connection, pytest.raises(NotFound, match="there are: default"):
        corpus.put(connection, "nowhere", [document("a", "1")])


def mirrored_under(connection: Connection, root: str) -> dict[str, Known]:
    return {known.uri: known for known in documents.known(connection, "default", root)}


def test_known_is_what_was_mirrored_from_under_a_root(house: House) -> None:
    house.put(
        document("file:///srv/a.md", "1", source="file:///srv", parser="p"),
        document("file:///srv/sub/b.md", "2", source="file:///srv"),
        document("file:///srv2/c.md", "3", source="file:///srv2"),
        document("file:///srv/by-hand.md", "4"),
        document("file:///srv/gone.md", "5", source="file:///srv"),
        document("file:///srv/back.md", "6", source="file:///srv"),
    )
    house.delete("file:///srv/gone.md", "file:///srv/back.md")
    house.fail("file:///srv/bad.pdf", source="file:///srv")
    house.fail("file:///srv/back.md", source="file:///srv")
    with house.database.read() as connection:
        known = mirrored_under(connection, "file:///srv")
        assert set(mirrored_under(connection, "file:///srv/sub")) == {"file:///srv/sub/b.md"}
        assert set(mirrored_under(connection, "file:///srv/a.md")) == {"file:///srv/a.md"}
    assert set(known) == {f"file:///srv/{name}" for name in ("a.md", "sub/b.md", "bad.pdf", "back.md")}
    assert known["file:///srv/a.md"] == Known(
        uri="file:///srv/a.md",
        document_id=document_id("default", "file:///srv/a.md"),
        sha256=sha256_text("1"),
        parser="p",
        state=DocumentState.READY,
        error=None,
        source="file:///srv",
        acl=None,
    )
    for name in ("bad.pdf", "back.md"):  # nothing that could be found unchanged
        assert (known[f"file:///srv/{name}"].sha256, known[f"file:///srv/{name}"].state) == ("", DocumentState.FAILED)


def test_the_last_to_put_a_document_says_where_it_comes_from(house: House) -> None:
    house.put(document("file:///srv/a.md", "1"))
    assert outcomes(house, document("file:///srv/a.md", "1", source="file:///srv")) == [("updated", 2)]
    with house.database.read() as connection:
        assert set(mirrored_under(connection, "file:///srv")) == {"file:///srv/a.md"}


def test_documents_are_listed_by_uri_in_pages(house: House) -> None:
    house.put(*[document(uri, uri) for uri in "dbace"])
    house.delete("c")
    house.fail("e")
    with house.database.read() as connection:
        first = documents.list_documents(connection, "default", limit=2)
        rest = documents.list_documents(connection, "default", after=first[-1].uri)
        deleted = documents.list_documents(connection, "default", state=DocumentState.DELETED)
    assert ["".join(item.uri for item in page) for page in (first, rest, deleted)] == ["ab", "de", "c"]


def test_a_document_is_found_by_id_and_by_uri(house: House) -> None:
    (put,) = house.put(document("a", "four", title="T", metadata={"n": 1}))
    assert stored(house, put.document_id) == stored(house, "a")
    found = stored(house, "a")
    assert (found.title, found.metadata, found.characters, found.seq) == ("T", {"n": 1}, 4, 1)
    assert found.updated_at.tzinfo is not None
    with pytest.raises(NotFound, match="nothing"):
        stored(house, "nothing\udc80")


def test_changes_are_read_in_order_and_parts(house: House) -> None:
    a, b = (put.document_id for put in house.put(document("a", "1"), document("b", "1")))
    house.put(document("a", "2"))
    house.delete("b")
    with house.database.read() as connection:
        read = [corpus.changed_since(connection, 1, seq, limit) for seq, limit in ((0, 10), (0, 3), (3, 10), (4, 10))]
    assert read == [([a, b], 4), ([a, b], 3), ([b], 4), ([], 4)]


# What the database itself refuses, whatever the code above it does.
VERSION = "INSERT INTO document_version (document_id, generation, seq, sha256, parser, media_type, title, metadata, "
VERSION += "text, text_format, page_starts, created_at) SELECT id, {}, {}, '', '', '', '', '{{}}', '', 'plain', '[]', "
VERSION += "'2026-01-01' FROM document"
DEPLOYMENT = "INSERT INTO deployment (collection_id, index_id, mode, fusion, state, created_at) "
DEPLOYMENT += "VALUES ({}, 1, '{}', '{{}}', '{}', '2026-01-01')"
JOB = "INSERT INTO job (kind, payload, state, attempts, progress, created_at, lease_until) "
JOB += "VALUES ('verify', '{{}}', '{}', 0, '{{}}', '2026-01-01', {})"
QUERY = "INSERT INTO query (id, collection_id, deployment_id, text, k, mode, hits, created_at) "
QUERY += "VALUES ('q', 1, 1, 'x', 1, 'dense', '[]', '2026-01-01')"
FEEDBACK = 'INSERT INTO feedback (query_id, chunk_id, "user", kind, grade, created_at) '
FEEDBACK += "VALUES ('{}', '{}', '', '{}', {}, '2026-01-01')"
FORBIDDEN = {
    "a failure without a reason": ["UPDATE document SET state = 'failed'"],
    "a reason without a failure": ["UPDATE document SET error = 'x'"],
    "an unknown state": ["UPDATE document SET state = 'lost'"],
    "a deletion without a number": ["UPDATE document SET state = 'deleted'"],
    "a URI twice": [
        "INSERT INTO document SELECT 'x', collection_id, uri, source, state, error, acl, generation, "
        "deleted_seq, updated_at FROM document"
    ],
    "a document without a collection": ["UPDATE document SET collection_id = 99"],
    "a generation twice": [VERSION.format(1, 99)],
    "a number twice in a document": [VERSION.format(99, 1)],
    "a generation of 0": [VERSION.format(0, 99)],
    "a version numbered 0": [VERSION.format(99, 0)],
    "a number twice in a collection": ["INSERT INTO change SELECT * FROM change"],
    "a change of an unknown kind": ["UPDATE change SET kind = 'rename'"],
    "a collection twice": [
        "INSERT INTO collection (name, language, next_seq, created_at) "
        "SELECT name, language, 1, created_at FROM collection"
    ],
    "a negative span": ["UPDATE placement SET start = -1"],
    "a span that ends before it starts": ['UPDATE placement SET start = "end" + 1'],
    "a negative ordinal": ["UPDATE placement SET ordinal = -1"],
    "a chunk twice in a version": [
        "INSERT INTO placement SELECT version_id, chunking_id, 99, chunk_id, start, "
        '"end", page, headings FROM placement'
    ],
    "a placement of no chunk": ["UPDATE placement SET chunk_id = 'x'"],
    "purged beyond applied": ["UPDATE search_index SET purged_seq = applied_seq + 1"],
    "an index in an unknown state": ["UPDATE search_index SET state = 'lost'"],
    "a live index without a collection": ["UPDATE search_index SET collection_id = NULL"],
    "an index of an unknown encoder": ["UPDATE search_index SET encoder = 'x'"],
    "two serving deployments": [DEPLOYMENT.format(1, "dense", "serving")],
    "a deployment of an unknown mode": [DEPLOYMENT.format(1, "psychic", "candidate")],
    "a deployment in an unknown state": [DEPLOYMENT.format(1, "dense", "resting")],
    "an index dropped under its deployment": ["DELETE FROM search_index"],
    "a running job without a lease": [JOB.format("running", "NULL")],
    "a leased job that does not run": [JOB.format("done", "'2026-01-01'")],
    "a job in an unknown state": [JOB.format("resting", "NULL")],
    "feedback on no query": [FEEDBACK.format("none", "", "click", "NULL")],
    "a negative grade": [QUERY, FEEDBACK.format("q", "", "relevant", -1)],
    "an unknown kind of feedback": [QUERY, FEEDBACK.format("q", "", "liked", "NULL")],
    "the same feedback twice": [QUERY] + 2 * [FEEDBACK.format("q", "", "click", "NULL")],
}


@pytest.fixture(scope="module")
def full_house(furnished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A row in every table that documents fill. Shared: whoever writes rolls back."""
    house = House(engines.copy_home(furnished_home, tmp_path_factory.mktemp("full") / "home"))
    house.put(document("a", "one\n\ntwo"))
    house.catch_up()
    yield house
    house.close()
    engines.forget(house.home)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_database_refuses(full_house: House, what: str) -> None:
    *before, last = FORBIDDEN[what]
    with full_house.database.write() as connection:
        for statement in before:
            connection.execute(text(statement))
        with pytest.raises(IntegrityError):
            connection.execute(text(last))
        connection.rollback()


def test_two_candidates_beside_the_serving_deployment_are_fine(full_house: House) -> None:
    with full_house.database.write() as connection:
        for _ in range(2):
            connection.execute(text(DEPLOYMENT.format(1, "dense", "candidate")))
        connection.execute(text(JOB.format("running", "'2026-01-01'")))
        connection.execute(text(VERSION.format(2, 2)))
        connection.execute(text(QUERY))
        connection.execute(text(FEEDBACK.format("q", "", "click", 0)))
        connection.rollback()
