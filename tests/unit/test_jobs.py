"""Jobs: each is done by one worker, a dead worker's is taken over, and not for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from nvr_rag import jobs
from nvr_rag.db import tables as t
from nvr_rag.errors import NotFound
from tests.support import House

KINDS = ("verify",)


class Clock:
    """What the tables take for now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift = timedelta()
        real = t.now
        monkeypatch.setattr(t, "now", lambda: real() + self.shift)

    def forward(self, seconds: float) -> None:
        self.shift += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_job_from_asking_to_done(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {"index_id": 1})
    waiting = jobs.get(house.database, job_id)
    assert (waiting.state, waiting.attempts, waiting.finished) == ("queued", 0, False)
    job = jobs.claim(house.database, "w1", KINDS)
    assert job is not None
    assert (job.id, job.state, job.attempts, job.payload) == (job_id, "running", 1, {"index_id": 1})
    assert jobs.heartbeat(house.database, job_id, "w1", {"checked": 5})
    assert jobs.get(house.database, job_id).progress == {"checked": 5}
    assert jobs.finish(house.database, job_id, "w1", result={"clean": True}, error=None)
    done = jobs.get(house.database, job_id)
    assert (done.state, done.result, done.error, done.finished) == ("done", {"clean": True}, None, True)
    assert jobs.claim(house.database, "w1", KINDS) is None


def test_a_job_that_ends_badly_keeps_the_reason(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.claim(house.database, "w1", KINDS)
    assert jobs.finish(house.database, job_id, "w1", result=None, error="the store is gone")
    failed = jobs.get(house.database, job_id)
    assert (failed.state, failed.error, failed.finished) == ("failed", "the store is gone", True)


def test_an_unknown_job_is_not_found(house: House) -> None:
    with pytest.raises(NotFound, match="42"):
        jobs.get(house.database, 42)


def test_the_oldest_comes_first_and_only_of_the_kinds_asked_for(house: House) -> None:
    other, first, second = (jobs.enqueue(house.database, kind, {}) for kind in ("train", "verify", "verify"))
    claimed = [jobs.claim(house.database, "w1", KINDS) for _ in range(3)]
    assert [job.id if job else None for job in claimed] == [first, second, None]
    assert jobs.get(house.database, other).state == "queued"


def test_two_workers_never_get_the_same_job(house: House) -> None:
    expected = [jobs.enqueue(house.database, "verify", {}) for _ in range(24)]
    barrier = threading.Barrier(4)

    def work(name: str) -> list[int]:
        barrier.wait()
        mine = []
        while (job := jobs.claim(house.database, name, KINDS)) is not None:
            mine.append(job.id)
        return mine

    with ThreadPoolExecutor(4) as pool:
        taken = [key for mine in pool.map(work, "abcd") for key in mine]
    assert sorted(taken) == expected


def test_a_dead_workers_job_is_taken_over_when_its_lease_ends(house: House, clock: Clock) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.claim(house.database, "dead", KINDS)
    clock.forward(jobs.LEASE_SECONDS - 1)
    assert jobs.claim(house.database, "heir", KINDS) is None
    clock.forward(2)
    taken = jobs.claim(house.database, "heir", KINDS)
    assert taken is not None
    assert (taken.id, taken.attempts) == (job_id, 2)


def test_a_heartbeat_keeps_the_lease(house: House, clock: Clock) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.claim(house.database, "w1", KINDS)
    for _ in range(3):
        clock.forward(jobs.LEASE_SECONDS - 1)
        assert jobs.heartbeat(house.database, job_id, "w1")
        assert jobs.claim(house.database, "w2", KINDS) is None


@pytest.mark.parametrize("last_word", [{"result": {"late": 1}, "error": None}, {"result": None, "error": "late"}])
def test_the_old_worker_can_no_longer_finish(house: House, clock: Clock, last_word: dict[str, Any]) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.claim(house.database, "old", KINDS)
    clock.forward(jobs.LEASE_SECONDS + 1)
    jobs.claim(house.database, "new", KINDS)
    assert not jobs.heartbeat(house.database, job_id, "old", {"checked": 1})
    assert not jobs.finish(house.database, job_id, "old", **last_word)
    job = jobs.get(house.database, job_id)
    assert (job.state, job.progress, job.result) == ("running", {}, None)
    assert jobs.finish(house.database, job_id, "new", result={}, error=None)
    assert not jobs.finish(house.database, job_id, "new", **last_word)


def test_a_job_that_kills_its_workers_is_given_up(house: House, clock: Clock) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    for attempt in range(1, jobs.MAX_ATTEMPTS + 1):
        job = jobs.claim(house.database, f"w{attempt}", KINDS)
        assert job is not None
        assert job.attempts == attempt
        clock.forward(jobs.LEASE_SECONDS + 1)
    assert jobs.claim(house.database, "w9", KINDS) is None
    failed = jobs.get(house.database, job_id)
    assert (failed.state, failed.error) == ("failed", "its worker died 3 times")


def test_asking_in_vain_takes_no_write_lock(house: House) -> None:
    with house.database.write():
        assert jobs.claim(house.database, "w1", KINDS) is None


def test_a_job_that_is_put_back_counts_as_no_death(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    for _ in range(jobs.MAX_ATTEMPTS + 1):
        job = jobs.claim(house.database, "a", ["verify"])
        assert job is not None
        assert (job.id, job.attempts, job.lapsed) == (job_id, 1, False)
        assert jobs.release(house.database, job_id, "a")
    assert jobs.get(house.database, job_id).state == "queued"


def test_a_job_lapses_with_its_lease(house: House, clock: Clock) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    assert not jobs.get(house.database, job_id).lapsed
    jobs.claim(house.database, "a", ["verify"])
    assert not jobs.get(house.database, job_id).lapsed
    clock.forward(jobs.LEASE_SECONDS + 1)
    assert jobs.get(house.database, job_id).lapsed
