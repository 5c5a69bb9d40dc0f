"""Groups on their way through an encoder: groups enter, and what is to be done with each is done in their order.

Two are encoded at a time, so that one begins while the other ends: at its beginning a group is only being tokenised,
and towards its end it has no work for all cores. Knows no log and no rounds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from nvr_rag.indexes import LiveIndex
from nvr_rag.stores.base import Vector
from nvr_rag.upkeep.aside import Aside
from nvr_rag.upkeep.writing import Group, Work, make_vectors

AT_ONCE = 2
_HELD = 3  # groups that are not done; a small one may be encoded before the one ahead of it is


@dataclass(frozen=True, slots=True)
class _Coming:
    """The vectors of a group that is on its way."""

    hashes: Set[str]  # of their inputs
    vectors: Mapping[str, Vector]  # those that are there already


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is to be done when all before it is done; of a group, once it is encoded as well."""

    act: Callable[[], object]
    group: Group | None = None
    took: Future[tuple[float, float]] | None = None  # when its encoding began and ended
    before: Sequence[_Coming] = ()  # groups that may have vectors for it


class Encoding:
    """Use it in a `with`: on leaving, also by an error, nothing is being encoded any more. For one thread."""

    def __init__(self, index: LiveIndex, work: Work, aside: Aside) -> None:
        """What is to be done with groups is done by `aside`."""
        self._index, self._work, self._aside = index, work, aside
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="group")
        self._entries: deque[_Entry] = deque()
        self._before: deque[_Coming] = deque(maxlen=_HELD)
        self._counted = 0.0  # up to when the time of encoding is

    def make_room(self) -> None:
        """Wait until another group may be begun."""
        self._forward()
        while len(running := self._running()) >= AT_ONCE or self._held() >= _HELD:
            wait(running, return_when=FIRST_COMPLETED)
            self._forward()

    def begin(self, group: Group, then: Callable[[], object]) -> None:
        """Encode a group, for which there is room, and do something with it afterwards.

        What a group shortly before it has as well is not encoded again: that one may not have been stored yet when
        this one was looked up.
        """
        missing = group.missing().keys()
        coming = {key for key in missing for other in self._before if key in other.hashes}
        took = self._pool.submit(self._encode, group, coming)
        self._entries.append(_Entry(then, group, took, tuple(self._before)))
        self._before.append(_Coming({item.input_hash for item in group.new}, group.vectors))

    def then(self, act: Callable[[], object]) -> None:
        """Do something once everything that was begun before is done."""
        self._entries.append(_Entry(act))
        self._forward()

    def wait(self, seconds: float) -> bool:
        """Wait so long for a group to be encoded; False when everything is done."""
        wait(self._running(), timeout=seconds, return_when=FIRST_COMPLETED)
        self._forward()
        return bool(self._entries)

    def _running(self) -> list[Future[tuple[float, float]]]:
        return [entry.took for entry in self._entries if entry.took is not None and not entry.took.done()]

    def _held(self) -> int:
        return sum(entry.group is not None for entry in self._entries)

    def _encode(self, group: Group, coming: Set[str]) -> tuple[float, float]:
        begun = time.perf_counter()
        make_vectors(self._index, group, but=coming)
        return begun, time.perf_counter()

    def _forward(self) -> None:
        """Hand on what is done, in order."""
        while self._entries and ((took := self._entries[0].took) is None or took.done()):
            entry = self._entries.popleft()
            if entry.group is not None and took is not None:
                self._count(*took.result())
                for key in entry.group.missing():
                    vectors = (other.vectors for other in entry.before)
                    entry.group.vectors[key] = next(found[key] for found in vectors if key in found)
            self._aside.do(entry.act)

    def _count(self, begun: float, ended: float) -> None:
        """Count the time in which no other group was encoded."""
        self._work.spend("encode", max(0.0, ended - max(begun, self._counted)))
        self._counted = max(ended, self._counted)

    def __enter__(self) -> Encoding:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
