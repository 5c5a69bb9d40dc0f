"""How fast a build goes: worked out by hand, over pauses and over the death of the process that builds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nvr_rag.upkeep import pace as module
from nvr_rag.upkeep.pace import pace, resumed

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The present moment, to be moved."""
    moment = [NOON]
    monkeypatch.setattr(module.t, "now", lambda: moment[0])
    return moment


def told(*, seconds: float, seq: int = 0, chunks: int = 0, ago: float = 0) -> dict[str, Any]:
    """What a row says of a build that was at it for so many seconds, until `ago` seconds before noon."""
    at = NOON - timedelta(seconds=ago)
    return {"since": (at - timedelta(seconds=seconds)).isoformat(), "seq": seq, "chunks": chunks, "at": at.isoformat()}


def test_a_rate_and_what_is_left_of_it(clock: list[datetime]) -> None:
    found = pace(told(seconds=10, seq=100, chunks=400), applied_seq=150, head_seq=400)
    assert found is not None
    assert (found.chunks_per_second, found.seconds_left) == (40.0, 50.0)  # 5 changes a second, 250 left
    assert found.as_json() == {"chunks_per_second": 40.0, "seconds_left": 50.0}


def test_nothing_is_known_at_first_and_no_end_before_a_change_is_done(clock: list[datetime]) -> None:
    assert pace(None, 0, 10) is None
    assert pace({}, 0, 10) is None
    assert pace(told(seconds=0), 0, 10) is None
    assert pace(told(seconds=5), 0, 10) is None
    first = pace(told(seconds=5, chunks=100), 0, 10)  # in the middle of a book
    assert first is not None
    assert (first.chunks_per_second, first.seconds_left) == (20.0, None)


def test_changes_without_chunks_count_as_well(clock: list[datetime]) -> None:
    found = pace(told(seconds=2), applied_seq=128, head_seq=256)
    assert found is not None
    assert (found.chunks_per_second, found.seconds_left) == (0.0, 2.0)


def test_a_build_that_nobody_does_has_no_pace(clock: list[datetime]) -> None:
    assert pace(told(seconds=10, chunks=400, ago=119), 5, 10) is not None
    assert pace(told(seconds=10, chunks=400, ago=121), 5, 10) is None


def test_a_pause_counts_and_the_time_in_which_nobody_was_at_it_does_not(clock: list[datetime]) -> None:
    progress = told(seconds=10, chunks=400)
    clock[0] = NOON + timedelta(seconds=10)  # another index had its turn
    paused = resumed(progress, 5).wrote(400)
    assert (paused.at - paused.since).total_seconds() == 20
    clock[0] = NOON + timedelta(hours=5)  # the process was killed, and somebody went on
    again = resumed(progress, 5)
    clock[0] += timedelta(seconds=10)
    found = pace(again.wrote(400).as_json(), applied_seq=10, head_seq=20)
    assert found is not None
    assert (found.chunks_per_second, found.seconds_left) == (40.0, 20.0)


def test_an_index_that_is_built_anew_begins_anew(clock: list[datetime]) -> None:
    assert resumed(told(seconds=10, seq=100, chunks=400), 0).chunks == 0
    assert resumed(told(seconds=10, seq=100, chunks=400), 100).chunks == 400
    assert resumed(None, 7).seq == 7
