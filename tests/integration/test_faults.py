"""Databases, stores and disks fail under a real server with clients at work: nobody gets anything but an answer, or a
503 that says when to come again; nothing acknowledged is lost, and everything goes on by itself.

These are the scenarios that matter most; `python -m tests.bench.faults` plays all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.outcomes import Outcome
from tests.faults.scenarios import SCENARIOS
from tests.faults.stage import Stage
from tests.killing.processes import Nursery

_NAMED = {scenario.name: scenario for scenario in SCENARIOS}

Play = Callable[[str], Outcome]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as opened:
        yield opened


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[], Cluster]]:
    """A PostgreSQL server of this module's own, made when it is first asked for."""
    made: list[Cluster] = []

    @cache
    def get() -> Cluster:
        made.append(Cluster())
        return made[0].__enter__()

    yield get
    for one in made:
        one.__exit__()


@pytest.fixture
def play(nursery: Nursery, cluster: Callable[[], Cluster], tmp_path: Path) -> Play:
    """Play a scenario by its name, see that all went well, and hand over what happened."""

    def played(name: str) -> Outcome:
        scenario = _NAMED[name]
        if not scenario.possible:
            pytest.skip("not possible here: a PostgreSQL server, or the right to mount, is missing")
        with Stage(nursery, tmp_path, cluster) as stage:
            found = scenario.play(stage, name)
        assert not found.wrong
        assert not found.faults
        assert found.recovered_seconds is not None
        assert found.acknowledged > 0
        return found

    return played


def put_off(found: Outcome, *what: str) -> int:
    """How many requests of these kinds were answered with a 503."""
    return sum(found.answers.get(one, {}).get("503", 0) for one in what)


def test_a_postgresql_server_that_is_killed_and_comes_back(play: Play) -> None:
    found = play("PostgreSQL killed")
    assert put_off(found, "put", "delete", "search") > 0
    assert found.said  # /readyz has said what is wrong
    assert found.verified == "clean"


def test_a_store_that_is_down_takes_searches_and_no_document(play: Play) -> None:
    found = play("the store is down")
    assert put_off(found, "search") > 0
    assert put_off(found, "put", "delete") == 0  # the log is the truth: durable from there
    assert any("Qdrant server" in words for words in found.said)
    assert found.verified == "clean"


def test_a_store_that_has_lost_a_collection_is_mended_by_a_repair(play: Play) -> None:
    """Documents come in all the while: the repair ends all the same."""
    found = play("the store loses a collection")
    assert put_off(found, "search") > 0
    assert put_off(found, "put", "delete") == 0
    assert found.verified == "clean"  # by the repair that the scenario itself has asked for


def test_a_full_disk(play: Play) -> None:
    """The database refuses what is put, so there is nothing that the indexer could stumble over."""
    found = play("the disk is full to the last byte (tmpfs)")
    assert put_off(found, "put", "delete", "search", "feedback") > 0
    assert found.verified == "clean"


def test_a_full_disk_on_which_the_database_finds_room(play: Play) -> None:
    """Root may use what ext4 keeps back. Without a look at what is free, indexing would be a SIGBUS there."""
    found = play("the disk is full to the last byte (ext4)")
    assert any("make room" in words for words in found.said)
    assert found.verified == "clean"


def test_a_disk_that_becomes_read_only(play: Play) -> None:
    found = play("the disk becomes read-only")
    assert put_off(found, "put", "delete") > 0
    assert [words for words in found.said if "damaged" in words] == []  # nothing is to be repaired


def test_a_process_that_holds_the_lock_of_sqlite_for_long(play: Play) -> None:
    found = play("another process holds SQLite's lock for 3 s")
    assert put_off(found, "put", "search") == 0  # they wait for it
    assert found.longest_seconds > 2.5


def test_a_log_of_sqlite_that_somebody_deletes(play: Play) -> None:
    found = play("SQLite's log deleted")
    assert put_off(found, "put", "delete", "search") > 0
    assert any("stop nvr-rag in order" in words for words in found.said)
