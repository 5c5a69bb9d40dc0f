"""Change numbers are handed out in the order of commits: whoever reads the log in order misses nobody."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection

from nvr_rag import collections, corpus
from nvr_rag.errors import NotFound
from nvr_rag.ids import document_id
from tests.support import House, document


class Change:
    """A writing transaction in a thread of its own that puts one document and then waits for the word to end."""

    def __init__(self, house: House, uri: str) -> None:
        self.put = threading.Event()  # it has its number and has not ended
        self._end = threading.Event()
        self._well = True
        self._house, self._uri = house, uri
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._house.database.write() as connection:
            corpus.put(connection, "default", [document(self._uri, "text")])
            self.put.set()
            assert self._end.wait(60)
            if not self._well:
                connection.rollback()

    def end(self, *, well: bool = True) -> None:
        assert self.put.wait(60)
        self._well = well
        self._end.set()
        self._thread.join()


def tail(house: House, seq: int) -> tuple[list[str], int]:
    with house.database.read() as connection:
        return corpus.changed_since(connection, 1, seq, 100)


def test_a_later_number_is_not_given_before_the_earlier_is_committed(house: House) -> None:
    first = Change(house, "first")
    assert first.put.wait(60)
    second = Change(house, "second")
    assert not second.put.wait(0.2)  # it waits for the first to end
    assert tail(house, 0) == ([], 0)
    first.end()
    assert second.put.wait(60)
    assert tail(house, 0) == ([document_id("default", "first")], 1)
    second.end()
    assert tail(house, 1) == ([document_id("default", "second")], 2)


def test_a_transaction_that_is_given_up_gives_its_number_back(house: House) -> None:
    first = Change(house, "first")
    assert first.put.wait(60)
    second = Change(house, "second")
    first.end(well=False)
    second.end()
    assert tail(house, 0) == ([document_id("default", "second")], 1)
    Change(house, "third").end()
    assert tail(house, 1) == ([document_id("default", "third")], 2)


def test_collections_count_apart(house: House) -> None:
    other = house.workspace.create_collection("other")
    house.put(document("a", "1"), document("b", "1"))
    with house.database.write() as connection:
        assert [put.seq for put in corpus.put(connection, "other", [document("a", "1")])] == [1]
        assert collections.allocate_seq(connection, other, 3) == 2
        assert collections.allocate_seq(connection, other, 1) == 5
        assert collections.head_seq(connection, 1) == 2


def test_a_tailer_beside_many_writers_reads_every_number_once_and_in_order(house: House) -> None:
    writers, each = 4, 15
    done = threading.Event()

    def write(name: int) -> int:
        chance, kept = random.Random(name), 0
        for i in range(each):
            with house.database.write() as connection:
                puts = corpus.put(connection, "default", [document(f"{name}/{i}/{j}", "x") for j in range(1 + i % 3)])
                if chance.random() < 0.3:
                    connection.rollback()
                else:
                    kept += len(puts)
        return kept

    def read() -> list[int]:
        read, seq = [], 0
        while True:
            last = done.is_set()
            with house.database.read() as connection:
                numbers = _numbers(connection, seq)
            read += numbers
            seq = read[-1] if read else 0
            if last and not numbers:
                return read
            time.sleep(0.001)

    with ThreadPoolExecutor(writers + 1) as pool:
        tailer = pool.submit(read)
        kept = sum(pool.map(write, range(writers)))
        done.set()
        assert tailer.result() == list(range(1, kept + 1))


def _numbers(connection: Connection, seq: int) -> list[int]:
    """The numbers after `seq`, asked for one by one as an index with small rounds does."""
    numbers: list[int] = []
    while True:
        ids, upto = corpus.changed_since(connection, 1, seq, 1)
        if not ids:
            return numbers
        numbers.append(upto)
        seq = upto


def test_a_collection_deleted_meanwhile_is_told(house: House) -> None:
    with house.database.write() as connection:
        collection_id = collections.find(connection, "default")
        collections.remove(connection, "default")
        with pytest.raises(NotFound):
            collections.allocate_seq(connection, collection_id, 1)
