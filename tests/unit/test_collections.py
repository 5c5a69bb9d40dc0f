"""Collections: names, what is told of them, and what goes with them."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from nvr_rag import collections
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, InvalidInput, NotFound
from nvr_rag.query_log import QueryLog, record_feedback
from nvr_rag.types import DocumentState, Feedback, FeedbackKind, Query
from tests.support import House, document


@pytest.mark.parametrize("name", ["", "a b", "-a", ".a", "a/b", "a\n", "ä", "x" * 65, "a\x00", "\udc80"])
def test_a_name_that_is_no_name_is_refused(house: House, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        house.workspace.create_collection(name)
    assert caught.value.field == "collection"
    with house.database.read() as connection, pytest.raises(NotFound):
        collections.find(connection, name)


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "9", "x" * 64])
def test_names_have_letters_digits_and_little_else(house: House, name: str) -> None:
    collection_id = house.workspace.create_collection(name)
    with house.database.read() as connection:
        assert collections.find(connection, name) == collection_id


def test_a_name_is_taken_once(house: House) -> None:
    with pytest.raises(Conflict, match="default"):
        house.workspace.create_collection("default")


def test_an_unknown_language_is_refused_and_nothing_is_left(house: House) -> None:
    with pytest.raises(InvalidInput) as caught:
        house.workspace.create_collection("other", language="klingon")
    assert caught.value.field == "language"
    with house.database.read() as connection:
        assert [info.name for info in collections.all_infos(connection)] == ["default"]


def test_what_is_told_of_a_collection(house: House) -> None:
    house.workspace.create_collection("empty", language="german")
    house.put(document("a", "1"), document("b", "2"), document("c", "3"))
    house.delete("a")
    house.fail("x")
    with house.database.read() as connection:
        default, empty = collections.all_infos(connection)
        assert collections.info(connection, "empty") == empty
    counts = {DocumentState.READY: 2, DocumentState.FAILED: 1, DocumentState.DELETED: 1}
    assert (default.name, default.language, default.head_seq, default.documents) == ("default", "english", 4, counts)
    assert (empty.name, empty.language, empty.head_seq) == ("empty", "german", 0)
    assert set(empty.documents.values()) == {0}


def test_a_collection_goes_with_everything_but_the_physical_index(house: House) -> None:
    house.put(document("a", "red fox\n\nblue whale"))
    house.catch_up()
    log = QueryLog(house.database)
    result = house.workspace.retriever.search(Query(text="fox"))
    query_id = log.record(Query(text="fox"), result)
    log.close()
    with house.database.write() as connection:
        kind = FeedbackKind.RELEVANT
        record_feedback(connection, [Feedback(query_id=query_id, chunk_id=result.hits[0].chunk_id, kind=kind)])
        collections.remove(connection, "default")
    with house.database.read() as connection:
        left = {
            table.name: connection.scalar(select(func.count()).select_from(table))
            for table in t.Base.metadata.sorted_tables
        }
    assert {name for name, rows in left.items() if rows} == {
        "chunking",
        "encoder_version",
        "schema_info",
        "search_index",
    }
    assert (house.row.state, house.row.collection_id) == ("retired", None)
    with pytest.raises(NotFound, match="none yet"):
        house.hits("fox")


def test_a_name_can_be_used_again(house: House) -> None:
    house.put(document("a", "old words"))
    house.catch_up()
    with house.database.write() as connection:
        collections.remove(connection, "default")
    house.workspace.create_collection("default")
    assert house.hits("words") == []
    assert [put.seq for put in house.put(document("a", "new words"))] == [1]
