"""A sample of the hostile files of tests/bench/hostile.py, two or three of each kind."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.rounds import KINDS, play
from tests.unit.ingest.documents import every


def test_hostile_files_end_in_a_state_with_a_reason_and_hurt_nothing(tmp_path: Path) -> None:
    size = 3 * len(KINDS)
    played = play(tmp_path / "home", tmp_path / "files", sorted(every().items()), number=0, size=size, seed=7)
    assert list(played.faults) == []
    assert [(outcome.name, *outcome.faults) for outcome in played.outcomes if outcome.faults] == []
    assert {outcome.kind for outcome in played.outcomes} == set(KINDS)
    assert {outcome.state for outcome in played.outcomes} == {"ready", "failed", "passed over"}
    assert len(played.outcomes) == size
    assert played.good == 5
