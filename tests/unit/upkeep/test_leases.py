"""One maintainer for an index that several processes share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.errors import Maintained
from nvr_rag.upkeep.leases import LEASE_SECONDS, Lease
from tests.support import House


class Clock:
    """Seconds of a process, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def lease(house: House, holder: str, *, clock: Clock | None = None, request_seconds: float = 10.0) -> Lease:
    return Lease(
        house.database, house.index_id, holder, request_seconds=request_seconds, **({"now": clock} if clock else {})
    )


def holder(house: House) -> str | None:
    with house.database.read() as connection:
        found: str | None = connection.scalar(
            select(t.SearchIndex.maintainer).where(t.SearchIndex.id == house.index_id)
        )
        return found


def let_run_out(house: House) -> None:
    """As if the database's clock had gone on by more than a lease."""
    with house.database.write() as connection:
        past = clock.now(connection) - timedelta(seconds=1)
        connection.execute(update(t.SearchIndex).values(maintained_until=past))


def test_only_one_holds_it(house: House) -> None:
    first, second = lease(house, "first"), lease(house, "second")
    first.hold()
    with pytest.raises(Maintained):
        second.hold()
    first.hold()
    first.release()
    second.hold()
    assert holder(house) == "second"


def test_the_lease_of_a_dead_process_runs_out(house: House) -> None:
    lease(house, "dead").hold()
    let_run_out(house)
    lease(house, "next").hold()
    assert holder(house) == "next"


def test_a_process_that_slept_does_not_write_once_somebody_else_has_taken_over(house: House) -> None:
    time = Clock()
    asleep, awake = lease(house, "asleep", clock=time), lease(house, "awake")
    asleep.hold()
    let_run_out(house)
    awake.hold()
    time.seconds += LEASE_SECONDS
    with pytest.raises(Maintained):
        asleep.hold()
    asleep.release()
    assert holder(house) == "awake"  # letting go of what one has lost takes it from nobody


def test_nothing_is_written_in_its_last_seconds(house: House) -> None:
    """A request that begins at the last moment allowed has ended before anybody else can have the lease."""
    time = Clock()
    mine = lease(house, "mine", clock=time, request_seconds=8.0)
    mine.hold()
    let_run_out(house)
    lease(house, "other").hold()
    time.seconds += LEASE_SECONDS - 8.0 - 0.1
    mine.hold()  # a request may still take its 8 seconds
    time.seconds += 0.1
    with pytest.raises(Maintained):
        mine.hold()


def test_it_is_long_enough_for_slow_requests(house: House) -> None:
    time = Clock()
    slow = lease(house, "slow", clock=time, request_seconds=60.0)
    slow.hold()
    with house.database.read() as connection:
        until = connection.scalar(select(t.SearchIndex.maintained_until))
        assert timedelta(seconds=175) < until - clock.now(connection) <= timedelta(seconds=180)


def test_holding_it_costs_nothing_until_half_of_it_is_over(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock()
    mine = lease(house, "mine", clock=time)
    mine.hold()
    takes: list[bool] = []
    real = mine._take
    monkeypatch.setattr(mine, "_take", lambda: takes.append(real()) or takes[-1])  # type: ignore[func-returns-value]
    time.seconds += LEASE_SECONDS / 2 - 0.1
    mine.hold()
    assert takes == []
    time.seconds += 0.2
    mine.hold()
    assert takes == [True]


def test_of_many_who_ask_at_once_one_gets_it(house: House) -> None:
    def ask(number: int) -> bool:
        try:
            lease(house, f"process {number}").hold()
        except Maintained:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(16))) == 1
