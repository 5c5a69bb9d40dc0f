"""Readiness, part by part: each thread of a server is killed, an encoder fails and hangs, an index is another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ingest import service as ingest_service
from ingest.indexer import Indexer
from ingest.service import IngestService
from ingest.worker import IndexerService
from nvr_rag.api import listening, probing, server
from nvr_rag.api.preparing import Preparer
from nvr_rag.errors import StoreError
from nvr_rag.running import processes
from nvr_rag.running.presence import Presence
from nvr_rag.running.services import Service
from nvr_rag.running.working import JobLoop
from nvr_rag.settings import ApiSettings
from nvr_rag.stores.base import StoreConfig
from nvr_rag.testing import HashEncoder, MemoryIndex
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from training.service import TrainerService

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SECONDS = 15


def reasons(api: Api) -> list[str]:
    response = api.client.get("/readyz")
    return [] if response.status_code == 200 else list(response.json()["reasons"])


def until(api: Api, words: str) -> str:
    """Wait until one of the reasons begins so."""
    deadline = time.monotonic() + SECONDS
    while not (found := [reason for reason in reasons(api) if reason.startswith(words)]):
        assert time.monotonic() < deadline, reasons(api)
        time.sleep(0.02)
    return found[0]


def until_ready(api: Api) -> None:
    deadline = time.monotonic() + SECONDS
    while reasons(api):
        assert time.monotonic() < deadline, reasons(api)
        time.sleep(0.02)


def die(*_arguments: object, **_options: object) -> None:
    """What no loop that catches errors catches: the thread ends."""
    raise SystemExit


@contextmanager
def serving(workspace: Workspace, *services: Service) -> Iterator[Api]:
    """A server with real services that is ready."""
    with running(workspace, services) as api:
        until_ready(api)
        yield api


def test_the_query_log(api: Api) -> None:
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    until_ready(api)
    api.app.state.parts.query_log._pending.put(None)  # its word for the end
    until(api, "the query log has stopped")
    begun = time.monotonic()
    problem = api.call("POST", "/v1/search", 503, json={"query": "tea"})
    assert "the log has stopped" in problem["detail"]
    assert time.monotonic() - begun < 10  # nobody waits for what cannot come


def test_what_follows_the_deployments(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    until_ready(api)
    monkeypatch.setattr(Preparer, "_follow", die)
    until(api, "nothing follows the deployments any more")


@pytest.mark.parametrize(
    ("owner", "method", "service", "words"),
    [
        (Indexer, "step", IndexerService, "indexer: the indexer is not running"),
        (JobLoop, "step", IndexerService, "indexer: the indexer's job thread is not running"),
        (JobLoop, "step", IngestService, "ingester: the ingester is not running; the ingester of uploads 1 is not"),
        (JobLoop, "step", TrainerService, "trainer: the trainer is not running"),
        (
            ingest_service.uploads,
            "sweep",
            IngestService,
            "ingester: uploads that nobody needs are not deleted any more",
        ),
    ],
)
def test_a_thread_of_a_service(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    method: str,
    service: Callable[[], Service],
    words: str,
) -> None:
    monkeypatch.setattr(ingest_service, "SWEEP_SECONDS", 0.05)
    with serving(workspace, service()) as api:
        monkeypatch.setattr(owner, method, die)
        until(api, words)


def test_a_loop_that_lives_and_can_do_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> bool:
        raise ValueError("nobody has foreseen this")

    with serving(workspace, TrainerService()) as api:
        monkeypatch.setattr(JobLoop, "step", fail)
        until(api, "trainer: the trainer failed and tries again: unexpected ValueError")
        monkeypatch.undo()
        until_ready(api)


def test_the_heartbeat(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a process that announces itself has one."""
    import httpx

    ready, urls, made = threading.Event(), [], []

    class Watched(server._Server):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    monkeypatch.setattr(server, "_Server", Watched)
    listener = listening.listen(ApiSettings(port=0))
    thread = threading.Thread(target=server.serve, args=(workspace, [], listener, on_ready))
    thread.start()
    try:
        assert ready.wait(SECONDS)
        monkeypatch.setattr(processes, "beat", die)
        deadline = time.monotonic() + SECONDS
        while "the heartbeat has stopped" not in httpx.get(f"{urls[0]}/readyz").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        made[0].should_exit = True
        thread.join()


def test_the_heartbeat_outlives_what_nobody_has_foreseen(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Semaphore(0)

    def fail(*_arguments: object) -> None:
        tried.release()
        raise ValueError("nobody has foreseen this")

    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(processes, "beat", fail)
    presence = Presence(workspace.database, "serve", job_kinds=())
    presence.start()
    assert all(tried.acquire(timeout=SECONDS) for _ in range(2))
    assert presence.problem() is None
    presence.stop()


@pytest.fixture
def probed(api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    """An API with a collection, whose encoder and index are looked at all the time."""
    monkeypatch.setattr(probing, "EVERY_SECONDS", 0.0)
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    api.put({"uri": "a", "text": "green tea"})
    preparer = api.app.state.parts.preparer
    deadline = time.monotonic() + SECONDS
    while list(preparer.prepared.values()) != [None]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    preparer.probe._due = 0.0
    until_ready(api)
    return api


def test_an_encoder_that_fails(probed: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(HashEncoder, "encode_queries", fail)
    fingerprint = probed.workspace.default_encoder().fingerprint
    assert until(probed, "encoder ") == f"encoder {fingerprint[:12]}: unexpected RuntimeError: out of memory"
    monkeypatch.undo()
    until_ready(probed)


def test_an_encoder_that_never_worked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(HashEncoder, "encode_queries", fail)
    api.call("POST", "/v1/collections", 201, json={"name": "default"})
    assert until(api, "collection ") == "collection default: unexpected RuntimeError: out of memory"


def test_an_encoder_that_makes_no_numbers(probed: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    dimension = probed.workspace.default_encoder().spec.dimension
    nothing = np.full((1, dimension), np.nan, dtype=np.float32)
    monkeypatch.setattr(HashEncoder, "encode_queries", lambda *_: nothing)
    assert "it makes no vectors any more" in until(probed, "encoder ")


def test_an_encoder_that_hangs(probed: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    encode = HashEncoder.encode_queries

    def hang(self: HashEncoder, texts: list[str]) -> object:
        go_on.wait(SECONDS)
        return encode(self, texts)

    monkeypatch.setattr(probing, "HUNG_SECONDS", 0.3)
    monkeypatch.setattr(HashEncoder, "encode_queries", hang)
    assert "restart the server" in until(probed, "an encoder has not answered for ")
    go_on.set()
    until_ready(probed)


def test_an_index_that_somebody_has_put_in_the_place_of_ours(probed: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(_self: MemoryIndex) -> StoreConfig:
        return StoreConfig(dimension=32, encoder="f" * 64)

    monkeypatch.setattr(MemoryIndex, "stored_config", other)
    reason = until(probed, "collection default: ")
    assert "holds vectors of the encoder ffffffffffff" in reason
    assert "nvr-rag verify --repair" in reason
    found = probed.client.get("/metrics").text
    (line,) = [line for line in found.splitlines() if line.startswith("nvr_rag_index_fingerprint_matches{")]
    assert line.endswith(" 0.0")
    monkeypatch.undo()
    until_ready(probed)


def test_an_index_that_is_not_ours_any_more(probed: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_ours(_self: MemoryIndex) -> StoreConfig:
        raise StoreError("this is somebody else's")

    monkeypatch.setattr(MemoryIndex, "stored_config", not_ours)
    assert until(probed, "collection default: ") == "collection default: this is somebody else's"


def test_encoders_and_indexes_are_asked_now_and_then_only() -> None:
    """Half a minute lies between two looks."""
    assert probing.EVERY_SECONDS >= 30
    moment = 0.0
    probe = probing.Probe(None, now=lambda: moment)  # type: ignore[arg-type]
    looks: list[float] = []

    class Serving(dict[str, object]):
        def items(self) -> object:  # type: ignore[override]
            looks.append(moment)
            return super().items()

    for second in range(0, 100, 5):
        moment = float(second)
        probe.look(Serving())  # type: ignore[arg-type]
    assert looks == [0.0, 30.0, 60.0, 90.0]


def test_while_it_stops_it_is_not_ready(api: Api) -> None:
    until_ready(api)
    api.app.state.stopping.set()
    assert reasons(api) == ["the server is stopping"]
    response = api.client.get("/livez")
    assert response.headers["connection"] == "close"  # whoever comes again goes elsewhere
