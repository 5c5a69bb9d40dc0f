"""The graph of a large Edge index: built by a child with the lock of the owner, and nothing is lost on the way."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from nvr_rag.errors import Stopped, StoreBusy, StoreError, StoreUnavailable
from nvr_rag.filters import parse_filter
from nvr_rag.stores import edge, optimizing
from nvr_rag.stores.base import Point, SparseVector, StoreConfig, Vector
from nvr_rag.stores.edge import EdgeIndex, EdgeStore
from tests.contract.store_cases import uid

COUNT, DIMENSION = 3000, 32
PAYLOAD = {"input_hash": "x", "payload_hash": "y", "metadata": {}}


def drawn(count: int, seed: int) -> list[Vector]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EdgeStore:
    """A store with a large index "main"."""
    monkeypatch.setattr(edge, "GRAPH_FROM", 1000)
    store = EdgeStore(tmp_path)
    store.create("main", StoreConfig(dimension=DIMENSION, encoder="e"))
    index = store.open("main")
    for start in range(0, COUNT, 1000):
        vectors = drawn(1000, start)
        index.upsert([point(start + number, vector) for number, vector in enumerate(vectors, start=1)])
    index.close()
    return store


def point(number: int, vector: Vector) -> Point:
    lexical = SparseVector(indices=(number % 7 + 1,), values=(1.0,))
    return Point(id=uid(number), dense=vector, lexical=lexical, payload={**PAYLOAD, "uri": f"u{number % 5}"})


def found(index: EdgeIndex, vectors: list[Vector]) -> list[set[str]]:
    return [{hit.id for hit in index.search_dense(vector, 10)} for vector in vectors]


def share(one: list[set[str]], other: list[set[str]]) -> float:
    return sum(len(a & b) for a, b in zip(one, other, strict=True)) / sum(map(len, one))


def has_graph(index: EdgeIndex) -> bool:
    assert index._shard is not None
    return index._shard.info().indexed_vectors_count >= COUNT + COUNT // 2


def test_the_graph_finds_what_the_exact_search_finds(store: EdgeStore) -> None:
    index, asked = store.open("main"), drawn(50, 99)
    before, lexical = found(index, asked), index.search_lexical(SparseVector(indices=(3,), values=(1.0,)), 500)
    assert not has_graph(index)
    assert index.optimize()
    assert has_graph(index)
    assert share(before, found(index, asked)) >= 0.99
    assert index.search_lexical(SparseVector(indices=(3,), values=(1.0,)), 500) == lexical
    index.delete([uid(5)])
    new = drawn(1, 7)[0]
    index.upsert([point(9000, new)])
    assert index.search_dense(new, 1)[0].id == uid(9000)
    assert index.get([uid(5)]) == {}
    index.close()
    again = store.open("main")
    assert (again.count(), has_graph(again)) == (COUNT, True)
    again.close()


def test_deep_and_filtered_searches_are_exact(store: EdgeStore) -> None:
    index, vector = store.open("main"), drawn(1, 98)[0]
    where = parse_filter({"uri": "u3"})
    filtered = index.search_dense(vector, 20, where)
    before = index.search_dense(vector, 2000)
    index.optimize()
    after = index.search_dense(vector, 2000)
    assert {hit.id for hit in before} == {hit.id for hit in after}
    assert len(index.search_dense(vector, COUNT + 5)) == COUNT
    assert [hit.id for hit in index.search_dense(vector, 20, where)] == [hit.id for hit in filtered]
    index.close()


def test_a_small_index_is_left_as_it_is(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "GRAPH_FROM", COUNT + 1)
    index = store.open("main")
    assert not index.optimize()
    assert not has_graph(index)
    index.close()


def test_while_the_child_has_it_nobody_else_does(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    index, seen = store.open("main"), []

    def look(folder: Path, lock: int, stop: object) -> None:
        with pytest.raises(StoreUnavailable):
            index.count()
        with pytest.raises(StoreBusy):
            store.open("main")
        with pytest.raises(StoreBusy):
            store.drop("main")
        seen.append(index.lost)

    monkeypatch.setattr(edge, "optimize_in_child", look)
    index.optimize()
    assert seen == [False]
    assert index.count() == COUNT
    index.close()


def test_it_stops_when_told_and_goes_on_the_next_time(store: EdgeStore) -> None:
    index, stop = store.open("main"), threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        index.optimize(stop)
    assert index.count() == COUNT
    assert index.optimize()
    assert has_graph(index)
    index.close()


def test_a_child_that_is_killed_costs_nothing(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    index, asked, real = store.open("main"), drawn(20, 97), subprocess.Popen
    before = found(index, asked)
    for delay in (0.3, 0.6, 0.9, 1.3):

        def started(*arguments: object, wait: float = delay, **options: object) -> object:
            process = real(*arguments, **options)  # type: ignore[call-overload]
            threading.Timer(wait, process.kill).start()
            return process

        monkeypatch.setattr(optimizing.subprocess, "Popen", started)
        with suppress(StoreError):  # it may have been quicker
            index.optimize()
        assert index.count() == COUNT
        assert share(before, found(index, asked)) >= 0.98
        index.close()
        index = store.open("main")
    monkeypatch.setattr(optimizing.subprocess, "Popen", real)
    assert index.optimize()
    assert len(list(index.scan())) == COUNT
    index.close()
