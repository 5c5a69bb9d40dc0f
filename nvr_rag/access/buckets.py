"""How often a key may ask: token buckets (a key's bucket fills steadily and holds a burst), counted in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nvr_rag.access.callers import Caller
from nvr_rag.errors import TooManyRequests

_MOST = 10_000  # buckets kept; beyond it those that nobody used for long are forgotten
BURST_SECONDS = 10.0  # a bucket holds what a key may ask in this time, and at least one request


class Buckets:
    """Counts the requests of every key. Safe to share between threads."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute`: of keys that say nothing themselves, and of requests without a key; None = no limit."""
        self._per_minute, self._clock = per_minute, clock
        self._left: dict[str, tuple[float, float]] = {}  # by key: tokens, and when there were so many
        self._lock = threading.Lock()

    def take(self, caller: Caller) -> None:
        """Count one request. Raises TooManyRequests: when to come again."""
        per_minute = caller.per_minute or self._per_minute
        if per_minute is None:
            return
        rate = per_minute / 60
        full = max(1.0, rate * BURST_SECONDS)
        with self._lock:
            now = self._clock()
            tokens, then = self._left.get(caller.key_id or "", (full, now))
            tokens = min(full, tokens + (now - then) * rate)
            self._left[caller.key_id or ""] = (tokens - 1 if tokens >= 1 else tokens, now)
            if len(self._left) > _MOST:
                self._forget(now)
        if tokens < 1:
            wait = (1 - tokens) / rate
            raise TooManyRequests(
                f"this key may ask {per_minute} times a minute; ask again in {wait:.1f} s", after_seconds=wait
            )

    def _forget(self, now: float) -> None:
        """Drop the buckets that were not used for the longest time."""
        oldest = sorted(self._left, key=lambda key: self._left[key][1])[: _MOST // 2]
        for key in oldest:
            del self._left[key]
