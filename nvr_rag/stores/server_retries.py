"""Whether a request to a server is sent again after a failure, and when. The decision is a value, made without a clock;
`patiently` carries it out.

Only what may be repeated comes here: reads, and writes that leave the same points however often they are done. All
attempts and the waits between them share one deadline, so nobody waits longer than was agreed; a server that is down
is given up within a second.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nvr_rag.errors import StoreUnavailable
from nvr_rag.stores.server_errors import StoreSlowDown

ATTEMPTS = 4  # in all
FIRST_SECONDS = 0.1  # waited at most after the first failure
FACTOR = 2.0  # by which that grows
JITTER = 0.5  # the share of a wait that chance may take away: many that failed together do not come back together

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryDecision:
    """What follows a failed attempt."""

    again: bool
    delay_seconds: float = 0.0  # before the next attempt


def decide(error: StoreUnavailable, attempts: int, left_seconds: float, chance: float) -> RetryDecision:
    """After the `attempts`-th attempt (from 1) has failed, with so much time left; `chance` is in [0, 1).

    A server that names a time to be left alone gets it, or no other attempt when that is too long.
    """
    wait = FIRST_SECONDS * FACTOR ** (attempts - 1) * (1 - JITTER * chance)
    if isinstance(error, StoreSlowDown):
        wait = max(wait, error.seconds)
    if attempts >= ATTEMPTS or wait >= left_seconds:
        return RetryDecision(again=False)
    return RetryDecision(again=True, delay_seconds=wait)


class Deadline:
    """A moment by which an operation is over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds; never below 0."""
        return max(0.0, self._end - self._clock())


def patiently(
    work: Callable[[float], T],
    deadline: Deadline,
    *,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> T:
    """What `work(seconds left)` returns, after as many attempts as `decide` allows. Raises the last failure."""
    attempts = 0
    while True:
        attempts += 1
        try:
            return work(deadline.left)
        except StoreUnavailable as error:
            decision = decide(error, attempts, deadline.left, chance())
            if not decision.again:
                raise
        sleep(decision.delay_seconds)
