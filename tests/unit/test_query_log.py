"""The query log: what is recorded is in the database, in groups, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, select

from nvr_rag import collections
from nvr_rag.db import tables as t
from nvr_rag.errors import DatabaseUnavailable, InvalidInput, NotFound
from nvr_rag.query_log import QueryLog, record_feedback
from nvr_rag.types import Feedback, FeedbackKind, Query, SearchResult
from tests.support import House, document


@pytest.fixture
def log(house: House) -> Iterator[QueryLog]:
    opened = QueryLog(house.database)
    yield opened
    opened.close()


@pytest.fixture
def result(house: House) -> SearchResult:
    house.put(document("a", "red fox\n\nblue whale"))
    house.catch_up()
    return house.workspace.retriever.search(Query(text="fox"))


def rows(house: House) -> list[Any]:
    with house.database.read() as connection:
        return list(connection.execute(select(*t.QueryRow.__table__.c)))


def feedback_rows(house: House) -> list[tuple[str, str, int | None]]:
    with house.database.read() as connection:
        found = connection.execute(select(t.FeedbackRow.kind, t.FeedbackRow.user, t.FeedbackRow.grade))
        return sorted((row.kind, row.user, row.grade) for row in found)


@contextmanager
def held(house: House) -> Iterator[None]:
    """The database's write lock, so that what wants to be written piles up."""
    with house.database.write():
        yield


def commits(house: House) -> list[int]:
    """A list that grows with every commit from now on."""
    seen: list[int] = []
    event.listen(house.database.engine, "commit", lambda connection: seen.append(1))
    return seen


def test_a_row_is_there_when_record_returns(house: House, log: QueryLog, result: SearchResult) -> None:
    query = Query(text="fox?", k=3, filter={"uri": "a"}, user="anna", session="s1")
    query_id = log.record(query, result)
    (row,) = rows(house)
    assert (row.id, row.text, row.k, row.filter, row.user, row.session) == (
        query_id,
        "fox?",
        3,
        {"uri": "a"},
        "anna",
        "s1",
    )
    assert [hit[0] for hit in row.hits] == [hit.chunk_id for hit in result.hits]
    assert [hit[1] for hit in row.hits] == pytest.approx([hit.score for hit in result.hits], abs=1e-6)
    assert (row.mode, row.deployment_id, row.collection_id) == ("hybrid", result.deployment.id, 1)


def test_two_hundred_at_once_all_land_in_few_commits(house: House, log: QueryLog, result: SearchResult) -> None:
    with ThreadPoolExecutor(200) as pool:
        with held(house):
            futures = [pool.submit(log.record, Query(text=str(i)), result) for i in range(200)]
            while log._pending.qsize() < 199:  # one is with the writer, which waits for the lock
                threading.Event().wait(0.005)
        seen = commits(house)
        ids = {future.result() for future in futures}
    assert {row.id for row in rows(house)} == ids
    assert len(ids) == 200
    assert len(seen) <= 3


def test_what_no_database_can_hold_is_replaced(house: House, log: QueryLog, result: SearchResult) -> None:
    log.record(Query(text="a\x00\udc80", user="\udc80", session="\x00"), result)
    assert [(row.text, row.user, row.session) for row in rows(house)] == [("a\ufffd\ufffd", "\ufffd", "\ufffd")]


def test_an_error_reaches_the_caller_and_the_writer_lives_on(
    house: House, log: QueryLog, result: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*, durable: bool = True) -> Connection:
        raise RuntimeError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(house.database, "write", broken)
        with pytest.raises(DatabaseUnavailable, match="disk on fire"):
            log.record(Query(text="x"), result)
    assert log.alive
    log.record(Query(text="y"), result)
    assert [row.text for row in rows(house)] == ["y"]


def test_one_bad_row_does_not_cost_the_others(house: House, log: QueryLog, result: SearchResult) -> None:
    house.workspace.create_collection("doomed")
    doomed = house.workspace.retriever.search(Query(text="fox", collection="doomed"))
    with house.database.write() as connection:
        collections.remove(connection, "doomed")
    with ThreadPoolExecutor(3) as pool:
        with held(house):
            waits = [pool.submit(log.record, Query(text=str(i)), r) for i, r in enumerate((result, doomed, result))]
            while log._pending.qsize() < 2:
                threading.Event().wait(0.005)
        with pytest.raises(DatabaseUnavailable):
            waits[1].result()
        ids = {waits[0].result(), waits[2].result()}
    assert {row.id for row in rows(house)} == ids


def test_close_writes_what_waits_and_refuses_what_comes_after(house: House, result: SearchResult) -> None:
    log = QueryLog(house.database)
    with ThreadPoolExecutor(20) as pool:
        with held(house):
            futures = [pool.submit(log.record, Query(text=str(i)), result) for i in range(20)]
            while log._pending.qsize() < 19:
                threading.Event().wait(0.005)
            closing = threading.Thread(target=log.close)
            closing.start()
        closing.join()
        ids = {future.result() for future in futures}
    assert {row.id for row in rows(house)} == ids
    assert not log.alive
    with pytest.raises(DatabaseUnavailable, match="closed"):
        log.record(Query(text="late"), result)
    log.close()


def say(house: House, *items: Feedback) -> int:
    with house.database.write() as connection:
        return record_feedback(connection, items)


def test_feedback_twice_is_feedback_once_and_the_last_word_counts(
    house: House, log: QueryLog, result: SearchResult
) -> None:
    query_id, chunk = log.record(Query(text="fox"), result), result.hits[0].chunk_id

    def graded(grade: int, user: str | None = "anna") -> Feedback:
        return Feedback(query_id=query_id, chunk_id=chunk, kind=FeedbackKind.RELEVANT, grade=grade, user=user)

    assert [say(house, graded(1)), say(house, graded(1)), say(house, graded(3))] == [1, 0, 0]
    assert feedback_rows(house) == [("relevant", "anna", 3)]
    assert say(house, graded(1), graded(2)) == 0
    assert feedback_rows(house) == [("relevant", "anna", 2)]
    click = Feedback(query_id=query_id, chunk_id=chunk, kind=FeedbackKind.CLICK, user="anna")
    assert say(house, click, graded(0, "otto"), graded(0, None)) == 3
    assert feedback_rows(house) == [
        ("click", "anna", None),
        ("relevant", "", 0),
        ("relevant", "anna", 2),
        ("relevant", "otto", 0),
    ]


def test_feedback_on_the_answer_needs_no_chunk(house: House, log: QueryLog, result: SearchResult) -> None:
    query_id = log.record(Query(text="fox"), result)
    assert say(house, Feedback(query_id=query_id, kind=FeedbackKind.ANSWER_GOOD)) == 1
    assert say(house, Feedback(query_id=query_id, kind=FeedbackKind.ANSWER_GOOD)) == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"query_id": "none"}, NotFound),
        ({"query_id": "\udc80"}, NotFound),
        ({"chunk_id": "none"}, InvalidInput),
        ({"chunk_id": None}, InvalidInput),
        ({"grade": -1}, InvalidInput),
        ({"grade": 10**30}, InvalidInput),
    ],
)
def test_feedback_on_what_was_not_shown_is_refused_whole(
    house: House, log: QueryLog, result: SearchResult, change: dict[str, Any], error: type[Exception]
) -> None:
    query_id = log.record(Query(text="fox"), result)
    good: dict[str, Any] = {
        "query_id": query_id,
        "chunk_id": result.hits[0].chunk_id,
        "kind": FeedbackKind.RELEVANT,
        "grade": 1,
    }
    with pytest.raises(error):
        say(house, Feedback(**good), Feedback(**{**good, **change}))
    assert feedback_rows(house) == []
