"""The query log: what is recorded is in the database, in groups, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, select

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


class Gate:
    """Stands before the database's write transactions, shut until it is opened, and counts who has come."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.transactions = 0
        self._opened, self._reached = threading.Event(), threading.Event()
        self._write = house.database.write
        monkeypatch.setattr(house.database, "write", self._enter)

    @contextmanager
    def _enter(self, *, durable: bool = True) -> Iterator[Connection]:
        self._reached.set()
        assert self._opened.wait(60)
        with self._write(durable=durable) as connection:
            yield connection
        self.transactions += 1

    def pile_up(self, log: QueryLog, pool: ThreadPoolExecutor, results: Sequence[SearchResult]) -> list[Future[str]]:
        """Record a query for each result: the first reaches the gate, the others wait in the queue."""
        futures = [pool.submit(log.record, Query(text="0"), results[0])]
        assert self._reached.wait(60)
        futures += [pool.submit(log.record, Query(text=str(i)), result) for i, result in enumerate(results[1:], 1)]
        while log._pending.qsize() < len(results) - 1:
            time.sleep(0.002)
        return futures

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(house: House, result: SearchResult, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(house, monkeypatch)


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


def test_two_hundred_at_once_all_land_in_two_commits(
    house: House, log: QueryLog, result: SearchResult, gate: Gate
) -> None:
    with ThreadPoolExecutor(200) as pool:
        futures = gate.pile_up(log, pool, [result] * 200)
        gate.open()
        ids = {future.result() for future in futures}
    assert len(ids) == 200
    assert {row.id for row in rows(house)} == ids
    assert gate.transactions == 2


def test_two_hundred_without_a_gate_all_land(house: House, log: QueryLog, result: SearchResult) -> None:
    with ThreadPoolExecutor(200) as pool:
        ids = set(pool.map(lambda i: log.record(Query(text=str(i)), result), range(200)))
    assert len(ids) == 200
    assert {row.id for row in rows(house)} == ids


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


def test_one_bad_row_does_not_cost_the_others(
    house: House, log: QueryLog, result: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.workspace.create_collection("doomed")
    doomed = house.workspace.retriever.search(Query(text="fox", collection="doomed"))
    with house.database.write() as connection:
        collections.remove(connection, "doomed")
    gate = Gate(house, monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        first, second, bad, last = gate.pile_up(log, pool, [result, result, doomed, result])
        gate.open()
        with pytest.raises(DatabaseUnavailable):
            bad.result()
        ids = {first.result(), second.result(), last.result()}
    assert {row.id for row in rows(house)} == ids


def test_close_writes_what_waits_and_refuses_what_comes_after(house: House, result: SearchResult, gate: Gate) -> None:
    log = QueryLog(house.database)
    with ThreadPoolExecutor(20) as pool:
        futures = gate.pile_up(log, pool, [result] * 20)
        closing = threading.Thread(target=log.close)
        closing.start()
        gate.open()
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
