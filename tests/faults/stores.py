"""What can happen to a Qdrant server, as its stand-in plays it: real HTTP, points in memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.faults.clients import fair_or_none
from tests.faults.outcomes import Outcome, begin, outcome, recovered
from tests.faults.stage import POSTGRES, STORE_TIMEOUT_SECONDS, Scenario, Site, Stage
from tests.killing.life import Life
from tests.qdrant_stand_in import Fault, StandIn

_BROKEN_SECONDS = 3.0
_POINTS = r"/points"  # whatever reads or writes points
_KEY = "first key"


def _failing(name: str, fault: Fault, note: str = "") -> Scenario:
    """A server that answers, but not as it should."""

    def play(stage: Stage, name: str) -> Outcome:
        life, qdrant = stage.shared()

        @contextmanager
        def broken() -> Iterator[None]:
            qdrant.fail(fault)
            yield
            qdrant.heal()

        return outcome(life, name, broken, _BROKEN_SECONDS, note=note)

    return Scenario(name=name, play=play, needs=POSTGRES)


def _down(stage: Stage, name: str) -> Outcome:
    life, qdrant = stage.shared()

    @contextmanager
    def broken() -> Iterator[None]:
        qdrant.fail(Fault(kind="hang up"))  # connections that are open
        qdrant.stop()
        yield
        qdrant.start()
        qdrant.heal()

    return outcome(life, name, broken, _BROKEN_SECONDS)


def _key(stage: Stage, name: str) -> Outcome:
    """The server wants another key, and then the old one again."""
    life, qdrant = stage.shared(NVR_QDRANT__API_KEY=_KEY)
    qdrant.require(_KEY)

    @contextmanager
    def broken() -> Iterator[None]:
        qdrant.require("second key")
        yield
        qdrant.require(_KEY)

    return outcome(life, name, broken, _BROKEN_SECONDS)


def _new_key(stage: Stage, name: str) -> Outcome:
    """The server wants another key, with which ours is started again."""
    life, qdrant = stage.shared(NVR_QDRANT__API_KEY=_KEY)
    qdrant.require(_KEY)

    @contextmanager
    def broken() -> Iterator[None]:
        qdrant.require("second key")
        yield

    def mend() -> None:
        _restart(life, NVR_QDRANT__API_KEY="second key")

    note = "mended by a restart with the new key"
    return outcome(life, name, broken, _BROKEN_SECONDS, mend=mend, allowed=fair_or_none, note=note)


def _restart(life: Life, **more: str) -> None:
    life.stop_server()
    assert isinstance(life.place, Site)
    life.place.extra.update(more)
    life.serve()


def _losing(name: str, lose: str) -> Scenario:
    def play(stage: Stage, name: str) -> Outcome:
        life, qdrant = stage.shared()
        took: list[float] = []

        def mend() -> None:
            begun = time.monotonic()
            life.run("verify", "--repair")
            took.append(time.monotonic() - begun)

        found = outcome(life, name, lambda: _lost(qdrant, lose), 1.0, mend=mend)
        return found.noted(f"mended by nvr-rag verify --repair in {took[0]:.1f} s")

    return Scenario(name=name, play=play, needs=POSTGRES)


@contextmanager
def _lost(qdrant: StandIn, what: str) -> Iterator[None]:
    (collection,) = qdrant.collections()
    if what == "collection":
        assert qdrant.lose(collection)
    else:
        points = f"{qdrant.url}/collections/{collection}/points"
        found = httpx.post(f"{points}/scroll", json={"limit": 1000}, trust_env=False).json()["result"]["points"]
        lost = [point["id"] for point in found[::2]]
        httpx.post(f"{points}/delete", json={"points": lost}, trust_env=False).raise_for_status()
    yield


def _maintainer(stage: Stage, name: str) -> Outcome:
    """The worker that brings the index up stands still with its lease; the server takes over when that has run out."""
    life, _ = stage.shared()
    begin(life)
    life.stop_server()
    worker = life.start("worker", "--kinds", "index")
    took: list[float | None] = []

    @contextmanager
    def frozen() -> Iterator[None]:
        os.kill(worker.pid, signal.SIGSTOP)
        begun = time.monotonic()
        yield
        took.append(recovered(life, begun)[0])
        os.kill(worker.pid, signal.SIGCONT)

    found = outcome(life, name, frozen, 0.0)
    return found.noted(
        f"the server brought the index up {took[0] or float('nan'):.1f} s later; then the worker went on"
    )


SCENARIOS = (
    _failing("the store refuses everything (503)", Fault(status=503)),
    _failing("the store refuses writes (507)", Fault(status=507, only=r"PUT .*/points|POST .*/points/(delete|batch)")),
    _failing("the store refuses one request of three", Fault(status=503, share=0.33)),
    _failing(
        "the store is slow",
        Fault(kind="delay", seconds=STORE_TIMEOUT_SECONDS + 2.0, only=_POINTS),
        f"a request to the store may take {STORE_TIMEOUT_SECONDS} s",
    ),
    _failing("the store's answers are cut off", Fault(kind="cut", only=_POINTS)),
    Scenario(name="the store is down", play=_down, needs=POSTGRES),
    Scenario(name="the store's key rotated and rotated back", play=_key, needs=POSTGRES),
    Scenario(name="the store's key rotated", play=_new_key, needs=POSTGRES),
    _losing("the store loses a collection", "collection"),
    _losing("the store loses half of the points", "points"),
    Scenario(name="the worker that maintains the index stands still", play=_maintainer, needs=POSTGRES),
)
