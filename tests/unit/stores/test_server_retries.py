"""When a request to a server is sent again: the decision by itself, and carried out under a clock of our own."""

from __future__ import annotations

import pytest

from nvr_rag.errors import StoreError, StoreUnavailable
from nvr_rag.stores.server_errors import StoreSlowDown
from nvr_rag.stores.server_retries import Deadline, RetryDecision, decide, patiently

GONE = StoreUnavailable("gone")
NO = RetryDecision(again=False)


@pytest.mark.parametrize(
    ("attempts", "chance", "wait"),
    [(1, 0.0, 0.1), (1, 0.5, 0.075), (2, 0.0, 0.2), (2, 1.0, 0.1), (3, 0.0, 0.4)],
)
def test_waits_double_and_chance_takes_at_most_half(attempts: int, chance: float, wait: float) -> None:
    assert decide(GONE, attempts, 10.0, chance) == RetryDecision(again=True, delay_seconds=pytest.approx(wait))


def test_four_attempts_are_enough() -> None:
    assert decide(GONE, 4, 10.0, 0.0) == NO
    assert decide(GONE, 9, 10.0, 0.0) == NO


def test_there_is_no_wait_beyond_the_deadline() -> None:
    assert decide(GONE, 2, 0.2, 0.0) == NO
    assert decide(GONE, 2, 0.21, 0.0).again
    assert decide(GONE, 1, 0.0, 0.9) == NO


def test_a_server_is_left_alone_for_as_long_as_it_asks() -> None:
    busy = StoreSlowDown("too many", 3.0)
    assert decide(busy, 1, 10.0, 0.5) == RetryDecision(again=True, delay_seconds=3.0)
    assert decide(busy, 1, 3.0, 0.5) == NO
    assert decide(StoreSlowDown("too many", 0.0), 1, 10.0, 0.0).delay_seconds == pytest.approx(0.1)


class Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_attempts_are_told_what_is_left_of_the_deadline() -> None:
    clock, told = Clock(), []

    def work(left: float) -> str:
        told.append(left)
        clock.now += 1.0
        if len(told) < 3:
            raise StoreUnavailable("not yet")
        return "done"

    assert patiently(work, Deadline(5.0, clock), sleep=clock.sleep, chance=lambda: 0.0) == "done"
    assert clock.slept == pytest.approx([0.1, 0.2])
    assert told == pytest.approx([5.0, 3.9, 2.7])


def test_the_last_failure_is_raised_and_others_at_once() -> None:
    clock, calls = Clock(), []

    def failing(error: StoreError) -> None:
        def work(_left: float) -> None:
            calls.append(error)
            raise error

        with pytest.raises(type(error)):
            patiently(work, Deadline(5.0, clock), sleep=clock.sleep, chance=lambda: 0.0)

    failing(StoreUnavailable("gone"))
    assert len(calls) == 4
    failing(StoreError("refused"))
    assert len(calls) == 5


def test_a_deadline_never_has_less_than_nothing_left() -> None:
    clock = Clock()
    deadline = Deadline(1.0, clock)
    clock.now += 5.0
    assert deadline.left == 0.0
