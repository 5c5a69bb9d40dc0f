"""Two API processes and two workers on one database and one vector store: they agree, and they replace each other.

Real processes and a real PostgreSQL; the vector store is the stand-in for a Qdrant server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.running import processes
from tests import engines
from tests.killing.life import Server
from tests.killing.places import Place
from tests.killing.processes import Child, Nursery
from tests.qdrant_stand_in import StandIn

pytestmark = pytest.mark.skipif(engines.SERVER is None, reason="NVR_TEST_POSTGRES_URL names no server")

SECONDS = 40  # in which what must happen by itself has happened
FOLLOWED_SECONDS = 1.0  # in which every API process answers from what was switched to


@dataclass(kw_only=True)
class Site:
    """The processes and what they share."""

    nursery: Nursery
    place: Place
    servers: list[Server]
    workers: list[Child]

    def start(self, *arguments: str) -> Child:
        settings = {**self.place.settings, "NVR_QDRANT__TIMEOUT_SECONDS": "2"}
        return self.nursery.start([*arguments, "--json"], settings, self.place.logs)

    def command(self, *arguments: str) -> dict[str, Any]:
        child = self.start(*arguments)
        assert child.finish() == 0, child.errors
        assert child.said is not None
        return child.said

    def put(self, *uris: str, server: int = 0) -> None:
        documents = [{"uri": uri, "text": f"the {uri} swims"} for uri in uris]
        self.servers[server].call("POST", "/v1/documents", json={"documents": documents})

    def found(self, server: int = 0) -> set[str]:
        hits = self.servers[server].search("who swims?", "lexical")["hits"]
        return {hit["document"]["uri"] for hit in hits}

    @contextmanager
    def database(self) -> Iterator[Database]:
        opened = Database(str(engines.url_of(self.place.home)))
        yield opened
        opened.close()

    def maintainers(self) -> set[str]:
        with self.database() as database, database.read() as connection:
            return {one for one in connection.scalars(select(t.SearchIndex.maintainer)) if one}

    def alive(self, kind: str) -> list[processes.ProcessInfo]:
        with self.database() as database:
            return processes.alive(database, kind)


def until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Two servers that only answer and two workers, with an empty collection "default"."""
    with ExitStack() as stack:
        nursery, store = stack.enter_context(Nursery()), stack.enter_context(StandIn())
        place = Place(tmp_path / "site", "postgresql+qdrant", store.url)
        stack.callback(place.remove)
        made = Site(nursery=nursery, place=place, servers=[], workers=[])
        serving = [made.start("serve", "--api-only") for _ in range(2)]
        made.workers = [made.start("worker") for _ in range(2)]
        for child in serving:
            until(lambda child=child: child.said, "a server says where it answers")  # type: ignore[misc]
            made.servers.append(Server(child, str((child.said or {})["url"])))
        made.servers[0].call("POST", "/v1/collections", json={"name": "default"})
        until(lambda: len(made.alive("worker")) == 2, "both workers are there")
        yield made
        for server in made.servers:
            server.http.close()
        codes = [child.stop() for child in (*serving, *made.workers) if child.code is None]
        assert set(codes) <= {0}


def test_what_one_takes_all_show(site: Site) -> None:
    site.put("cod", "eel", server=0)
    site.put("ray", server=1)
    for server in (0, 1):
        until(lambda server=server: site.found(server) == {"cod", "eel", "ray"}, "all are found")  # type: ignore[misc]
    assert site.command("verify")["clean"] is True
    assert len(site.maintainers()) <= 1


def test_every_process_follows_a_switch_within_a_second_and_has_prepared_before_it(site: Site) -> None:
    site.put("cod", "eel")
    until(lambda: site.found() == {"cod", "eel"}, "both are found")
    answers: list[list[tuple[float, float, int]]] = [[], []]  # by server: (begun, ended, deployment)
    failures: list[object] = []
    stop = threading.Event()

    def search(number: int) -> None:
        while not stop.is_set():
            begun = time.monotonic()
            try:
                told = site.servers[number].search("who swims?", k=3)
            except Exception as error:
                failures.append(error)
                continue
            answers[number].append((begun, time.monotonic(), told["deployment"]["id"]))

    def switched(*arguments: str) -> None:
        told = site.command("deploy", *arguments)
        ended = time.monotonic()
        assert told["prepared_by"] == 2
        time.sleep(1.5 * FOLLOWED_SECONDS)
        for ours in answers:
            late = {deployment for begun, _, deployment in ours if begun > ended + FOLLOWED_SECONDS}
            assert late == {told["serving"]}

    threads = [threading.Thread(target=search, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        model = site.command("models", "add", str(site.place.model(1)))["model"]["fingerprint"]
        candidate = site.command("index", "build", "--model", model)["index"]["deployments"][-1]["id"]
        switched("promote", str(candidate))
        switched("rollback")
        switched("promote", str(candidate))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(len({deployment for _, _, deployment in ours}) == 2 for ours in answers)


def test_a_worker_that_is_killed_is_replaced_by_the_other(site: Site) -> None:
    site.put("cod")
    until(lambda: site.found() == {"cod"}, "it is found")
    for number, worker in enumerate(site.workers):  # whichever of them was at it
        worker.kill()
        site.put(f"eel{number}")
        if number == 0:
            until(lambda: site.found() == {"cod", "eel0"}, "the other worker goes on")
    site.workers.append(site.start("worker"))
    until(lambda: site.found(1) == {"cod", "eel0", "eel1"}, "a new worker goes on")
    assert site.command("verify")["clean"] is True


def test_a_job_of_a_killed_worker_is_done_by_the_other(site: Site) -> None:
    site.put(*(f"fish{number}" for number in range(30)))
    until(lambda: len(site.found()) == 30, "all are found")
    found = site.start("index", "compact")
    site.workers[0].kill()
    assert found.finish() == 0, found.errors
    assert len(site.found(1)) == 30
    assert site.command("verify")["clean"] is True
