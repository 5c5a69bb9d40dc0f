"""A Qdrant server over gRPC: its failures have the names that they have over HTTP, and settings arrive whole."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from pydantic import SecretStr

from nvr_rag.errors import IndexExists, IndexMissing, InvalidFilter, NvrError, StoreError, StoreUnavailable
from nvr_rag.filters import parse_filter
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores import server_retries
from nvr_rag.stores.base import StoreConfig
from nvr_rag.stores.server import QdrantServerIndex, connect
from nvr_rag.stores.server_options import creation
from tests.contract.store_cases import CONFIG, point, terms, uid, vector
from tests.qdrant_grpc import GrpcStandIn
from tests.qdrant_stand_in import StandIn

KEY = "a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_retries, "FIRST_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[GrpcStandIn]:
    with StandIn() as stand_in, GrpcStandIn(stand_in) as opened:
        yield opened


def settings(server: GrpcStandIn, **more: Any) -> QdrantSettings:
    return QdrantSettings(url=server.stand_in.url, grpc=True, grpc_port=server.port, timeout_seconds=30, **more)


@pytest.fixture
def index(server: GrpcStandIn) -> QdrantServerIndex:
    store = connect(settings(server))
    store.create("main", CONFIG)
    opened = store.open("main")
    opened.upsert([point(n, (float(n),), terms(t1=1.0)) for n in (1, 2)])
    return opened


@pytest.mark.parametrize(
    ("code", "words", "error", "retry"),
    [
        (grpc.StatusCode.NOT_FOUND, "Not found: Collection `nvr-main` doesn't exist!", IndexMissing, False),
        (grpc.StatusCode.ALREADY_EXISTS, "", IndexExists, False),
        (grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: x", StoreError, False),
        (grpc.StatusCode.INVALID_ARGUMENT, 'Index required but not found for "metadata.x"', InvalidFilter, False),
        (grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT", StoreError, False),
        (grpc.StatusCode.PERMISSION_DENIED, "Forbidden: read only", StoreError, False),
        (grpc.StatusCode.UNIMPLEMENTED, "", StoreError, False),
        (grpc.StatusCode.FAILED_PRECONDITION, "Storage locked: moving", StoreUnavailable, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Rate limiting exceeded", StoreUnavailable, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Timeout", StoreUnavailable, True),
        (grpc.StatusCode.INTERNAL, "Service internal error", StoreUnavailable, True),
        (grpc.StatusCode.UNAVAILABLE, "gone", StoreUnavailable, True),
        (grpc.StatusCode.UNKNOWN, "", StoreUnavailable, True),
    ],
)
def test_failures_have_the_names_that_they_have_over_http(
    server: GrpcStandIn, index: QdrantServerIndex, code: Any, words: str, error: type[NvrError], retry: bool
) -> None:
    server.failure = (code, words)
    for call in (index.count, lambda: index.upsert([point(1)]), lambda: index.search_dense(vector(1.0), 1)):
        with pytest.raises(error) as raised:
            call()
        assert (type(raised.value), raised.value.retry) == (error, retry)
    server.failure = None
    assert index.count() == 2


def test_a_port_where_nobody_listens_is_unavailable_in_time() -> None:
    store = connect(QdrantSettings(url="http://127.0.0.1:9", grpc=True, grpc_port=9, timeout_seconds=1))
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match="is it up"):
        store.open("main")
    assert time.monotonic() - begun < 3


def test_a_wrong_key_names_the_setting_and_never_itself(server: GrpcStandIn) -> None:
    server.stand_in.require(KEY)
    with pytest.raises(StoreError, match="NVR_QDRANT__API_KEY") as raised:
        connect(settings(server, api_key=SecretStr("wrong-" + KEY))).names()
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert connect(settings(server, api_key=SecretStr(KEY))).names() == []


def test_what_an_index_is_made_with_arrives_whole(server: GrpcStandIn) -> None:
    chosen = settings(
        server,
        shard_number=3,
        replication_factor=2,
        quantization="int8",
        vectors_on_disk=True,
        hnsw_on_disk=True,
        payload_on_disk=False,
        metadata_indexes={"year": "number", "team": "tenant"},
        read_consistency="all",
        write_ordering="strong",
    )
    store = connect(chosen)
    config = StoreConfig(dimension=4, encoder="e", settings=creation(chosen))
    store.create("main", config)
    opened = store.open("main")
    assert opened.config == config
    info = server.stand_in.answer("GET", "/collections/nvr-main", None)
    params = info["config"]["params"]
    assert (params["shard_number"], params["replication_factor"], params["write_consistency_factor"]) == (3, 2, 2)
    assert (params["on_disk_payload"], params["vectors"]["dense"]["on_disk"]) == (False, True)
    assert info["config"]["hnsw_config"]["on_disk"] is True
    assert info["config"]["quantization_config"]["scalar"] == {"type": "int8", "always_ram": True}
    assert info["config"]["optimizer_config"]["prevent_unoptimized"] is False
    assert info["payload_schema"]["metadata.team"]["params"] == {"type": "keyword", "is_tenant": True}
    opened.upsert([point(1, payload={"metadata": {"year": 2020}}), point(2)])
    found = opened.search_dense(vector(1.0), 5, parse_filter({"metadata.year": {"gte": 2020}}))
    assert [hit.id for hit in found] == [uid(1)]
    assert store.open("main").count() == 2
