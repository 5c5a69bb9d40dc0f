"""The report of a lap out of the results of its steps: wherever it has ended, and whatever may be done then."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from nvr_rag.fusion import FusionSettings
from nvr_rag.types import Mode
from nvr_rag.workspace import Workspace
from tests.unit.training.test_runs import CONFIG
from training.gate import Evidence, GateSettings, Outcome, decide
from training.judgments import JudgmentCounts, OriginCount
from training.lap import Lap, early
from training.reporting import lap_report
from training.runs import run_folder
from training.splits import Split
from training.weighing import Way

COUNTS = asdict(
    JudgmentCounts(
        origins={split: {"feedback": OriginCount(queries=2, judgments=3)} for split in Split},
        contested=1,
        lifted=0,
        gone=4,
        forbidden=0,
        without_positive=5,
    )
)
COLLECTED: Mapping[str, Any] = {
    "splits": {"train": 60, "dev": 7, "holdout": 200},
    "judgments": COUNTS,
    "hashes": {"judgments": "j" * 64},
    "chunks": 1000,
    "seconds": 1.0,
}
TRAINED: Mapping[str, Any] = {
    "encoder": "n" * 64,
    "examples": 60,
    "steps": 6,
    "device": "cpu",
    "precision": "float32",
    "training_seconds": 20.0,
    "peak_memory_bytes": 10**9,
    "curve": [[1, 3.0], [6, 0.5]],
    "seconds": 31.0,
}
WAY = Way(mode=Mode.HYBRID, fusion=FusionSettings(), value=0.75)
CHOSEN: Mapping[str, Any] = {
    "mode": WAY.mode,
    "fusion": WAY.fusion.as_json(),
    "queries": 40,
    "tried": [WAY.as_json()],
    "seconds": 2.0,
}


def judged(outcome: Outcome) -> dict[str, Any]:
    """What the gate's own records make of a clear case."""
    base, better = {f"q{i}": 0.5 for i in range(20)}, {f"q{i}": 0.9 for i in range(20)}
    evidence = Evidence(
        base=base,
        candidate=better if outcome is Outcome.ACCEPT else base,
        trained=frozenset(),
        base_latency_ms=2.0,
        candidate_latency_ms=2.0,
        base_judged=0.5,
        candidate_judged=0.5,
        candidate_lag=0,
        verified=True,
    )
    decision = decide(evidence, GateSettings(min_queries=1))
    assert decision.outcome is outcome
    return {"judgments": COUNTS, "hash": "h" * 64, "queries": 20, "decision": decision.as_json(), "seconds": 3.0}


def a_lap(folder: Path, **results: Mapping[str, Any]) -> Lap:
    """A lap whose steps have come to this."""
    lap = Lap(
        workspace=cast(Workspace, None),  # a report needs none
        folder=run_folder(folder, "lap"),
        config=CONFIG,
        promote=False,
        stop=threading.Event(),
        results={name: dict(result) for name, result in results.items()},
    )
    lap.folder.make()
    lap.folder.mining.write_text(json.dumps({"report": {"pairs": 60}, "scores": {"bins": []}}))
    return lap


def whole(outcome: Outcome) -> dict[str, Mapping[str, Any]]:
    return {
        "collect": COLLECTED,
        "mine": {"pairs": 60, "seconds": 1.5},
        "train": TRAINED,
        "build": {"deployment": 7, "seconds": 0.5},
        "choose": CHOSEN,
        "judge": judged(outcome),
    }


def command(report: Mapping[str, Any]) -> str:
    [step] = report["next_steps"]
    return str(step["command"])


@pytest.mark.parametrize(
    ("outcome", "promoted", "commands"),
    [
        (Outcome.ACCEPT, True, ["nvr-rag deploy rollback --collection Größe"]),
        (Outcome.ACCEPT, False, ["nvr-rag deploy promote 7 --collection Größe"]),
        (Outcome.REJECT, False, []),
    ],
)
def test_what_can_be_done_after_a_decision(
    tmp_path: Path, outcome: Outcome, promoted: bool, commands: list[str]
) -> None:
    report = lap_report(a_lap(tmp_path, **whole(outcome), conclude={"promoted": promoted, "seconds": 1.0}))
    assert (report["outcome"], report["promoted"]) == (outcome, promoted)
    assert [step["command"] for step in report["next_steps"]] == commands


def test_every_part_comes_from_its_step(tmp_path: Path) -> None:
    report = lap_report(a_lap(tmp_path, **whole(Outcome.REJECT)))
    assert [(one["name"], one["seconds"]) for one in report["steps"]] == [
        ("collect", 1.0),
        ("mine", 1.5),
        ("train", 31.0),
        ("build", 0.5),
        ("choose", 2.0),
        ("judge", 3.0),
    ]
    assert report["training"]["seconds"] == 20.0  # of its steps; loading the model is not among them
    assert (report["training"]["recipe"]["rule"], report["training"]["base"]) == ("naive", CONFIG.base)
    assert report["data"]["hashes"] == {"judgments": "j" * 64, "holdout": "h" * 64}
    assert set(report["data"]["judgments"]) == {"training", "holdout"}
    assert report["mining"] == {"pairs": 60}
    assert (report["choice"]["mode"], report["choice"]["measure"]) == ("hybrid", "nDCG@10")
    assert report["started_at"] == CONFIG.started_at


def test_it_is_the_same_for_results_that_were_read_again(tmp_path: Path) -> None:
    """Enumerations, tuples and records of the other modules are in results at first; in JSON there are none."""
    lap = a_lap(tmp_path, **whole(Outcome.REJECT))
    first = lap_report(lap)
    for name, result in lap.results.items():
        lap.folder.finish(name, result)
    again = lap_report(a_lap(tmp_path, **{name: lap.folder.finished(name) or {} for name in lap.results}))
    for report in (first, again):
        del report["finished_at"]
    assert json.dumps(first, sort_keys=True) == json.dumps(again, sort_keys=True)


def test_a_lap_that_failed_before_anything_was_done(tmp_path: Path) -> None:
    report = lap_report(a_lap(tmp_path), error="the index is in use")
    assert (report["outcome"], report["error"], report["promoted"]) == ("failed", "the index is in use", False)
    assert command(report) == "nvr-rag retrain --resume --collection Größe"
    parts = ("decision", "data", "mining", "training", "choice", "latency", "changes")
    assert [report[name] for name in parts] == [None] * len(parts)


def test_a_lap_that_failed_after_the_decision_has_failed(tmp_path: Path) -> None:
    report = lap_report(a_lap(tmp_path, **whole(Outcome.ACCEPT)), error="the server has not loaded it")
    assert (report["outcome"], report["decision"]["outcome"]) == ("failed", "accept")
    assert command(report) == "nvr-rag retrain --resume --collection Größe"


def test_a_lap_that_a_step_has_ended_early(tmp_path: Path) -> None:
    decision = early("training", "3 judged queries are too few")
    report = lap_report(a_lap(tmp_path, collect={**COLLECTED, "decision": decision}))
    assert (report["outcome"], report["next_steps"]) == ("not_enough_evidence", [])
    assert [one["text"] for one in report["decision"]["findings"]] == ["3 judged queries are too few"]
    assert report["data"]["hashes"] == {"judgments": "j" * 64}


def test_a_dry_run_says_how_to_do_it_unless_that_would_come_to_nothing(tmp_path: Path) -> None:
    mined = {"pairs": 60, "seconds": 1.0}
    report = lap_report(a_lap(tmp_path, collect=COLLECTED, mine=mined), dry_run=True)
    assert (report["outcome"], command(report)) == ("dry_run", "nvr-rag retrain --collection Größe")
    decision = early("training", "3 judged queries are too few")
    too_little = a_lap(tmp_path, collect={**COLLECTED, "decision": decision}, mine=mined)
    report = lap_report(too_little, dry_run=True)
    assert (report["outcome"], report["next_steps"]) == ("dry_run", [])
    assert report["decision"]["findings"][0]["text"] == "3 judged queries are too few"
