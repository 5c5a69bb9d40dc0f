"""Work side by side on the cores of a CPU: items enter, results leave in the order of the items.

Several threads at one matrix product wait for each other after every operation, and when one of them loses its core to
somebody else, all of them wait. Lanes wait for nobody: each takes an item of its own. Knows no model and no text.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MOST = 32  # lanes; with more cores, each has several of them
_WAITING = 1  # items of one caller that wait for a lane, for each lane: others must get their turn soon

T = TypeVar("T")
R = TypeVar("R")


class Lanes:
    """Threads of one process, made when they are first needed. Any number of callers may use them at once."""

    def __init__(self, threads: int, *, count: int | None = None, each: int | None = None) -> None:
        """For so many threads of torch in all, shared out, or `each` to a lane; `count` lanes, by default as many as
        are of use."""
        self._threads, self._each = threads, each
        self.count = count or min(threads, MOST)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def map(self, step: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The result of each item; the first error ends it, and nothing is begun after it."""
        pool = self._made()
        running: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(running) == self.count * (1 + _WAITING):
                    yield running.popleft().result()
                running.append(pool.submit(step, item))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def rest(self) -> None:
        """Let the threads end once they have done what they were given; they are made again when they are needed."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _made(self) -> ThreadPoolExecutor:
        """The threads, every one started, and its share of the threads of torch set.

        torch keeps that number for each thread, and takes the last one that was set anywhere for threads that begin
        later: so it is set again for those as soon as the lanes have theirs.
        """
        with self._lock:
            if self._pool is not None:
                return self._pool
            import torch

            pool = ThreadPoolExecutor(self.count, thread_name_prefix="encode")
            shares = [
                self._each or self._threads // self.count + (lane < self._threads % self.count)
                for lane in range(self.count)
            ]
            together = threading.Barrier(self.count)  # or a lane that is quick would take two shares

            def begin(share: int) -> None:
                torch.get_num_threads()  # or the first operation would take the number for threads that begin later
                torch.set_num_threads(share)
                together.wait()

            for future in [pool.submit(begin, share) for share in shares]:
                future.result()
            torch.set_num_threads(self._threads)
            self._pool = pool
            return pool
