"""Whether something that failed is tried again, and when. Pure: an error and a count enter, a decision leaves.

Waiting grows from one failure to the next, up to a cap, and is spread by chance: many that failed together, because the
store was restarted, do not come back together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from nvr_rag.errors import NoCollection, NvrError


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """How long to wait after failures in a row."""

    first_seconds: float  # after the first one, before chance shortens it
    factor: float  # by which that grows with every further one
    cap_seconds: float  # and no further
    jitter: float = 0.5  # the share of a wait that chance may take away, in [0, 1]

    def seconds(self, failures: int, chance: random.Random) -> float:
        """The wait after so many failures, from 1."""
        exponent = min(failures - 1, 64)  # far beyond every cap, and no overflow
        longest = min(self.cap_seconds, self.first_seconds * self.factor**exponent)
        return longest * (1.0 - self.jitter * chance.random())


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how patiently something is tried."""

    attempts: int  # in all, the first one included; at least 1
    backoff: Backoff


# 5, 15, 45 and 135 s at most: a store may be restarted meanwhile
JOBS = RetryPolicy(attempts=5, backoff=Backoff(first_seconds=5.0, factor=3.0, cap_seconds=300.0))
ONCE = RetryPolicy(attempts=1, backoff=JOBS.backoff)  # where somebody waits for the answer
OUTAGE = Backoff(first_seconds=0.5, factor=2.0, cap_seconds=15.0)  # between two looks whether the database is back


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryDecision:
    """What becomes of a job that failed."""

    again: bool
    delay_seconds: float  # until it is due again; 0 where it is not tried again
    words: str  # what went wrong, and where it is not tried again for that reason, that it was given up
    inside: bool = True  # the words are for who manages the server


def decide(error: BaseException, attempts: int, policy: RetryPolicy, chance: random.Random) -> RetryDecision:
    """What to do after the `attempts`-th attempt (from 1) has ended with `error`.

    Only errors that say of themselves that a retry can help are worth one (NvrError.retry).
    """
    words, inside = in_words(error), not isinstance(error, NvrError) or error.inside
    if not (isinstance(error, NvrError) and error.retry):
        return RetryDecision(again=False, delay_seconds=0.0, words=words, inside=inside)
    if attempts >= policy.attempts:
        given_up = f"{words} (given up after {attempts} attempts)" if attempts > 1 else words
        return RetryDecision(again=False, delay_seconds=0.0, words=given_up, inside=inside)
    delay = policy.backoff.seconds(attempts, chance)
    return RetryDecision(again=True, delay_seconds=delay, words=words, inside=inside)


def in_words(error: BaseException) -> str:
    """An error as those who asked for the work read it."""
    if isinstance(error, NoCollection):
        return error.without_others  # they may be a tenant's, who knows of no others
    return str(error) if isinstance(error, NvrError) else f"unexpected {type(error).__name__}: {error}"
