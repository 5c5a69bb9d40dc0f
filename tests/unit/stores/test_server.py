"""What a Qdrant server's answers become, and what is sent to it. The server here is a page of canned answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient, models

from nvr_rag.errors import IndexExists, IndexMissing, StoreError, StoreUnavailable
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.base import StoreConfig
from nvr_rag.stores.server import QdrantServerIndex, QdrantServerStore, connect
from nvr_rag.stores.server_link import Server
from nvr_rag.stores.server_options import Shape, make_client
from tests.contract.store_cases import CONFIG, point, terms, uid, vector

pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect in the local Qdrant:UserWarning",
    "ignore:Api key is used with an insecure connection:UserWarning",
)


class Canned(ThreadingHTTPServer):
    """Answers every request with `status` and `result`, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.words = "canned"  # of an error
        self.result: Any = {"operation_id": 1, "status": "completed"}
        self.requests: list[tuple[str, str, Any, str | None]] = []  # method, path with query, body, api key

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Canned

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests.append(
            (self.command, self.path, json.loads(body) if body else None, self.headers.get("api-key"))
        )
        good = self.server.status == 200
        answer = {"result": self.server.result, "status": "ok" if good else {"error": self.server.words}, "time": 0.0}
        data = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Canned]:
    server = Canned()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def index(server: Canned) -> QdrantServerIndex:
    link = Server(make_client(QdrantSettings(url=server.url)), QdrantSettings(url=server.url))
    return QdrantServerIndex("main", link, "nvr-main", CONFIG, Shape())


@pytest.mark.parametrize(
    ("status", "error", "retry"),
    [
        (404, IndexMissing, False),
        (409, IndexExists, False),
        (400, StoreError, False),
        (401, StoreError, False),
        (403, StoreError, False),
        (408, StoreUnavailable, True),
        (429, StoreUnavailable, True),
        (500, StoreUnavailable, True),
        (503, StoreUnavailable, True),
    ],
)
def test_refusals_say_whether_a_retry_helps(
    server: Canned, index: QdrantServerIndex, status: int, error: type[StoreError], retry: bool
) -> None:
    server.status = status
    server.words = "Not found: Collection `nvr-main` doesn't exist!" if status == 404 else "canned"
    for call in (index.count, lambda: index.upsert([point(1)]), lambda: index.search_dense(vector(1.0), 1)):
        with pytest.raises(error, match=r"Qdrant server|on the server") as raised:
            call()
        assert type(raised.value) is error
        assert raised.value.retry is retry


def test_a_refused_key_names_the_setting(server: Canned, index: QdrantServerIndex) -> None:
    server.status = 401
    with pytest.raises(StoreError, match="NVR_QDRANT__API_KEY"):
        index.count()


def test_a_server_that_is_down_is_unavailable() -> None:
    store = connect(QdrantSettings(url="http://127.0.0.1:9", timeout_seconds=2))
    for call in (store.names, lambda: store.create("main", CONFIG), lambda: store.open("main")):
        with pytest.raises(StoreUnavailable):
            call()


def test_writes_wait_and_carry_the_key(server: Canned) -> None:
    settings = QdrantSettings(url=server.url, api_key=SecretStr("secret"))
    index = QdrantServerIndex("main", Server(make_client(settings), settings), "team-main", CONFIG, Shape())
    index.upsert([point(n, lexical=terms(t7=1.5)) for n in range(300)])
    upserts = [body["points"] for _, _, body, _ in server.requests]
    assert [entry["id"] for part in upserts for entry in part] == [uid(n) for n in range(300)]
    assert len(upserts) > 1  # large writes are split
    assert upserts[0][0]["vector"] == {"dense": [1.0, 0.0, 0.0, 0.0], "lexical": {"indices": [7], "values": [1.5]}}
    index.delete([uid(1)])
    server.result = [server.result, server.result]
    index.set_payload({uid(2): {"uri": "u"}, uid(3): {"uri": "v"}})
    assert [path for _, path, _, _ in server.requests[len(upserts) :]] == [
        "/collections/team-main/points/delete?wait=true&ordering=medium&timeout=10",
        "/collections/team-main/points/batch?wait=true&ordering=medium&timeout=10",
    ]
    assert all("wait=true&ordering=medium" in path and key == "secret" for _, path, _, key in server.requests)


@pytest.mark.parametrize("status", ["acknowledged", "wait_timeout"])
def test_a_write_that_is_taken_but_not_applied_is_no_success(
    server: Canned, index: QdrantServerIndex, status: str
) -> None:
    server.result = {"operation_id": 1, "status": status}
    for call in (lambda: index.upsert([point(1)]), lambda: index.delete([uid(1)])):
        with pytest.raises(StoreUnavailable, match="not applied"):
            call()
    server.result = [server.result]
    with pytest.raises(StoreUnavailable, match="not applied"):
        index.set_payload({uid(1): {"uri": "u"}})


def test_an_answer_without_a_result_or_without_sense_is_unavailable(server: Canned, index: QdrantServerIndex) -> None:
    for nonsense in (None, {"points": 7}, "text", [1]):
        server.result = nonsense
        with pytest.raises(StoreUnavailable):
            index.search_dense(vector(1.0), 1)


def test_reads_ask_as_many_copies_as_the_settings_say_and_name_a_time(server: Canned) -> None:
    settings = QdrantSettings(url=server.url, read_consistency="majority", timeout_seconds=7, oversampling=3.0)
    index = QdrantServerIndex("main", Server(make_client(settings), settings), "c", CONFIG, Shape(oversampling=3.0))
    server.result = {"points": []}
    assert index.search_dense(vector(1.0), 5) == []
    _, path, body, _ = server.requests[-1]
    assert path == "/collections/c/points/query?consistency=majority&timeout=7"
    assert body["params"]["quantization"] == {"rescore": True, "oversampling": 3.0}
    assert "indexed_only" not in body["params"]
    server.result = []
    index.get([uid(1)])
    assert server.requests[-1][1] == "/collections/c/points?consistency=majority&timeout=7"


def test_sharding_and_replication_are_set_at_creation(server: Canned) -> None:
    server.result = {"exists": False}
    config = StoreConfig(
        dimension=4, encoder="e", settings={"shard_number": 3, "replication_factor": 2, "something_else": 1}
    )
    with pytest.raises(StoreError):  # the canned answer fits only the first request
        connect(server.url).create("main", config)
    method, path, body, _ = server.requests[1]
    assert (method, path) == ("PUT", "/collections/nvr-main")
    assert (body["shard_number"], body["replication_factor"]) == (3, 2)
    assert body["vectors"] == {"dense": {"size": 4, "distance": "Dot"}}
    assert body["sparse_vectors"] == {"lexical": {"modifier": "idf"}}
    assert body["metadata"] == {"nvr_rag": asdict(config)}


def test_other_peoples_collections_are_left_alone() -> None:
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=2, distance=models.Distance.DOT)
    client.create_collection("theirs", vectors_config=params)
    client.create_collection("nvr-odd", vectors_config=params)
    store = QdrantServerStore(client)
    store.create("main", CONFIG)
    assert store.names() == ["main", "odd"]
    for call in (store.open, store.drop):
        with pytest.raises(StoreError, match="not made by nvr-rag"):
            call("odd")
    assert client.collection_exists("nvr-odd")
    store.drop("theirs")
    assert client.collection_exists("theirs")
    other = QdrantServerStore(client, QdrantSettings(prefix="other-"))
    assert other.names() == []
    client.close()
