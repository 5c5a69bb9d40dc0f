"""How fast an index is built, and how long that will still take: kept in its row, so that every process can tell.

A stretch of work is kept as JSON (search_index.progress); a pace leaves. It survives the process that works: the time
in which nobody did is taken out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from nvr_rag.db import tables as t

GAP = timedelta(seconds=120)  # a longer silence was no work: nobody was at it


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast it goes."""

    chunks_per_second: float
    seconds_left: float | None  # None as long as no change is finished

    def as_json(self) -> dict[str, float | None]:
        left = self.seconds_left
        return {
            "chunks_per_second": round(self.chunks_per_second, 2),
            "seconds_left": None if left is None else round(left, 1),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """What was done to an index since it last was level with the log."""

    since: datetime  # when that began; later by the time in which nobody was at work
    seq: int  # applied_seq then
    chunks: int  # written since
    at: datetime  # when that was last told
    seconds: Mapping[str, float] = field(default_factory=dict)  # spent since, by stage

    def as_json(self) -> dict[str, Any]:
        seconds = {stage: round(spent, 3) for stage, spent in self.seconds.items()}
        times = {"since": self.since.isoformat(), "at": self.at.isoformat()}
        return {**times, "seq": self.seq, "chunks": self.chunks, "seconds": seconds}

    def wrote(self, chunks: int, seconds: Mapping[str, float] | None = None) -> Stretch:
        """The same, so many chunks later, and so many seconds in each stage."""
        spent = {stage: self.seconds.get(stage, 0.0) + more for stage, more in (seconds or {}).items()}
        return replace(self, chunks=self.chunks + chunks, at=t.now(), seconds={**self.seconds, **spent})


def resumed(progress: Mapping[str, Any] | None, applied_seq: int) -> Stretch:
    """The stretch that work goes on with now: what the row says, or a new one."""
    now, before = t.now(), _read(progress)
    if before is None or before.seq > applied_seq:  # the latter: it is built anew
        return Stretch(since=now, seq=applied_seq, chunks=0, at=now)
    silence = now - before.at
    return replace(before, since=before.since + silence, at=now) if silence > GAP else before


def pace(progress: Mapping[str, Any] | None, applied_seq: int, head_seq: int) -> Pace | None:
    """How fast it goes now; None when it does not, or when nothing is known yet.

    The changes that are left are taken to have as many chunks each as those that are done.
    """
    stretch = _read(progress)
    if stretch is None or t.now() - stretch.at > GAP:
        return None
    seconds, changes = (stretch.at - stretch.since).total_seconds(), applied_seq - stretch.seq
    if seconds <= 0 or not (stretch.chunks or changes > 0):
        return None
    left = (head_seq - applied_seq) * seconds / changes if changes > 0 else None
    return Pace(chunks_per_second=stretch.chunks / seconds, seconds_left=left)


def _read(progress: Mapping[str, Any] | None) -> Stretch | None:
    if not progress:
        return None
    since, at = (datetime.fromisoformat(progress[name]) for name in ("since", "at"))
    seconds = progress.get("seconds", {})  # a release before did not count them
    return Stretch(since=since, seq=int(progress["seq"]), chunks=int(progress["chunks"]), at=at, seconds=seconds)
