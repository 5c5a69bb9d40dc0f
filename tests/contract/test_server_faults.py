"""A Qdrant server that fails in every way, through real HTTP: what the caller is told, and what a repetition mends."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient, models

from nvr_rag.errors import (
    ConfigurationError,
    IndexExists,
    IndexMismatch,
    IndexMissing,
    InvalidFilter,
    InvalidInput,
    StoreError,
    StoreUnavailable,
)
from nvr_rag.filters import parse_filter
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores import server_retries
from nvr_rag.stores.base import StoreConfig
from nvr_rag.stores.server import QdrantServerIndex, QdrantServerStore, connect
from nvr_rag.stores.server_options import creation
from tests.contract.store_cases import CONFIG, point, terms, uid, vector
from tests.qdrant_stand_in import Control, Fault, StandIn

KEY = "a-key-that-nobody-may-see"
FIELDS = {"document_id", "uri", "source", "title", "media_type", "updated_at", "acl"}


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_retries, "FIRST_SECONDS", 0.001)


@pytest.fixture
def store(server: StandIn) -> QdrantServerStore:
    return connect(QdrantSettings(url=server.url, timeout_seconds=30))


@pytest.fixture
def index(store: QdrantServerStore) -> QdrantServerIndex:
    store.create("main", CONFIG)
    opened = store.open("main")
    opened.upsert([point(n, (float(n),), terms(t1=1.0)) for n in range(1, 4)])
    return opened


CALLS: dict[str, Callable[[QdrantServerIndex], Any]] = {
    "upsert": lambda index: index.upsert([point(9, (9.0,), terms(t1=1.0))]),
    "set_payload": lambda index: index.set_payload({uid(1): point(1).payload}),
    "delete": lambda index: index.delete([uid(3)]),
    "search_dense": lambda index: index.search_dense(vector(1.0), 2),
    "search_lexical": lambda index: index.search_lexical(terms(t1=1.0), 2),
    "get": lambda index: index.get([uid(1)]),
    "read": lambda index: index.read([uid(1)]),
    "scan": lambda index: list(index.scan()),
    "count": lambda index: index.count(),
    "info": lambda index: index.info(),
}
call = pytest.mark.parametrize("name", CALLS)


def payload_indexes(server: StandIn, collection: str = "nvr-main") -> dict[str, Any]:
    client = QdrantClient(url=server.url, check_compatibility=False)
    return dict(client.get_collection(collection).payload_schema)


# -- faults that pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(status=500, after=True),
        Fault(kind="cut"),
        Fault(kind="hang up"),
        Fault(kind="hang up", after=True),
    ],
    ids=["refused", "failed after the work", "cut", "hung up", "hung up after the work"],
)
@call
def test_what_fails_twice_works_the_third_time(
    server: StandIn, index: QdrantServerIndex, name: str, fault: Fault
) -> None:
    server.fail(replace(fault, times=2))
    before = server.count()
    CALLS[name](index)
    assert server.count() == before + 3
    CALLS[name](index)
    there = {1, 2, 3} | ({9} if name == "upsert" else set()) - ({3} if name == "delete" else set())
    assert {one.id for one in index.scan()} == {uid(n) for n in there - ({3} if name == "delete" else set())}


def test_a_rate_limit_is_waited_out_when_there_is_time(server: StandIn, index: QdrantServerIndex) -> None:
    patient = connect(QdrantSettings(url=server.url)).open("main")
    server.fail(Fault(status=429, retry_after=1, times=1))
    begun = time.monotonic()
    assert patient.count() == 3
    assert time.monotonic() - begun >= 1.0


def test_a_rate_limit_beyond_the_deadline_is_answered_at_once(server: StandIn, index: QdrantServerIndex) -> None:
    server.fail(Fault(status=429, retry_after=60))
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match="fewer requests"):
        index.count()
    assert time.monotonic() - begun < 5.0


# -- faults that stay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Fault(status=503), Fault(status=500), Fault(status=429), Fault(kind="cut"), Fault(kind="hang up")],
    ids=["503", "500", "429", "cut", "hung up"],
)
@call
def test_a_server_that_keeps_failing_is_unavailable(
    server: StandIn, index: QdrantServerIndex, name: str, fault: Fault
) -> None:
    server.fail(fault)
    with pytest.raises(StoreUnavailable, match="index 'main'") as raised:
        CALLS[name](index)
    assert raised.value.retry
    server.heal()
    CALLS[name](index)


def test_a_server_that_is_down_is_given_up_within_a_second(
    server: StandIn, index: QdrantServerIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # with the waits of production
    server.stop()
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        index.search_dense(vector(1.0), 1)
    assert time.monotonic() - begun < 3.0


@pytest.mark.parametrize("name", ["search_dense", "upsert", "scan"])
def test_a_slow_server_is_given_up_at_the_timeout(server: StandIn, index: QdrantServerIndex, name: str) -> None:
    hasty = connect(QdrantSettings(url=server.url, timeout_seconds=1)).open("main")
    server.fail(Fault(kind="delay", seconds=8.0))
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"main.*timed out|no answer within"):
        CALLS[name](hasty)
    assert 0.9 < time.monotonic() - begun < 5.0
    server.heal()


def test_a_server_that_is_down_and_comes_back_has_what_it_had(server: StandIn, index: QdrantServerIndex) -> None:
    server.stop()
    for work in CALLS.values():
        with pytest.raises(StoreUnavailable, match="is it up"):
            work(index)
    server.start()
    assert index.count() == 3


@call
def test_a_lost_collection_is_missing(server: StandIn, index: QdrantServerIndex, name: str) -> None:
    assert server.lose("nvr-main")
    with pytest.raises(IndexMissing, match="verify --repair"):
        CALLS[name](index)


def test_a_share_of_failures_delays_but_loses_nothing(server: StandIn, index: QdrantServerIndex) -> None:
    server.fail(Fault(status=503, share=0.25))
    for n in range(10, 40):
        index.upsert([point(n)])
    server.heal()
    assert index.count() == 33


# -- creation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("skip", range(10))
def test_creation_that_breaks_off_anywhere_is_mended_by_repeating_it(
    server: StandIn, store: QdrantServerStore, skip: int, after: bool
) -> None:
    """Eight requests: exists, create, read back, five payload indexes. A second creation goes on or says that it is
    there, and opening makes the indexes that are missing."""
    server.fail(Fault(status=500, skip=skip, after=after))
    with pytest.raises(StoreUnavailable):
        store.create("main", CONFIG)
    server.heal()
    try:
        store.create("main", CONFIG)
    except IndexExists:
        assert skip > 1 or after
    opened = store.open("main")
    assert opened.config == CONFIG
    assert set(payload_indexes(server)) == FIELDS


def test_creation_makes_ten_requests(server: StandIn, store: QdrantServerStore) -> None:
    store.create("main", CONFIG)
    assert server.count() == 10


def test_what_a_server_refuses_for_good_leaves_nothing_behind() -> None:
    with StandIn(strict_mode={"enabled": True, "max_payload_index_count": 3}) as server:
        with pytest.raises(StoreError, match="maximum number of payload indices") as raised:
            connect(server.url).create("main", CONFIG)
        assert not raised.value.retry
        assert server.collections() == []


# -- other people's collections, and ours that changed -----------------------------------------------------------------


DENSE = models.VectorParams(size=4, distance=models.Distance.DOT)
LEXICAL = models.SparseVectorParams(modifier=models.Modifier.IDF)


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        ({"dense": models.VectorParams(size=8, distance=models.Distance.DOT)}, {"lexical": LEXICAL}),
        ({"dense": models.VectorParams(size=4, distance=models.Distance.COSINE)}, {"lexical": LEXICAL}),
        ({"text": DENSE}, {"lexical": LEXICAL}),
        ({"dense": DENSE, "image": DENSE}, {"lexical": LEXICAL}),
        (DENSE, {"lexical": LEXICAL}),
        ({"dense": DENSE}, {"lexical": models.SparseVectorParams()}),
        ({"dense": DENSE}, {"words": LEXICAL}),
        ({"dense": DENSE}, None),
    ],
    ids=["dimension", "distance", "name", "one more", "unnamed", "no IDF", "other words", "no lexical"],
)
def test_a_collection_with_other_vectors_is_refused_and_left_alone(
    server: StandIn, store: QdrantServerStore, dense: Any, sparse: Any
) -> None:
    store.create("main", CONFIG)
    client = QdrantClient(url=server.url, check_compatibility=False)
    kept = client.get_collection("nvr-main").config.metadata
    client.delete_collection("nvr-main")
    client.create_collection("nvr-main", vectors_config=dense, sparse_vectors_config=sparse, metadata=kept)
    before = client.get_collection("nvr-main")
    with pytest.raises(IndexMismatch, match="verify --repair"):
        store.open("main")
    assert client.get_collection("nvr-main") == before
    assert client.get_collection("nvr-main").payload_schema == {}


def test_what_was_put_in_the_place_of_an_open_index_is_seen(server: StandIn, store: QdrantServerStore) -> None:
    store.create("main", CONFIG)
    opened = store.open("main")
    client = QdrantClient(url=server.url, check_compatibility=False)
    client.delete_collection("nvr-main")
    with pytest.raises(IndexMissing):
        opened.stored_config()
    store.create("main", StoreConfig(dimension=4, encoder="e" * 64))
    assert opened.stored_config().encoder == "e" * 64
    assert opened.config == CONFIG
    client.delete_collection("nvr-main")
    client.create_collection("nvr-main", vectors_config={"dense": DENSE}, sparse_vectors_config={"lexical": LEXICAL})
    with pytest.raises(StoreError, match="NVR_QDRANT__PREFIX"):
        opened.stored_config()


def test_a_collection_of_others_is_neither_opened_nor_dropped(server: StandIn, store: QdrantServerStore) -> None:
    client = QdrantClient(url=server.url, check_compatibility=False)
    client.create_collection("nvr-theirs", vectors_config={"dense": DENSE}, sparse_vectors_config={"lexical": LEXICAL})
    for work in (store.open, store.drop):
        with pytest.raises(StoreError, match="NVR_QDRANT__PREFIX") as raised:
            work("theirs")
        assert not isinstance(raised.value, IndexMissing)
    assert client.get_collection("nvr-theirs").payload_schema == {}


# -- keys and TLS ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [None, "wrong-" + KEY])
def test_a_wrong_key_names_the_setting_and_never_itself(
    sent: str | None, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with StandIn(api_key=KEY) as server:
        settings = QdrantSettings(url=server.url, api_key=SecretStr(sent) if sent else None)
        store = connect(settings)
        for work in (store.names, lambda: store.create("main", CONFIG), lambda: store.open("main")):
            with pytest.raises(StoreError, match="NVR_QDRANT__API_KEY") as raised:
                work()
            assert not raised.value.retry
            shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
            assert KEY not in shown
        assert KEY not in f"{settings!r} {settings} {store!r} {vars(store)!r}"
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err + caplog.text


def test_the_right_key_opens_everything_and_shows_in_no_error(index: QdrantServerIndex, server: StandIn) -> None:
    server.require(KEY)
    store = connect(QdrantSettings(url=server.url, api_key=SecretStr(KEY), timeout_seconds=30))
    opened = store.open("main")
    assert opened.count() == 3
    for fault in (Fault(), Fault(kind="cut"), Fault(kind="hang up"), Fault(status=400), Fault(status=401)):
        server.heal()
        server.fail(fault)
        with pytest.raises(StoreError) as raised:
            opened.count()
        assert KEY not in "".join(traceback.format_exception(raised.value)) + repr(raised.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_tls_with_our_own_authority(certificate: tuple[Path, Path]) -> None:
    with StandIn(certificate=certificate, api_key=KEY) as server:
        store = connect(QdrantSettings(url=server.url, ca_file=certificate[0], api_key=SecretStr(KEY)))
        store.create("main", CONFIG)
        opened = store.open("main")
        opened.upsert([point(1)])
        assert opened.count() == 1


def test_a_certificate_that_nobody_vouches_for_is_no_passing_fault(certificate: tuple[Path, Path]) -> None:
    with StandIn(certificate=certificate) as server:
        begun = time.monotonic()
        with pytest.raises(StoreError, match="NVR_QDRANT__CA_FILE") as raised:
            connect(server.url).names()
        assert not raised.value.retry
        assert time.monotonic() - begun < 5.0


def test_tls_spoken_to_a_server_without_it(server: StandIn) -> None:
    with pytest.raises(StoreError, match="https"):
        connect(QdrantSettings(url=server.url.replace("http:", "https:"), timeout_seconds=2)).names()


@pytest.mark.parametrize("name", ["ca_file", "client_certificate_file"])
def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "no.pem"
    with pytest.raises(ConfigurationError, match="NVR_QDRANT__CA_FILE"):
        connect(QdrantSettings.model_validate({"url": "https://localhost", name: file}))
    file.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="NVR_QDRANT__CA_FILE"):
        connect(QdrantSettings.model_validate({"url": "https://localhost", name: file}))


# -- strict mode -------------------------------------------------------------------------------------------------------


STRICT = {
    "enabled": True,
    "max_query_limit": 30,
    "upsert_max_batchsize": 7,
    "max_timeout": 1,
    "unindexed_filtering_retrieve": False,
    "unindexed_filtering_update": False,
    "filter_max_conditions": 5,
    "condition_max_size": 10,
    "search_max_oversampling": 1.5,
    "search_allow_exact": False,
}


def strict_index(server: StandIn, **settings: Any) -> QdrantServerIndex:
    chosen = QdrantSettings(url=server.url, **settings)
    store = connect(chosen)
    store.create("main", StoreConfig(dimension=4, encoder="e", settings=creation(chosen)))
    return store.open("main")


def test_the_limits_of_strict_mode_are_kept() -> None:
    with StandIn(strict_mode=STRICT) as server:
        index = strict_index(server, quantization="binary")
        index.upsert([point(n, (1.0,), terms(t1=1.0), {"uri": str(n)}) for n in range(100)])
        index.set_payload({uid(n): point(n, payload={"uri": str(n)}).payload for n in range(100)})
        assert [one.id for one in index.scan()] == [uid(n) for n in range(100)]
        assert len(index.search_dense(vector(1.0), 30)) == 30
        assert len(index.search_lexical(terms(t1=1.0), 30)) == 30
        found = index.search_dense(vector(1.0), 2, parse_filter({"uri": {"in": ["5", "7"]}}))
        assert [hit.id for hit in found] == [uid(5), uid(7)]
        assert len(index.get([uid(n) for n in range(100)])) == 100
        assert index.count() == 100


def test_asking_for_more_than_strict_mode_gives_says_how_much_it_gives() -> None:
    with StandIn(strict_mode=STRICT) as server, pytest.raises(InvalidInput, match="at most 30 points, 31 were asked"):
        strict_index(server).search_dense(vector(1.0), 31)


@pytest.mark.parametrize(
    "where",
    [{"metadata.year": 2020}, {"metadata.team": {"exists": True}}, {"uri": {"in": [str(n) for n in range(11)]}}],
    ids=["no index", "no index to see whether it is there", "too many values"],
)
def test_a_filter_that_strict_mode_forbids_is_the_filters_fault(where: dict[str, Any]) -> None:
    with StandIn(strict_mode=STRICT) as server, pytest.raises(InvalidFilter, match="strict mode") as raised:
        strict_index(server).search_dense(vector(1.0), 3, parse_filter(where))
    assert "NVR_QDRANT__METADATA_INDEXES" in str(raised.value)


def test_declared_metadata_may_be_filtered_by() -> None:
    declared = {"year": "number", "team-a": "keyword", "done": "boolean"}
    with StandIn(strict_mode=STRICT) as server:
        index = strict_index(server, metadata_indexes=declared)
        data = {"year": 2020, "team-a": "x", "done": True}
        index.upsert([point(1, payload={"metadata": data}), point(2, payload={"metadata": {"year": 1}})])
        for where in ({"metadata.year": {"gt": 2000}}, {"metadata.team-a": "x"}, {"metadata.done": True}):
            assert [hit.id for hit in index.search_dense(vector(1.0), 9, parse_filter(where))] == [uid(1)]
        types = {key: value.data_type.value for key, value in payload_indexes(server).items()}
        assert types == dict.fromkeys(FIELDS, "keyword") | {
            "updated_at": "float",
            "metadata.year": "float",
            "metadata.team-a": "keyword",
            "metadata.done": "bool",
        }
        assert connect(server.url).open("main").count() == 2  # without making the indexes again
        assert server.count("PUT .*/index") == 10


def test_exact_searches_that_strict_mode_forbids_are_refused_at_opening() -> None:
    with StandIn(strict_mode=STRICT) as server, pytest.raises(StoreError, match="NVR_QDRANT__EXACT"):
        strict_index(server, exact=True)


# -- from another process ----------------------------------------------------------------------------------------------


def test_faults_are_injected_from_outside_too(server: StandIn, index: QdrantServerIndex) -> None:
    control = Control(server.url)
    control.fail(Fault(status=503, only="points/count"))
    with pytest.raises(StoreUnavailable):
        index.count()
    assert len(list(index.scan())) == 3
    control.heal()
    assert index.count() == control.count("points/count") - 2
    assert control.collections() == ["nvr-main"]
    control.require(KEY)
    with pytest.raises(StoreError, match="API_KEY"):
        index.count()
    control.require(None)
    assert control.lose("nvr-main")
    with pytest.raises(IndexMissing):
        index.count()


def test_the_stand_in_is_a_program(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.qdrant_stand_in", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        store = connect(process.stdout.readline().strip())
        store.create("main", CONFIG)
        opened = store.open("main")
        opened.upsert([point(1)])
        np.testing.assert_array_equal(opened.read([uid(1)])[uid(1)].dense, vector(1.0))
        process.terminate()


@pytest.mark.parametrize("status", [300, 400, 401, 402, 403, 404, 405, 409, 413, 418, 422, 425])
def test_what_a_repetition_does_not_help_is_asked_once(server: StandIn, index: QdrantServerIndex, status: int) -> None:
    """Whatever a server, or something before it, answers: the error is ours, and says so."""
    server.fail(Fault(status=status))
    with pytest.raises(StoreError) as raised:
        index.search_dense(vector(1.0), 1)
    assert not raised.value.retry
    assert server.count("points/query") == 1


@pytest.mark.parametrize("status", [408, 429, 500, 501, 502, 504, 507, 599])
def test_what_a_repetition_helps_is_repeated(server: StandIn, index: QdrantServerIndex, status: int) -> None:
    server.fail(Fault(status=status, times=1))
    assert index.search_dense(vector(1.0), 1)[0].id == uid(3)
    assert server.count("points/query") == 2
