"""Whether a request is sent again, and when: what came of it enters, seconds to wait leave. It knows no socket.

what came of it                   sent again
nobody answers at the address     always: nothing has arrived
429                               always: nothing was done
502, 503, 504, a lost connection  what does the same when it is done twice
no answer in time, all else       never

The waits grow and are drawn by chance from zero on (full jitter): clients that were refused together do not come back
together. A server that asks for more patience than there is here is not asked again: the caller decides.
"""

from __future__ import annotations

import random

import httpx

from nvr_rag.client.problems import PASSING, retry_after
from nvr_rag.retries import Backoff

BACKOFF = Backoff(first_seconds=0.2, factor=2.0, cap_seconds=5.0, jitter=1.0)
MAX_RETRY_AFTER_SECONDS = 10.0

Outcome = httpx.Response | httpx.HTTPError | httpx.InvalidURL


class Attempts:
    """The attempts at one request."""

    def __init__(self, *, repeatable: bool, retries: int, chance: random.Random) -> None:
        """`repeatable`: doing it twice is doing it once."""
        self._repeatable, self._retries, self._chance = repeatable, retries, chance
        self._failures = 0
        self.unsure = False  # an attempt that seemed to fail may have been carried out

    def wait(self, outcome: Outcome) -> float | None:
        """Seconds to wait before the next attempt; None when this was the last one."""
        least = self._least(outcome)
        if least is None or least > MAX_RETRY_AFTER_SECONDS or self._failures >= self._retries:
            return None
        self._failures += 1
        self.unsure = self.unsure or not _untouched(outcome)
        return least + BACKOFF.seconds(self._failures, self._chance)

    def _least(self, outcome: Outcome) -> float | None:
        """How long to wait at least; None = it is not sent again."""
        if not _untouched(outcome) and not self._repeatable:
            return None
        if isinstance(outcome, httpx.Response):
            return (retry_after(outcome) or 0.0) if outcome.status_code in PASSING else None
        passing = (httpx.NetworkError, httpx.RemoteProtocolError)
        return 0.0 if isinstance(outcome, passing) else None


def _untouched(outcome: Outcome) -> bool:
    """Whether it is sure that nothing was done."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code == 429
    return isinstance(outcome, httpx.ConnectError)
