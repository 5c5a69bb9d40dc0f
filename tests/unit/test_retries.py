"""Whether a job is tried again, and when: numbers worked out by hand, chance given."""

from __future__ import annotations

import random

import pytest

from nvr_rag import retries
from nvr_rag.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidInput,
    NvrError,
    StoreBusy,
    StoreUnavailable,
)
from nvr_rag.retries import Backoff, RetryDecision, RetryPolicy, decide


class Chance(random.Random):
    """Always the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        return self._value


BACKOFF = Backoff(first_seconds=2.0, factor=3.0, cap_seconds=30.0, jitter=0.5)
POLICY = RetryPolicy(attempts=4, backoff=BACKOFF)


@pytest.mark.parametrize(
    ("failures", "chance", "seconds"),
    [
        (1, 0.0, 2.0),
        (2, 0.0, 6.0),
        (3, 0.0, 18.0),
        (4, 0.0, 30.0),  # 54 without the cap
        (5, 0.0, 30.0),
        (1, 0.5, 1.5),  # a quarter less
        (2, 0.5, 4.5),
        (1, 1.0, 1.0),  # half of it is the least
        (4, 1.0, 15.0),
        (10_000, 0.0, 30.0),
    ],
)
def test_waits_grow_to_the_cap_and_chance_shortens_them(failures: int, chance: float, seconds: float) -> None:
    assert BACKOFF.seconds(failures, Chance(chance)) == pytest.approx(seconds)


def test_many_that_fail_together_do_not_come_back_together() -> None:
    chance = random.Random(7)
    waits = [BACKOFF.seconds(1, chance) for _ in range(1000)]
    assert all(1.0 < wait <= 2.0 for wait in waits)
    tenths = [sum(1.0 + tenth / 10 <= wait < 1.1 + tenth / 10 for wait in waits) for tenth in range(10)]
    assert min(tenths) > 60  # of 100 expected in each


def test_the_same_source_of_chance_gives_the_same_waits() -> None:
    first, second = ([BACKOFF.seconds(2, random.Random(3)) for _ in range(3)] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("error", [StoreUnavailable("slow"), StoreBusy("owned"), DatabaseUnavailable("gone")])
def test_errors_that_say_so_are_tried_again(error: NvrError) -> None:
    assert decide(error, 2, POLICY, Chance(0.0)) == RetryDecision(again=True, delay_seconds=6.0, words=str(error))


@pytest.mark.parametrize(
    ("error", "words", "inside"),
    [
        (InvalidInput("the rule is one of ..."), "the rule is one of ...", False),
        (ConfigurationError("the disk is full"), "the disk is full", True),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError: division by zero", True),
        (OSError(28, "No space left on device"), "unexpected OSError: [Errno 28] No space left on device", True),
    ],
)
def test_other_errors_are_not(error: Exception, words: str, inside: bool) -> None:
    expected = RetryDecision(again=False, delay_seconds=0.0, words=words, inside=inside)
    assert decide(error, 1, POLICY, Chance(0.0)) == expected


def test_the_last_attempt_is_the_last() -> None:
    decisions = [decide(StoreUnavailable("slow"), attempt, POLICY, Chance(0.0)) for attempt in (1, 2, 3, 4, 5)]
    assert [one.again for one in decisions] == [True, True, True, False, False]
    assert [one.delay_seconds for one in decisions] == [2.0, 6.0, 18.0, 0.0, 0.0]
    assert decisions[3].words == "slow (given up after 4 attempts)"


def test_once_is_once() -> None:
    decision = decide(StoreUnavailable("slow"), 1, retries.ONCE, Chance(0.0))
    assert decision == RetryDecision(again=False, delay_seconds=0.0, words="slow")


def test_a_job_waits_for_a_store_that_is_restarted() -> None:
    waits = [decide(StoreUnavailable("slow"), attempt, retries.JOBS, Chance(0.0)) for attempt in range(1, 6)]
    assert [wait.delay_seconds for wait in waits] == [5.0, 15.0, 45.0, 135.0, 0.0]
