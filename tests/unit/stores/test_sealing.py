"""Edge seals its segments as they fill: memory stays what it is, answers too, and a kill in between costs nothing."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nvr_rag.filters import matches, parse_filter
from nvr_rag.stores import edge, edge_segments
from nvr_rag.stores.base import OpenIndex, Point, SparseVector, StoreConfig
from nvr_rag.stores.edge import EdgeIndex, EdgeStore
from nvr_rag.testing import MemoryStore
from tests.contract.store_cases import documents, filters, uid
from tests.heap import in_use

ROOT = Path(__file__).parents[3]
DIMENSION = 32
CONFIG = StoreConfig(dimension=DIMENSION, encoder="f" * 64)

WRITER = """
import sys
from pathlib import Path
from nvr_rag.stores import edge, edge_segments
edge.SEAL_POINTS = edge_segments.SEAL_POINTS = 64
from nvr_rag.stores.edge import EdgeStore
from tests.unit.stores.test_sealing import drawn
index = EdgeStore(Path(sys.argv[1])).open("main")
for start in range(int(sys.argv[2]), 1_000_000, 64):
    index.upsert([drawn(number) for number in range(start, start + 64)])
    print("written", start + 64, flush=True)
    index.flush()
    print("flushed", start + 64, flush=True)
"""


def drawn(number: int, **payload: Any) -> Point:
    """Random vectors of a number, always the same."""
    values = np.random.default_rng(number)
    terms = sorted(int(term) for term in set(values.integers(1, 60, 5)))
    return Point(
        id=uid(number),
        dense=values.standard_normal(DIMENSION).astype(np.float32),
        lexical=SparseVector(indices=terms, values=[1.0 + term / 7 for term in terms]),
        payload={"input_hash": f"{number}", "payload_hash": "p", "uri": f"u{number % 5}", **payload},
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 points."""
    monkeypatch.setattr(edge, "SEAL_POINTS", 64)
    monkeypatch.setattr(edge_segments, "SEAL_POINTS", 64)


@pytest.fixture
def index(tmp_path: Path, small: None) -> Iterator[EdgeIndex]:
    store = EdgeStore(tmp_path)
    store.create("main", CONFIG)
    opened = store.open("main")
    yield opened
    opened.close()


def segments(index: EdgeIndex) -> int:
    assert index._shard is not None
    return int(index._shard.info().segments_count)


def answers(index: OpenIndex) -> list[dict[str, float]]:
    """What an index says to some questions: the dense searches, then the lexical ones, which find everything."""
    where = parse_filter({"uri": {"in": ["u1", "u4"]}})
    asked = [drawn(number) for number in range(9000, 9005)]
    found = [index.search_dense(one.dense, 20, condition) for one in asked for condition in (None, where)]
    found += [index.search_lexical(one.lexical, 900, condition) for one in asked for condition in (None, where)]
    return [{hit.id: hit.score for hit in hits} for hits in found]


def alike(one: list[dict[str, float]], other: list[dict[str, float]]) -> bool:
    """To five digits: every segment adds up the terms in an order of its own."""
    return one == [pytest.approx(hits, rel=1e-5) for hits in other]


def test_sealed_segments_score_like_one(index: EdgeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_segments, "SEAL_POINTS", 9999)
    store = EdgeStore(tmp_path)
    store.create("one", CONFIG)
    one = store.open("one")
    for start in range(0, 800, 80):
        for each in (index, one):
            each.upsert([drawn(number) for number in range(start, start + 80)])
            each.flush()
    assert (segments(index), segments(one)) == (11, 1)
    assert alike(answers(index), answers(one))
    one.close()


def test_sealed_segments_find_what_one_finds(index: EdgeIndex) -> None:
    """Random histories of writes, overwrites, deletions and new payloads, beside the store that is a dictionary. The
    weight of a word, though, follows deletions late."""
    plain = MemoryStore()
    plain.create("main", CONFIG)
    expected, dice, most = plain.open("main"), random.Random(17), 0
    for _ in range(40):
        written, gone = ([dice.randrange(1000) for _ in range(count)] for count in (60, 12))
        for one in (index, expected):
            one.upsert([drawn(number) for number in dict.fromkeys(written)])
            one.delete([uid(number) for number in gone])
            one.set_payload({uid(number): drawn(number, uri="u1").payload for number in written[:5]})
            one.flush()
        most = max(most, segments(index))
    assert most >= 10
    assert sorted(index.scan(), key=lambda p: p.id) == sorted(expected.scan(), key=lambda p: p.id)
    ours, theirs = answers(index), answers(expected)
    assert alike(ours[:10], theirs[:10])
    assert [set(hits) for hits in ours[10:]] == [set(hits) for hits in theirs[10:]]
    assert index.count() == expected.count()


@given(cases=st.lists(documents(), min_size=1, max_size=12), wanted=st.lists(filters(), min_size=1, max_size=12))
@example(cases=[{"updated_at": 5.0}], wanted=[{"updated_at": {"lt": "1970-01-02", "lte": "1970-01-01"}}])
@example(cases=[{"updated_at": 5.0}], wanted=[{"updated_at": {"gt": "1970-01-01", "gte": "1970-01-02"}}])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_filters_mean_the_same_in_what_is_sealed(
    index: EdgeIndex, cases: list[dict[str, Any]], wanted: list[Any]
) -> None:
    index.delete([point.id for point in index.scan()])
    points = [
        Point(id=uid(number), dense=np.ones(DIMENSION, np.float32), lexical=drawn(1).lexical, payload=payload)
        for number, payload in enumerate([*cases, *[{}] * 70])  # those without a field fill the segment
    ]
    index.upsert(points)
    index.flush()
    assert segments(index) >= 2
    for value in wanted:
        where = parse_filter(value)
        expected = [point.id for point in points if matches(where, point.payload)]
        assert [hit.id for hit in index.search_dense(points[0].dense, 99, where)] == expected, value
        assert [hit.id for hit in index.search_lexical(points[0].lexical, 99, where)] == expected, value


def test_the_memory_of_an_index_does_not_grow_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (edge, edge_segments):
        monkeypatch.setattr(module, "SEAL_POINTS", 1000)
    store, sizes = EdgeStore(tmp_path), []
    store.create("main", CONFIG)
    index = store.open("main")
    for start in range(0, 8000, 500):
        fields = {"source": "s", "media_type": "text/plain", "updated_at": 5.0}
        index.upsert([drawn(n, document_id=uid(n), title=f"title {n}", **fields) for n in range(start, start + 500)])
        index.flush()
        sizes.append(in_use())
    assert sizes[-1] - sizes[3] < 6000 * 300 / 2**20  # MB; of a segment that is not sealed it is 2 kB a point
    index.close()


def test_an_index_with_a_graph_keeps_it(index: EdgeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "GRAPH_FROM", 100)
    index.upsert([drawn(number) for number in range(500)])
    index.flush()
    assert index.optimize()
    before = answers(index)
    with_graph = segments(index)
    index.upsert([drawn(number) for number in range(1000, 1400)])
    index.flush()
    assert segments(index) == with_graph
    index.delete([uid(number) for number in range(1000, 1400)])
    assert [set(hits) for hits in answers(index)] == [set(hits) for hits in before]


def test_an_index_of_an_earlier_release_stays_one_segment(tmp_path: Path, small: None) -> None:
    store = EdgeStore(tmp_path)
    store.create("main", CONFIG)
    folder = tmp_path / "main" / "shard"
    shutil.rmtree(folder)
    vectors = {"dense": qdrant_edge.EdgeVectorParams(size=DIMENSION, distance=qdrant_edge.Distance.Dot)}
    words = {"lexical": qdrant_edge.EdgeSparseVectorParams(modifier=qdrant_edge.Modifier.Idf)}
    qdrant_edge.EdgeShard.create(str(folder), qdrant_edge.EdgeConfig(vectors=vectors, sparse_vectors=words)).close()
    index = store.open("main")
    index.upsert([drawn(number) for number in range(300)])
    index.flush()
    assert segments(index) == 1
    index.scrub()  # written anew it is like every other
    assert segments(index) > 2
    assert index.count() == 300
    index.close()


def test_there_are_only_so_many_segments(index: EdgeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_segments, "MAX_SEGMENTS", 5)
    for start in range(0, 800, 80):
        index.upsert([drawn(number) for number in range(start, start + 80)])
        index.flush()
    assert (segments(index), index.count()) == (5, 800)


def test_without_room_on_the_disk_it_is_written_and_not_sealed(
    index: EdgeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(edge, "free", lambda _folder: edge.WRITING_BYTES + 1)
        index.upsert([drawn(number) for number in range(300)])
        index.flush()
        assert (segments(index), index.count()) == (1, 300)
    index.flush()
    assert segments(index) == 2


def test_a_kill_while_it_seals_loses_nothing(tmp_path: Path) -> None:
    store, dice, start = EdgeStore(tmp_path), random.Random(23), 0
    store.create("main", CONFIG)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(start)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            for _ in range(dice.randrange(3, 9)):
                line = process.stdout.readline()
            dice_seconds = dice.random() * 0.12  # a round takes about as long
            try:
                process.wait(dice_seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            said = [line, *process.stdout.readlines()]
        flushed = max([int(line.split()[1]) for line in said if line.startswith("flushed")], default=start)
        index = store.open("main")
        there = {point.id: point for point in index.scan(with_vectors=True)}
        lacking = [number for number in range(flushed) if uid(number) not in there]
        assert not lacking, f"{len(lacking)} of {flushed} that were flushed are gone"
        assert all(np.array_equal(there[uid(n)].dense, drawn(n).dense) for n in range(0, flushed, 7))
        index.close()
        start = flushed
    assert start > 64
