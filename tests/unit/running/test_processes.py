"""Heartbeat rows: how a command finds a running server."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from nvr_rag.db import clock
from nvr_rag.errors import StoreBusy
from nvr_rag.running import processes
from tests.support import House


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Move the clock forward."""
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda connection: real(connection) + timedelta(seconds=seconds))


def test_a_server_is_found_by_its_kind(house: House) -> None:
    first = processes.announce(house.database, "serve", "http://127.0.0.1:8000")
    processes.announce(house.database, "worker")
    (found,) = processes.alive(house.database, "serve")
    assert (found.id, found.url, found.pid) == (first, "http://127.0.0.1:8000", os.getpid())


def test_the_latest_comes_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    old = processes.announce(house.database, "serve")
    at(monkeypatch, 1)
    new = processes.announce(house.database, "serve")
    assert [found.id for found in processes.alive(house.database, "serve")] == [new, old]
    at(monkeypatch, 1)
    processes.beat(house.database, old)
    assert [found.id for found in processes.alive(house.database, "serve")] == [old, new]


def test_a_server_that_stops_beating_is_dead_and_one_that_wakes_up_is_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = processes.announce(house.database, "serve")
    at(monkeypatch, processes.DEAD_AFTER_SECONDS + 1)
    assert processes.alive(house.database, "serve") == []
    at(monkeypatch, 86400)  # a day asleep, while others come and go
    processes.withdraw(house.database, processes.announce(house.database, "serve"))
    processes.beat(house.database, server)
    assert [found.id for found in processes.alive(house.database, "serve")] == [server]


def test_a_server_that_ends_in_order_is_gone_at_once(house: House) -> None:
    server = processes.announce(house.database, "serve")
    processes.withdraw(house.database, server)
    processes.beat(house.database, server)
    assert processes.alive(house.database, "serve") == []


def prepared(house: House) -> dict[str, str | None]:
    (found,) = processes.alive(house.database, "serve")
    return dict(found.prepared)


def test_a_server_says_what_it_has_loaded_and_why_it_has_not(house: House) -> None:
    server = processes.announce(house.database, "serve")
    assert prepared(house) == {}
    processes.beat(house.database, server, {1: None, 2: "the disk is full"})
    assert prepared(house) == {"1": None, "2": "the disk is full"}
    processes.beat(house.database, server)  # nothing new to say
    assert prepared(house) == {"1": None, "2": "the disk is full"}
    processes.beat(house.database, server, {2: None})
    assert prepared(house) == {"2": None}
    processes.beat(house.database, server, {})
    assert prepared(house) == {}


def test_each_server_speaks_for_itself(house: House) -> None:
    first, second = (processes.announce(house.database, "serve") for _ in range(2))
    processes.beat(house.database, first, {1: None})
    processes.beat(house.database, second, {1: "no"})
    found = {one.id: one.prepared for one in processes.alive(house.database, "serve")}
    assert found == {first: {"1": None}, second: {"1": "no"}}


def test_a_job_is_left_to_those_who_say_that_they_take_it(house: House) -> None:
    def takers(kind: str) -> list[str]:
        return [one.id for one in processes.taking(house.database, kind)]

    assert takers("verify") == []
    trains = processes.announce(house.database, "worker", job_kinds=["retrain"])
    server = processes.announce(house.database, "serve", "http://127.0.0.1:8000", job_kinds=("verify", "retrain"))
    assert (takers("verify"), takers("retrain"), takers("other")) == ([server], [server, trains], [])
    older = processes.announce(house.database, "serve")  # a release that does not say
    assert takers("other") == [older]


def test_what_owns_an_index_is_told_by_name(house: House) -> None:
    busy = StoreBusy("the index is owned by another process")
    assert "No server is running" in str(processes.busy(house.database, busy))
    processes.announce(house.database, "worker", job_kinds=["verify"])
    assert f"probably in the worker with process id {os.getpid()}" in str(processes.busy(house.database, busy))
    processes.announce(house.database, "serve", "http://127.0.0.1:8000", job_kinds=["verify"])
    assert f"probably in the server with process id {os.getpid()}" in str(processes.busy(house.database, busy))
