"""Work side by side on the cores of a CPU: items enter, results leave in the order of the items.

Several threads at one matrix product wait for each other after every operation, and when one of them loses its core to
somebody else, all of them wait. Lanes wait for nobody: each takes an item of its own. Of several callers, the one who
has least left goes first: who wants little has it soon, and two long lists follow each other without a gap, instead of
both ending late; only every few items the one who came first does, or a long list would wait for ever while short ones
keep coming. Knows no model and no text.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

MOST = 32  # lanes; with more cores, each has several of them

_FIRST_COME = 4  # one item of so many is of the caller who came first

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What one caller wants done."""

    step: Callable[[Any], Any]
    waiting: deque[tuple[Any, Future[Any]]]  # items that no lane has taken yet, and where their results go


class Lanes:
    """Threads of one process, made when they are first needed. Any number of callers may use them at once."""

    def __init__(self, threads: int, *, count: int | None = None, each: int | None = None) -> None:
        """For so many threads of torch in all, shared out, or `each` to a lane; `count` lanes, by default as many as
        are of use."""
        self._threads, self._each = threads, each
        self.count = count or min(threads, MOST)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._calls: list[_Call] = []  # in the order in which they came
        self._taken = 0  # items

    def map(self, step: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """The result of each item; the first error ends it, and nothing is begun after it."""
        if not items:
            return
        pool = self._made()
        results: deque[Future[R]] = deque(Future() for _ in items)
        call = _Call(step, deque(zip(items, results, strict=True)))
        try:
            with self._lock:  # all or none of it: whoever is handed an item of another call has given it his thread
                for _ in items:
                    pool.submit(self._next)
                self._calls.append(call)
            while results:
                yield results.popleft().result()
        finally:
            self._drop(call)

    def _next(self) -> None:
        """Do one item of some call."""
        with self._lock:
            if not self._calls:  # who asked for it has gone
                return
            self._taken += 1
            first_come = self._taken % _FIRST_COME == 0
            call = self._calls[0] if first_come else min(self._calls, key=lambda call: len(call.waiting))
            item, result = call.waiting.popleft()
            if not call.waiting:
                self._calls.remove(call)
        try:
            result.set_result(call.step(item))
        except BaseException as error:
            self._drop(call)
            result.set_exception(error)

    def _drop(self, call: _Call) -> None:
        with self._lock:
            self._calls = [other for other in self._calls if other is not call]

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
