"""What is said of a run while it lasts and when it is over."""

from __future__ import annotations

import time

import pytest

from ingest.report import Failure, IngestReport, Stand
from ingest.telling import Runs, _Pace


def test_the_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = _Pace()

    def words(seconds: float, done: int, total: int | None, encoded: int = 0) -> str:
        clock[0] = 100.0 + seconds
        return pace.words(Stand(seen=done, done=done, total=total, encoded=encoded))

    assert words(0, 50, None) == "Ingesting"
    assert words(1, 60, 1000) == "Ingesting"
    assert words(10, 150, None, 3000) == "Ingesting (10.0 documents a second, 3,000 chunks encoded)"
    assert words(20, 250, 1000) == "Ingesting (10.0 documents a second, 1 min 15 s left)"
    assert words(21, 0, 1000) == "Ingesting", "another run has begun"


def test_of_many_runs_a_failure_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*failed: str, added: int = 0) -> IngestReport:
        return IngestReport(added=added, failed=[Failure(uri=uri, reason="is empty") for uri in failed])

    runs = Runs(as_json=False)
    runs.tell(run("a", "b", added=3), True)
    runs.tell(run("a", "b"), True)
    runs.tell(run("a"), False)
    runs.tell(run("a", "c"), True)
    runs.tell(run("a", "b", "c"), True)
    said = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [rest for _, rest in said] == [
        "3 added, 2 failed",
        "a is empty",
        "b is empty",
        "2 failed",
        "c is empty",
        "3 failed",
        "b is empty",
    ]
