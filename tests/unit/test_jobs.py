"""Jobs: each is done by one worker, a dead worker's is taken over, and not for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from nvr_rag import jobs
from nvr_rag.db import clock as clocks
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, NotFound
from nvr_rag.jobs import Hold, Job, Status
from nvr_rag.retries import RetryDecision
from tests.support import House

KINDS = ("verify",)


class Clock:
    """What all processes take for now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift = timedelta()
        self._real = clocks.now
        monkeypatch.setattr(clocks, "now", lambda connection: self._real(connection) + self.shift)

    def forward(self, seconds: float) -> None:
        self.shift += timedelta(seconds=seconds)

    def now(self, house: House) -> datetime:
        with house.database.read() as connection:
            return clocks.now(connection)


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
    assert jobs.heartbeat(house.database, job_id, "w1", {"checked": 5}) is Hold.MINE
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
        assert jobs.heartbeat(house.database, job_id, "w1") is Hold.MINE
        assert jobs.claim(house.database, "w2", KINDS) is None


@pytest.mark.parametrize("last_word", [{"result": {"late": 1}, "error": None}, {"result": None, "error": "late"}])
def test_the_old_worker_can_no_longer_finish(house: House, clock: Clock, last_word: dict[str, Any]) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.claim(house.database, "old", KINDS)
    clock.forward(jobs.LEASE_SECONDS + 1)
    jobs.claim(house.database, "new", KINDS)
    assert jobs.heartbeat(house.database, job_id, "old", {"checked": 1}) is Hold.LOST
    assert not jobs.release(house.database, job_id, "old")
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
    other = jobs.enqueue(house.database, "verify", {})
    heir = jobs.claim(house.database, "w9", KINDS)
    assert heir is not None
    assert heir.id == other  # burying one is no reason to go away with nothing
    failed = jobs.get(house.database, job_id)
    assert (failed.state, failed.status) == ("failed", Status.FAILED)
    assert failed.error == "its worker died (given up after 5 attempts)"
    assert [(one["attempt"], one["error"]) for one in failed.failures] == [
        (attempt, "its worker died") for attempt in (1, 2, 3, 4, 5)
    ]


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


# trying again


def claimed(house: House, worker: str = "w1") -> Job:
    job = jobs.claim(house.database, worker, KINDS)
    assert job is not None
    return job


AGAIN = RetryDecision(again=True, delay_seconds=20.0, words="the store is slow")


def test_what_is_tried_again_waits_until_it_is_due(house: House, clock: Clock) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    assert jobs.fail(house.database, claimed(house).id, "w1", AGAIN)
    waiting = jobs.get(house.database, job_id)
    assert (waiting.state, waiting.attempts, waiting.error, waiting.worker) == ("queued", 1, None, None)
    assert waiting.due_at is not None
    assert timedelta(seconds=18) < waiting.due_at - clock.now(house) <= timedelta(seconds=20)
    assert [(one["attempt"], one["error"]) for one in waiting.failures] == [(1, "the store is slow")]
    assert datetime.fromisoformat(waiting.failures[0]["at"]).utcoffset() == timedelta()
    clock.forward(17)
    assert jobs.claim(house.database, "w2", KINDS) is None
    clock.forward(4)
    again = claimed(house, "w2")
    assert (again.id, again.attempts, again.due_at) == (job_id, 2, None)


def test_one_that_is_due_later_is_done_at_once_by_whoever_asks_for_it_by_its_id(house: House) -> None:
    jobs.enqueue(house.database, "verify", {})
    first = claimed(house)
    jobs.fail(house.database, first.id, "w1", AGAIN)
    assert jobs.claim(house.database, "w1", KINDS) is None
    mine = jobs.claim(house.database, "w1", KINDS, job_id=first.id)
    assert mine is not None


def test_a_job_may_be_asked_for_later(house: House, clock: Clock) -> None:
    later = jobs.enqueue(house.database, "verify", {}, due_at=clock.now(house) + timedelta(hours=1))
    at_once = jobs.enqueue(house.database, "verify", {})
    assert claimed(house).id == at_once
    assert jobs.claim(house.database, "w1", KINDS) is None
    clock.forward(3601)
    assert claimed(house).id == later


def test_a_job_that_is_given_up_says_why_and_what_went_wrong_before(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.fail(house.database, claimed(house).id, "w1", RetryDecision(again=True, delay_seconds=0.0, words="slow"))
    jobs.fail(house.database, claimed(house).id, "w1", RetryDecision(again=False, delay_seconds=0.0, words="gone"))
    dead = jobs.get(house.database, job_id)
    assert (dead.state, dead.error, dead.attempts) == ("failed", "gone", 2)
    assert [(one["attempt"], one["error"]) for one in dead.failures] == [(1, "slow"), (2, "gone")]
    assert dead.finished_at is not None


def test_only_the_last_ten_failures_are_kept_and_no_text_that_the_database_cannot_hold(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    for number in range(13):
        words = f"{number}: a\0b \ud800" + "x" * 5000
        jobs.fail(house.database, claimed(house).id, "w1", RetryDecision(again=True, delay_seconds=0.0, words=words))
    kept = jobs.get(house.database, job_id).failures
    assert [one["attempt"] for one in kept] == list(range(4, 14))
    assert kept[0]["error"].startswith("3: a\ufffdb \ufffdxxx")
    assert len(kept[0]["error"]) == 2000


def test_what_is_put_back_with_a_reason_says_it_once(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    for _ in range(3):
        jobs.release(house.database, claimed(house).id, "w1", reason="owned by another process")
    waiting = jobs.get(house.database, job_id)
    assert (waiting.attempts, [one["error"] for one in waiting.failures]) == (0, ["owned by another process"])


def test_a_worker_passes_over_what_it_is_told_to(house: House) -> None:
    first, second = (jobs.enqueue(house.database, "verify", {}) for _ in range(2))
    job = jobs.claim(house.database, "w1", KINDS, skip={first})
    assert job is not None
    assert job.id == second
    assert jobs.claim(house.database, "w1", KINDS, skip={first}) is None


def test_a_failed_job_is_queued_again_by_hand_with_all_its_attempts(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.finish(house.database, claimed(house).id, "w1", result=None, error="gone")
    again = jobs.retry(house.database, job_id)
    assert (again.state, again.attempts, again.error, again.finished_at) == ("queued", 0, None, None)
    assert [one["error"] for one in again.failures] == ["gone"]
    assert claimed(house).attempts == 1


def test_only_a_failed_job_can_be_queued_again(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    with pytest.raises(Conflict, match="verify job 1 is queued"):
        jobs.retry(house.database, job_id)
    claimed(house)
    with pytest.raises(Conflict, match="verify job 1 is running"):
        jobs.retry(house.database, job_id)
    jobs.finish(house.database, job_id, "w1", result={}, error=None)
    with pytest.raises(Conflict, match="it has ended well; only a failed one"):
        jobs.retry(house.database, job_id)
    with pytest.raises(NotFound):
        jobs.retry(house.database, 99)


def test_a_job_of_which_there_is_one_at_a_time_stays_alone(house: House) -> None:
    first = jobs.enqueue_alone(house.database, "verify", "default", {})
    jobs.finish(house.database, claimed(house).id, "w1", result=None, error="gone")
    second = jobs.enqueue_alone(house.database, "verify", "default", {})
    with pytest.raises(Conflict, match=f"verify job {second} is queued"):
        jobs.retry(house.database, first)
    jobs.cancel(house.database, second)
    assert jobs.retry(house.database, first).state == "queued"
    with pytest.raises(Conflict, match=f"verify job {first} is queued"):
        jobs.retry(house.database, second)


# cancelling


def test_a_job_that_waits_is_cancelled_at_once(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.cancel(house.database, job_id)
    ended = jobs.get(house.database, job_id)
    assert (ended.state, ended.status, ended.error) == ("failed", Status.CANCELLED, "cancelled")
    assert ended.cancel_at == ended.finished_at is not None
    assert jobs.claim(house.database, "w1", KINDS) is None
    assert jobs.cancel(house.database, job_id).status is Status.CANCELLED  # twice is fine


def test_the_worker_of_a_job_that_runs_hears_of_it_with_its_next_heartbeat(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    claimed(house)
    assert jobs.heartbeat(house.database, job_id, "w1") is Hold.MINE
    asked = jobs.cancel(house.database, job_id)
    assert (asked.state, asked.status) == ("running", Status.CANCELLING)
    assert jobs.cancel(house.database, job_id).cancel_at == asked.cancel_at
    assert jobs.heartbeat(house.database, job_id, "w1") is Hold.CANCEL
    assert jobs.heartbeat(house.database, job_id, "other") is Hold.LOST
    assert jobs.release(house.database, job_id, "w1")
    ended = jobs.get(house.database, job_id)
    assert (ended.state, ended.status, ended.error) == ("failed", Status.CANCELLED, "cancelled")
    assert jobs.heartbeat(house.database, job_id, "w1") is Hold.LOST


def test_a_cancelled_job_that_fails_is_not_tried_again(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    claimed(house)
    jobs.cancel(house.database, job_id)
    jobs.fail(house.database, job_id, "w1", AGAIN)
    ended = jobs.get(house.database, job_id)
    assert (ended.status, ended.error, ended.due_at) == (Status.CANCELLED, "cancelled", None)
    assert [one["error"] for one in ended.failures] == ["the store is slow"]


def test_a_job_that_was_quicker_than_its_cancelling_is_done(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    claimed(house)
    jobs.cancel(house.database, job_id)
    assert jobs.finish(house.database, job_id, "w1", result={"clean": True}, error=None)
    done = jobs.get(house.database, job_id)
    assert (done.state, done.status, done.result) == ("done", Status.DONE, {"clean": True})
    with pytest.raises(Conflict, match="has ended already"):
        jobs.cancel(house.database, job_id)


def test_what_a_dead_worker_had_is_cancelled_at_once_or_when_its_lease_ends(house: House, clock: Clock) -> None:
    first, second = (jobs.enqueue(house.database, "verify", {}) for _ in range(2))
    claimed(house, "dead")
    claimed(house, "dead")
    assert jobs.cancel(house.database, first).status is Status.CANCELLING
    clock.forward(jobs.LEASE_SECONDS + 1)
    assert jobs.cancel(house.database, second).status is Status.CANCELLED
    assert jobs.claim(house.database, "heir", KINDS) is None
    assert jobs.get(house.database, first).status is Status.CANCELLED


def test_a_cancelled_job_can_be_tried_again(house: House) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.cancel(house.database, job_id)
    again = jobs.retry(house.database, job_id)
    assert (again.status, again.cancel_at) == (Status.QUEUED, None)
    claimed(house)
    assert jobs.heartbeat(house.database, job_id, "w1") is Hold.MINE


@pytest.mark.parametrize("error", ["cannot", None])
def test_what_has_ended_cannot_be_cancelled(house: House, error: str | None) -> None:
    job_id = jobs.enqueue(house.database, "verify", {})
    jobs.finish(house.database, claimed(house).id, "w1", result=None if error else {}, error=error)
    with pytest.raises(Conflict, match="there is nothing to cancel"):
        jobs.cancel(house.database, job_id)
    with pytest.raises(NotFound, match="no job 99"):
        jobs.cancel(house.database, 99)


# listing and forgetting


def test_jobs_are_listed_newest_first_by_what_is_asked_for(house: House) -> None:
    def ids(**options: Any) -> list[int]:
        return [job.id for job in jobs.listed(house.database, **options)]

    waits = jobs.enqueue(house.database, "later", {"collection": "other"})
    done = jobs.enqueue(house.database, "verify", {"collection": "default"})
    jobs.finish(house.database, claimed(house).id, "w1", result={}, error=None)
    failed = jobs.enqueue(house.database, "verify", {})
    jobs.finish(house.database, claimed(house).id, "w1", result=None, error="x")
    cancelled = jobs.enqueue(house.database, "verify", {"collection": "default"})
    jobs.cancel(house.database, cancelled)
    runs = jobs.enqueue(house.database, "verify", {"collection": ["odd"]})
    claimed(house)
    stops = jobs.enqueue(house.database, "verify", {})
    claimed(house)
    jobs.cancel(house.database, stops)
    assert ids() == [stops, runs, cancelled, failed, done, waits]
    assert ids(limit=2) == [stops, runs]
    assert ids(kind="later") == [waits]
    assert ids(collection="default") == [cancelled, done]
    assert ids(collection="nowhere") == []
    by_status = {status: ids(status=status) for status in Status}
    assert by_status == {
        Status.QUEUED: [waits],
        Status.RUNNING: [runs],
        Status.CANCELLING: [stops],
        Status.DONE: [done],
        Status.FAILED: [failed],
        Status.CANCELLED: [cancelled],
    }
    assert jobs.get(house.database, runs).collection is None


def test_jobs_that_ended_long_ago_are_forgotten_but_for_the_newest_of_each(house: House, clock: Clock) -> None:
    def ended(kind: str, collection: str | None) -> int:
        job_id = jobs.enqueue(house.database, kind, {"collection": collection} if collection else {})
        jobs.claim(house.database, "w1", [kind])
        jobs.finish(house.database, job_id, "w1", result={}, error=None)
        return job_id

    old = [ended("retrain", "a"), ended("retrain", "a"), ended("retrain", "b"), ended("verify", None)]
    waits = jobs.enqueue(house.database, "retrain", {"collection": "c"})
    clock.forward(86400)
    young = [ended("retrain", "b"), ended("verify", None)]
    assert jobs.forget_finished(house.database, timedelta(days=2)) == 0
    assert jobs.forget_finished(house.database, timedelta(hours=1)) == 3
    left = sorted(job.id for job in jobs.listed(house.database))
    assert left == sorted([old[1], waits, *young])


# one clock


def test_on_postgresql_a_machine_whose_clock_is_wrong_steals_no_lease(
    house: House, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine != "postgresql":
        pytest.skip("all processes are on one machine")
    job_id = jobs.enqueue(house.database, "verify", {})
    claimed(house)
    real = t.now
    for hours in (1, -1):
        monkeypatch.setattr(t, "now", lambda hours=hours: real() + timedelta(hours=hours))
        assert jobs.claim(house.database, "w2", KINDS) is None
        assert jobs.heartbeat(house.database, job_id, "w1") is Hold.MINE
        assert not jobs.get(house.database, job_id).lapsed


def test_on_postgresql_workers_do_not_wait_for_each_other(house: House, engine: str) -> None:
    if engine != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    first, second = (jobs.enqueue(house.database, "verify", {}) for _ in range(2))
    with house.database.write() as connection:
        connection.execute(select(t.Job.id).where(t.Job.id == first).with_for_update())
        job = claimed(house)  # while another worker is just taking the first one
        assert job.id == second
