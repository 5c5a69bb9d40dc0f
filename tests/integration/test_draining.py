"""SIGTERM under load: who has sent a request gets its answer, and who comes later is told that nobody is there."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.killing.life import Server
from tests.killing.places import Place
from tests.killing.processes import Nursery

SECONDS = 30
THREADS = 3  # of each kind


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Importing takes longer than the tests."""
    with Nursery() as made:
        yield made


@pytest.fixture
def server(nursery: Nursery, tmp_path: Path) -> Iterator[Server]:
    """A server in a process of its own, with a document that is found."""
    place = Place(tmp_path / "place", "sqlite+edge")
    child = nursery.start(["serve", "--json"], place.settings, place.logs)
    deadline = time.monotonic() + SECONDS
    while child.said is None:
        assert time.monotonic() < deadline, child.errors
        time.sleep(0.02)
    server = Server(child, child.said["url"])
    server.call("POST", "/v1/collections", json={"name": "default"})
    body = {"documents": [{"uri": "a", "text": "green tea"}], "wait": True, "timeout_seconds": SECONDS}
    server.call("POST", "/v1/documents", json=body)
    server.http.close()
    yield server
    child.kill()


class Asking:
    """Threads that search without a pause until nobody listens any more, and keep count of how that went."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.outcomes: Counter[str] = Counter()
        self._lock = threading.Lock()
        kinds = [self._on_one_connection, self._on_new_connections]
        self._threads = [threading.Thread(target=kind) for kind in kinds for _ in range(THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()

    def _on_one_connection(self) -> None:
        with httpx.Client(base_url=self._url, timeout=SECONDS, trust_env=False, verify=False) as client:
            while self._ask(client):
                pass

    def _on_new_connections(self) -> None:
        going = True
        while going:
            with httpx.Client(base_url=self._url, timeout=SECONDS, trust_env=False, verify=False) as client:
                going = self._ask(client)

    def _ask(self, client: httpx.Client) -> bool:
        """Search once; whether to go on."""
        try:
            response = client.post("/v1/search", json={"query": "tea"})
            outcome = str(response.status_code)
        except httpx.ConnectError:
            outcome = "refused"
        except httpx.HTTPError as error:
            outcome = f"lost: {type(error).__name__}: {error}"
        with self._lock:
            self.outcomes[outcome] += 1
        return outcome == "200"


def test_no_request_is_lost(server: Server) -> None:
    asking = Asking(server.url)
    asking.start()
    deadline = time.monotonic() + SECONDS
    while asking.outcomes["200"] < 50:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.child.stop() == 0, server.child.errors
    asking.join()
    answered = asking.outcomes.pop("200")
    assert dict(asking.outcomes) == {"refused": 2 * THREADS}, asking.outcomes
    assert answered >= 50


def test_load_balancers_are_told_at_once(server: Server) -> None:
    """One that keeps its connection hears of it before the server is gone; what is under way is answered."""
    with (
        httpx.Client(base_url=server.url, timeout=SECONDS, trust_env=False, verify=False) as balancer,
        httpx.Client(base_url=server.url, timeout=SECONDS, trust_env=False, verify=False) as client,
    ):
        deadline = time.monotonic() + SECONDS
        while balancer.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answers: list[httpx.Response] = []
        body = {"documents": [{"uri": "b", "text": "black tea " * 2000}], "wait": True, "timeout_seconds": 5}
        sending = threading.Thread(target=lambda: answers.append(client.post("/v1/documents", json=body)))
        sending.start()
        stopping = threading.Thread(target=server.child.stop)
        stopping.start()
        time.sleep(0.2)
        told = balancer.get("/readyz")
        assert told.status_code == 503
        assert told.json()["reasons"] == ["the server is stopping"]
        assert told.headers["connection"] == "close"
        stopping.join()
        sending.join()
    assert [answer.status_code for answer in answers] in ([200], [202])
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/livez", trust_env=False, verify=False)
