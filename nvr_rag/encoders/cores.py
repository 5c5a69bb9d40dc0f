"""Which cores of a CPU a piece of work gets: all of them, or one beside others. Knows no model and no text.

Several cores at one query answer it sooner, but waste a third of their time on waiting for each other. And where two
threads of a process have several cores each, the OpenMP of torch takes the cores for overcommitted and lets each of
them sleep after every operation, which makes both slower than one core would be. So one thread of all that encode in
a process has all cores, and takes what comes when nothing else is at work; whatever comes beside it takes one core. A
reranker is not among them: where there is one, this is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from nvr_rag.encoders.lanes import MOST, Lanes

T = TypeVar("T")
R = TypeVar("R")


@cache
def cores(threads: int) -> Cores:
    """Those of this process, whichever model it runs; for so many threads of torch."""
    return Cores(threads)


class Cores:
    """For so many threads of torch. Any number of callers may use it at once."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._side_by_side = Lanes(threads)
        self._one_each = Lanes(threads, each=1)
        # With more threads than lanes, a lane has several of them, and nobody may have all.
        self._all = Lanes(threads, count=1, each=threads) if threads <= MOST else None
        self._lock, self._running = threading.Lock(), 0

    def many(self, step: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """The result of each item, in order, side by side."""
        with self._at_work():
            yield from self._side_by_side.map(step, items)

    def one(self, step: Callable[[T], R], item: T) -> R:
        """The result of one item."""
        if self._threads == 1:  # the caller's own is as good
            return step(item)
        with self._at_work() as alone:
            lanes = self._all if alone and self._all is not None else self._one_each
            (result,) = lanes.map(step, [item])
            return result

    def rest(self) -> None:
        """Let the thread that has all cores end, until it is needed again: for who is about to use them by himself."""
        with self._lock:
            if self._all is not None and not self._running:
                self._all.rest()

    @contextmanager
    def _at_work(self) -> Iterator[bool]:
        """Whether nobody else was when it began."""
        with self._lock:
            self._running += 1
            alone = self._running == 1
        try:
            yield alone
        finally:
            with self._lock:
                self._running -= 1
