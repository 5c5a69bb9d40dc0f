"""What every vector store promises (nvr_rag/stores/base.py), on each implementation alike.

A real Qdrant server joins in when NVR_TEST_QDRANT_URL is set.
"""

from __future__ import annotations

import math
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from nvr_rag.access.reading import kept, restriction
from nvr_rag.errors import IndexClosed, IndexExists, IndexMissing, InvalidInput, StoreError
from nvr_rag.filters import And, matches, parse_filter
from nvr_rag.ids import sha256_json
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.base import OpenIndex, Point, Store, StoreConfig
from nvr_rag.stores.edge import EdgeStore
from nvr_rag.stores.lexical import LexicalEncoder
from nvr_rag.stores.server import QdrantServerStore, connect
from nvr_rag.testing import MemoryStore
from nvr_rag.types import ANYBODY, OWNER, Reader
from tests.contract.store_cases import CONFIG, documents, filters, point, terms, uid, vector
from tests.qdrant_grpc import GrpcStandIn
from tests.qdrant_stand_in import StandIn

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")

SERVER_URL = os.environ.get("NVR_TEST_QDRANT_URL")
KINDS = ["edge", "local", "stand-in", "grpc", "memory"] + (["server"] if SERVER_URL else [])


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    match request.param:
        case "edge":
            yield EdgeStore(tmp_path / "not" / "there" / "yet")
        case "local":
            client = QdrantClient(":memory:")
            yield QdrantServerStore(client)
            client.close()
        case "stand-in":
            with StandIn() as stand_in:
                yield connect(stand_in.url)
        case "grpc":
            with StandIn() as stand_in, GrpcStandIn(stand_in) as grpc:
                yield connect(QdrantSettings(url=stand_in.url, grpc=True, grpc_port=grpc.port))
        case "memory":
            yield MemoryStore()
        case "server":
            assert SERVER_URL is not None
            server = connect(QdrantSettings(url=SERVER_URL, prefix=f"nvr-test-{uuid.uuid4().hex}-"))
            yield server
            for name in server.names():
                server.drop(name)


@pytest.fixture
def index(store: Store) -> Iterator[OpenIndex]:
    store.create("main", CONFIG)
    opened = store.open("main")
    yield opened
    opened.close()


def ids(found: Any) -> list[str]:
    return [hit.id for hit in found]


# -- a store -----------------------------------------------------------------------------------------------------------


def test_a_store_begins_empty_and_lists_its_indexes_by_name(store: Store) -> None:
    assert store.names() == []
    for name in ("main-2", "Main.1", "a_b"):
        store.create(name, CONFIG)
    assert store.names() == ["Main.1", "a_b", "main-2"]


def test_the_config_comes_back_at_opening(store: Store) -> None:
    store.create("main", CONFIG)
    opened = store.open("main")
    assert opened.config == CONFIG
    assert opened.stored_config() == CONFIG
    opened.close()


def test_creating_twice_raises_and_leaves_the_first_alone(store: Store) -> None:
    store.create("main", CONFIG)
    with pytest.raises(IndexExists):
        store.create("main", StoreConfig(dimension=8, encoder="other"))
    opened = store.open("main")
    assert opened.config == CONFIG
    assert opened.stored_config() == CONFIG
    opened.close()


def test_opening_what_is_not_there_raises(store: Store) -> None:
    with pytest.raises(IndexMissing, match="nothing-here"):
        store.open("nothing-here")


def test_dropping_removes_one_index_for_good(store: Store) -> None:
    store.create("main", CONFIG)
    store.create("other", CONFIG)
    opened = store.open("main")
    opened.upsert([point(1)])
    opened.close()
    store.drop("main")
    store.drop("main")
    assert store.names() == ["other"]
    with pytest.raises(IndexMissing):
        store.open("main")
    store.create("main", CONFIG)
    opened = store.open("main")
    assert opened.count() == 0
    opened.close()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a\0b", "ä", "x" * 129, "a\n"])
def test_names_that_could_be_paths_are_refused(store: Store, name: str) -> None:
    for call in (lambda: store.create(name, CONFIG), lambda: store.open(name), lambda: store.drop(name)):
        with pytest.raises(InvalidInput):
            call()


def test_points_outlive_closing(store: Store) -> None:
    store.create("main", CONFIG)
    opened = store.open("main")
    opened.upsert([point(1, (1.0, 2.0), terms(t7=1.5), {"uri": "u"})])
    opened.flush()
    opened.close()
    opened = store.open("main")
    assert ids(opened.scan()) == [uid(1)]
    assert ids(opened.search_dense(vector(1.0), 1, parse_filter({"uri": "u"}))) == [uid(1)]
    assert ids(opened.search_lexical(terms(t7=1.0), 1)) == [uid(1)]
    opened.close()


# -- writing -----------------------------------------------------------------------------------------------------------


def test_upsert_is_idempotent_and_replaces_the_whole_point(index: OpenIndex) -> None:
    old = point(1, (1.0, 0.0), terms(t1=1.0), {"title": "old", "metadata": {"gone": 1}})
    index.upsert([old])
    index.upsert([old])
    assert index.count() == 1
    index.upsert([point(1, (0.0, 1.0), terms(t2=1.0), {"title": "new"})])
    assert index.count() == 1
    assert index.search_dense(vector(0.0, 1.0), 5)[0].score == pytest.approx(1.0)
    assert ids(index.search_lexical(terms(t1=1.0), 5)) == []
    assert ids(index.search_lexical(terms(t2=1.0), 5)) == [uid(1)]
    assert index.search_dense(vector(1.0), 5, parse_filter({"title": "old"})) == []
    assert index.search_dense(vector(1.0), 5, parse_filter({"metadata.gone": {"exists": True}})) == []


def test_a_point_that_loses_its_words_is_no_longer_found_by_them(index: OpenIndex) -> None:
    index.upsert([point(1, lexical=terms(t1=1.0)), point(2, lexical=terms(t1=1.0))])
    index.upsert([point(1, lexical=terms())])
    assert ids(index.search_lexical(terms(t1=1.0), 5)) == [uid(2)]
    assert ids(index.search_dense(vector(1.0), 5)) == [uid(1), uid(2)]


def test_of_two_points_with_one_id_in_a_batch_the_last_wins(index: OpenIndex) -> None:
    index.upsert([point(1, payload={"uri": "first"}), point(1, payload={"uri": "last"})])
    assert index.count() == 1
    assert ids(index.search_dense(vector(1.0), 5, parse_filter({"uri": "last"}))) == [uid(1)]


def test_set_payload_replaces_payloads_and_keeps_vectors(index: OpenIndex) -> None:
    index.upsert([point(n, (float(n), 0.5), terms(t1=1.0), {"uri": "old", "title": "t"}) for n in (1, 2, 3)])
    fresh = {"input_hash": "i", "payload_hash": "p", "uri": "new"}
    index.set_payload({uid(1): fresh, uid(3): fresh | {"input_hash": "i3"}, uid(99): fresh})
    index.set_payload({})
    assert index.count() == 3
    stored = index.get([uid(1), uid(2), uid(3)], with_vectors=True)
    assert [stored[uid(n)].input_hash for n in (1, 2, 3)] == ["i", "input-2", "i3"]
    assert stored[uid(1)].payload_hash == "p"
    assert [list(stored[uid(n)].dense) for n in (1, 3)] == [[1.0, 0.5, 0.0, 0.0], [3.0, 0.5, 0.0, 0.0]]  # type: ignore[arg-type]
    assert ids(index.search_dense(vector(1.0), 5, parse_filter({"uri": "new"}))) == [uid(3), uid(1)]
    assert ids(index.search_dense(vector(1.0), 5, parse_filter({"title": {"exists": True}}))) == [uid(2)]
    assert ids(index.search_lexical(terms(t1=1.0), 5)) == [uid(1), uid(2), uid(3)]


def test_delete_ignores_what_is_not_there(index: OpenIndex) -> None:
    index.upsert([point(n, lexical=terms(t1=1.0)) for n in range(5)])
    index.delete([uid(1), uid(99), "no uuid", uid(3)])
    index.delete([])
    index.delete([uid(1)])
    assert ids(index.scan()) == [uid(0), uid(2), uid(4)]
    assert ids(index.search_dense(vector(1.0), 9)) == [uid(0), uid(2), uid(4)]
    assert ids(index.search_lexical(terms(t1=1.0), 9)) == [uid(0), uid(2), uid(4)]


@pytest.mark.parametrize(
    "bad",
    [
        Point(id=uid(2), dense=np.ones(3, np.float32), lexical=terms(), payload=point(2).payload),
        Point(id=uid(2), dense=vector(math.nan), lexical=terms(), payload=point(2).payload),
        Point(id=uid(2), dense=vector(math.inf), lexical=terms(), payload=point(2).payload),
        Point(id="chunk 2", dense=vector(1.0), lexical=terms(), payload=point(2).payload),
    ],
    ids=["wrong dimension", "nan", "infinite", "no uuid"],
)
def test_points_that_could_not_be_searched_are_refused(index: OpenIndex, bad: Point) -> None:
    with pytest.raises(StoreError):
        index.upsert([point(1), bad])
    assert index.count() == 0


def test_payloads_keep_any_json_in_any_script(index: OpenIndex) -> None:
    title = "Ünïcode 数据库 안녕 🙂 \0 \u202e line\nbreak \"quotes\" 'and' {braces}"
    metadata = {"ключ": {"日本": [1, 2.5, None, True, {"x": []}]}, "big": 2**53, "tiny": 5e-324, "weird key.[0]": ""}
    index.upsert([point(1, payload={"title": title, "metadata": metadata, "acl": None})])
    assert ids(index.search_dense(vector(1.0), 1, parse_filter({"title": title}))) == [uid(1)]
    assert ids(index.search_dense(vector(1.0), 1, parse_filter({"metadata.ключ.日本": 2.5}))) == [uid(1)]


# -- dense search ------------------------------------------------------------------------------------------------------


def test_dense_scores_are_inner_products_best_first(index: OpenIndex) -> None:
    index.upsert([point(1, (0.5, 0.5)), point(2, (2.0, 0.0)), point(3, (0.0, -3.0)), point(4, (-1.0, 1.0))])
    hits = index.search_dense(vector(1.0, 2.0), 3)
    assert [(hit.id, hit.score) for hit in hits] == [
        (uid(2), pytest.approx(2.0)),
        (uid(1), pytest.approx(1.5)),
        (uid(4), pytest.approx(1.0)),
    ]
    assert index.search_dense(vector(1.0, 2.0), 99)[-1].score == pytest.approx(-6.0)
    assert index.search_dense(vector(1.0), 0) == []


def test_dense_ties_are_broken_by_id_even_at_the_cut(index: OpenIndex) -> None:
    numbers = list(np.random.default_rng(1).permutation(300))
    index.upsert([point(int(n) + 1, (1.0,)) for n in numbers])
    index.upsert([point(1000, (2.0,)), point(2000, (0.5,))])
    assert ids(index.search_dense(vector(1.0), 7)) == [uid(1000), *(uid(n) for n in range(1, 7))]
    assert ids(index.search_dense(vector(1.0), 400)) == [uid(1000), *(uid(n) for n in range(1, 301)), uid(2000)]


def test_dense_search_is_exact_on_thousands_of_points(store: Store, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["store"] == "grpc":
        pytest.skip("slow in the converters of the client, and the same as over HTTP")
    store.create("big", StoreConfig(dimension=32, encoder="e"))
    index = store.open("big")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5000, 32)).astype(np.float32)
    numbers = [int(n) for n in rng.permutation(5000)]
    index.upsert(
        [
            Point(
                id=uid(n),
                dense=vectors[n],
                lexical=terms(t1=1.0),
                payload=point(n, payload={"uri": str(n % 2)}).payload,
            )
            for n in numbers
        ]
    )
    index.flush()
    assert index.count() == 5000
    assert index.info().points == 5000
    odd = parse_filter({"uri": "1"})
    for query in rng.standard_normal((3, 32)).astype(np.float32):
        scores = vectors @ query
        expected = sorted(range(5000), key=lambda n: -scores[n])
        assert ids(index.search_dense(query, 50)) == [uid(n) for n in expected[:50]]
        assert ids(index.search_dense(query, 50, odd)) == [uid(n) for n in expected if n % 2][:50]
    assert ids(index.scan()) == [uid(n) for n in range(5000)]
    index.close()


# -- lexical search ----------------------------------------------------------------------------------------------------


def test_lexical_scores_carry_the_idf_of_this_index(index: OpenIndex) -> None:
    """Three points with words; idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5)). Term 1 is in one of them, term 2 in two,
    term 3 in all. The fourth has no words and does not count."""
    idf1, idf2, idf3 = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5), math.log(1 + 0.5 / 3.5)
    index.upsert(
        [
            point(1, lexical=terms(t1=2.0, t2=1.0, t3=1.0)),
            point(2, lexical=terms(t2=1.5, t3=1.0)),
            point(3, lexical=terms(t3=0.5)),
            point(4, lexical=terms()),
        ]
    )
    hits = index.search_lexical(terms(t1=1.0, t2=1.0), 9)
    assert ids(hits) == [uid(1), uid(2)]
    assert [hit.score for hit in hits] == pytest.approx([2 * idf1 + idf2, 1.5 * idf2], rel=1e-5)
    assert [hit.score for hit in index.search_lexical(terms(t3=1.0), 9)] == pytest.approx(
        [idf3, idf3, 0.5 * idf3], rel=1e-5
    )
    assert index.search_lexical(terms(t1=3.0), 9)[0].score == pytest.approx(6 * idf1, rel=1e-5)


def test_lexical_idf_does_not_depend_on_the_filter(index: OpenIndex) -> None:
    index.upsert([point(n, lexical=terms(t1=1.0, t5=1.0), payload={"uri": str(n)}) for n in (1, 2)])
    index.upsert([point(3, lexical=terms(t5=1.0), payload={"uri": "3"})])
    everywhere = {hit.id: hit.score for hit in index.search_lexical(terms(t1=1.0), 9)}
    filtered = index.search_lexical(terms(t1=1.0), 9, parse_filter({"uri": "2"}))
    assert [(hit.id, hit.score) for hit in filtered] == [(uid(2), pytest.approx(everywhere[uid(2)]))]


def test_lexical_idf_follows_replaced_points(index: OpenIndex) -> None:
    index.upsert([point(n, lexical=terms(t1=1.0)) for n in (1, 2, 3)])
    index.upsert([point(n, lexical=terms(t2=1.0)) for n in (2, 3)])
    assert [hit.score for hit in index.search_lexical(terms(t1=1.0), 9)] == pytest.approx([math.log(1 + 2.5 / 1.5)])


def test_lexical_search_finds_only_points_that_share_a_term(index: OpenIndex) -> None:
    index.upsert([point(1, lexical=terms(t1=1.0)), point(2, lexical=terms(t2=1.0)), point(3, lexical=terms())])
    assert ids(index.search_lexical(terms(t2=1.0, t9=1.0), 9)) == [uid(2)]
    assert index.search_lexical(terms(t9=1.0), 9) == []
    assert index.search_lexical(terms(), 9) == []
    assert index.search_lexical(terms(t1=1.0), 0) == []


def test_lexical_ties_are_broken_by_id_even_at_the_cut(index: OpenIndex) -> None:
    numbers = list(np.random.default_rng(2).permutation(300))
    index.upsert([point(int(n), lexical=terms(t1=1.0, t2=2.0)) for n in numbers])
    assert ids(index.search_lexical(terms(t1=1.0, t2=1.0), 5)) == [uid(n) for n in range(5)]


def test_real_texts_are_found_by_their_words(index: OpenIndex) -> None:
    encoder = LexicalEncoder("english")
    texts = ["Rolling back a deployment", "数据库的备份和恢复", "Backups of the database are kept for 30 days", "!?"]
    index.upsert([point(n, lexical=encoder.encode_document(text)) for n, text in enumerate(texts)])
    assert ids(index.search_lexical(encoder.encode_query("how to roll back deployments"), 1)) == [uid(0)]
    assert ids(index.search_lexical(encoder.encode_query("数据库 备份"), 9)) == [uid(1)]
    assert ids(index.search_lexical(encoder.encode_query("database backup"), 1)) == [uid(2)]
    assert index.search_lexical(encoder.encode_query("the of and"), 9) == []


# -- filters -----------------------------------------------------------------------------------------------------------


@given(cases=st.lists(documents(), min_size=1, max_size=12), wanted=st.lists(filters(), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_filters_mean_what_matches_says(index: OpenIndex, cases: list[dict[str, Any]], wanted: list[Any]) -> None:
    index.delete(ids(index.scan()))
    points = [point(n, lexical=terms(t1=1.0), payload=case) for n, case in enumerate(cases)]
    index.upsert(points)
    for value in wanted:
        where = parse_filter(value)
        expected = [p.id for p in points if matches(where, p.payload)]
        assert ids(index.search_dense(vector(1.0), 99, where)) == expected, value
        assert ids(index.search_lexical(terms(t1=1.0), 99, where)) == expected, value


_NAMES = ["user:ann", "user:Ann", "group:sea", "數據", "a b", "0"]
_ACLS = st.none() | st.lists(st.sampled_from(_NAMES), max_size=3)
_READERS = st.builds(
    Reader, principals=st.frozensets(st.sampled_from([*_NAMES, "other"]), max_size=3), everything=st.booleans()
)


@given(
    acls=st.lists(_ACLS, min_size=1, max_size=12),
    readers=st.lists(_READERS, min_size=1, max_size=8),
    wanted=st.none() | filters(),
)
@example(acls=[None, [], ["user:ann"]], readers=[ANYBODY, OWNER, Reader(principals=frozenset({"user:ann"}))], wanted={})
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_restricted_search_finds_what_the_reader_may_read(
    index: OpenIndex, acls: list[list[str] | None], readers: list[Reader], wanted: dict[str, Any] | None
) -> None:
    index.delete(ids(index.scan()))
    fields = {"uri": "a", "metadata": {"a": 1}}
    index.upsert([point(n, lexical=terms(t1=1.0), payload=fields | {"acl": kept(acl)}) for n, acl in enumerate(acls)])
    where = parse_filter(wanted)
    for reader in readers:
        limits = restriction(reader)
        both = [part for part in (where, limits) if part is not None]
        asked = And(parts=tuple(both)) if both else None
        allowed = [uid(n) for n, acl in enumerate(acls) if reader.may_read(acl)]
        expected = allowed if matches(where, fields) else []
        assert ids(index.search_dense(vector(1.0), 99, asked)) == expected, (reader, acls)
        assert ids(index.search_lexical(terms(t1=1.0), 99, asked)) == expected, (reader, acls)


def test_a_filter_reaches_past_the_best_k(index: OpenIndex) -> None:
    index.upsert([point(n, (float(1000 - n),), payload={"uri": "x" if n > 500 else "y"}) for n in range(600)])
    assert ids(index.search_dense(vector(1.0), 2, parse_filter({"uri": "x"}))) == [uid(501), uid(502)]


def test_the_longest_filters_work(index: OpenIndex) -> None:
    index.upsert([point(n, payload={"uri": f"u{n}", "metadata": {"n": n}}) for n in range(20)])
    for value in (
        {"uri": {"in": [f"u{n}" for n in range(10, 1010)]}},
        {"metadata.n": {"in": list(range(10, 1010))}},
        {"and": [{"metadata.n": {"gte": 10}}] * 100},
    ):
        assert len(index.search_dense(vector(1.0), 99, parse_filter(value))) == 10


# -- looking up --------------------------------------------------------------------------------------------------------


def test_vectors_come_back_to_the_bit(index: OpenIndex) -> None:
    dense = np.array([0.1, -1 / 3, 1e-30, 12345.678], np.float32)
    index.upsert([Point(id=uid(1), dense=dense, lexical=terms(), payload=point(1).payload)])
    got = index.get([uid(1)], with_vectors=True)[uid(1)].dense
    scanned = next(iter(index.scan(with_vectors=True))).dense
    assert got is not None
    assert scanned is not None
    assert got.dtype == np.float32
    assert got.tobytes() == scanned.tobytes() == dense.tobytes()


def test_get_returns_hashes_of_what_is_there(index: OpenIndex) -> None:
    index.upsert([point(n) for n in range(3)])
    got = index.get([uid(2), uid(7), uid(0), "no uuid", uid(2)])
    assert set(got) == {uid(0), uid(2)}
    assert (got[uid(2)].id, got[uid(2)].input_hash, got[uid(2)].payload_hash) == (uid(2), "input-2", "payload-2")
    assert got[uid(2)].dense is None
    assert index.get([]) == {}


def test_read_returns_everything_that_is_kept(index: OpenIndex) -> None:
    metadata = {
        "year": 2021,
        "ratio": 1.0,
        "big": 2**62,
        "small": -0.5,
        "deep": [{"a": None}, [True, ""]],
        "ä": "\u2028\x01",
    }
    wanted = point(1, (1.0, 0.5), terms(t3=1.5, t9=0.25), {"metadata": metadata, "uri": "u", "acl": None})
    index.upsert([wanted, point(2)])
    found = index.read([uid(1), uid(2), uid(3), "no id"])
    assert set(found) == {uid(1), uid(2)}
    np.testing.assert_array_equal(found[uid(1)].dense, wanted.dense)
    assert list(found[uid(1)].lexical.indices) == list(wanted.lexical.indices)
    assert list(found[uid(1)].lexical.values) == pytest.approx(list(wanted.lexical.values))
    assert sha256_json(dict(found[uid(1)].payload)) == sha256_json(dict(wanted.payload))
    assert list(found[uid(2)].lexical.indices) == []


def test_a_point_without_hashes_is_read_all_the_same(index: OpenIndex) -> None:
    index.upsert([point(1), point(2)])
    index.set_payload({uid(1): {"uri": "x"}})
    assert [(one.id, bool(one.input_hash)) for one in index.scan()] == [(uid(1), False), (uid(2), True)]
    assert index.get([uid(1)])[uid(1)].payload_hash == ""
    assert dict(index.read([uid(1)])[uid(1)].payload) == {"uri": "x"}
    assert not index.lost


@pytest.mark.parametrize("batch", [1, 7, 50, 1000])
@pytest.mark.parametrize("with_vectors", [False, True])
def test_scan_gives_every_point_once_in_id_order(index: OpenIndex, batch: int, with_vectors: bool) -> None:
    numbers = [int(n) * 2**96 + 5 for n in np.random.default_rng(3).permutation(50)]
    index.upsert([point(n, (float(n % 7),)) for n in numbers])
    scanned = list(index.scan(batch=batch, with_vectors=with_vectors))
    assert ids(scanned) == [uid(n) for n in sorted(numbers)]
    assert [p.input_hash for p in scanned] == [f"input-{n}" for n in sorted(numbers)]
    for stored, n in zip(scanned, sorted(numbers), strict=True):
        assert (stored.dense is not None) is with_vectors
        if stored.dense is not None:
            assert stored.dense[0] == n % 7


def test_scrubbing_changes_nothing_that_is_there(store: Store) -> None:
    store.create("main", CONFIG)
    index = store.open("main")
    index.upsert([point(n, (float(n), 1.0), terms(t1=1.0 + n), {"uri": f"u{n}"}) for n in range(300)])
    index.delete([uid(7), uid(299)])
    index.set_payload({uid(8): {**point(8).payload, "uri": "repainted"}})
    before = index.read([uid(n) for n in range(300)])
    index.scrub()
    for round_ in range(2):
        opened = index if round_ == 0 else store.open("main")
        now = opened.read([uid(n) for n in range(300)])
        assert set(now) == set(before) == {uid(n) for n in range(300)} - {uid(7), uid(299)}
        for key, one in now.items():
            np.testing.assert_array_equal(one.dense, before[key].dense)
            assert dict(one.payload) == dict(before[key].payload)
            assert list(one.lexical.indices) == list(before[key].lexical.indices)
        assert ids(opened.search_dense(vector(1.0), 1)) == [uid(298)]
        assert ids(opened.search_dense(vector(1.0), 9, parse_filter({"uri": "repainted"}))) == [uid(8)]
        opened.upsert([point(1, (500.0,))])  # what is written afterwards counts
        opened.delete([uid(2)])
        assert ids(opened.search_dense(vector(1.0), 1)) == [uid(1)]
        assert opened.get([uid(2)]) == {}
        opened.upsert([point(n, (float(n), 1.0), terms(t1=1.0 + n), {"uri": f"u{n}"}) for n in (1, 2)])
        opened.flush()
        opened.close()


def test_an_empty_index_answers_everything(index: OpenIndex) -> None:
    assert index.count() == 0
    assert index.info().points == 0
    assert list(index.scan()) == []
    assert index.search_dense(vector(1.0), 5) == []
    assert index.search_lexical(terms(t1=1.0), 5) == []
    index.upsert([])
    index.flush()


# -- closing -----------------------------------------------------------------------------------------------------------


def test_closing_twice_is_fine_and_other_calls_fail_afterwards(store: Store) -> None:
    store.create("main", CONFIG)
    index = store.open("main")
    index.upsert([point(1)])
    scan = index.scan(batch=1)
    index.close()
    index.close()
    for call in (
        lambda: index.upsert([point(2)]),
        lambda: index.set_payload({uid(1): point(1).payload}),
        lambda: index.delete([uid(1)]),
        lambda: index.search_dense(vector(1.0), 1),
        lambda: index.search_lexical(terms(t1=1.0), 1),
        lambda: index.get([uid(1)]),
        lambda: list(scan),
        index.count,
        index.flush,
        index.info,
    ):
        with pytest.raises(IndexClosed):
            call()


def test_threads_search_while_one_writes_and_closes(store: Store, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["store"] == "local":
        pytest.skip("the client's local mode is not made for threads")
    store.create("main", CONFIG)
    index = store.open("main")
    index.upsert([point(n, (1.0,), terms(t1=1.0)) for n in range(200)])
    wrong: list[Any] = []
    started = threading.Barrier(5)

    def search() -> None:
        started.wait()
        try:
            while True:
                hits = index.search_dense(vector(1.0), 5), index.search_lexical(terms(t1=1.0), 5)
                if any(ids(found) != [uid(n) for n in range(5)] for found in hits):
                    wrong.append(hits)
        except StoreError as error:
            if "closed" not in str(error):
                wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    for round_ in range(20):
        index.upsert([point(n, (1.0,), terms(t1=1.0)) for n in range(200 + round_ * 50, 250 + round_ * 50)])
    index.flush()
    index.close()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert wrong == []
