"""A lap's results put together as its report. What finished steps came to enters, a LapReport as JSON leaves."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from training.gate import MEASURE, Outcome
from training.lap import Lap
from training.report import LapReport, NextStep

DRY_RUN = "dry_run"  # an outcome beside those of the gate: nothing was trained
FAILED = "failed"


def lap_report(lap: Lap, *, dry_run: bool = False, error: str | None = None) -> dict[str, Any]:
    """The report of a lap that has come to an end, or to an error."""
    decision = next((one["decision"] for one in reversed(list(lap.results.values())) if "decision" in one), None)
    promoted = bool(lap.results.get("conclude", {}).get("promoted"))
    outcome = FAILED if error else DRY_RUN if dry_run else decision["outcome"] if decision else FAILED
    mining = _mining(lap)
    report = LapReport(
        run=lap.config.run,
        collection=lap.config.collection,
        started_at=datetime.fromisoformat(lap.config.started_at),
        finished_at=datetime.now(UTC),
        outcome=outcome,
        promoted=promoted,
        error=error,
        decision=decision,
        next_steps=_next_steps(lap, outcome, promoted=promoted),
        data=_data(lap),
        mining=mining.get("report"),
        scores=mining.get("scores"),
        training=_training(lap),
        choice=_choice(lap),
        figures=lap.results.get("judge", {}).get("figures", ()),
        latency=lap.results.get("judge", {}).get("latency"),
        changes=lap.results.get("judge", {}).get("changes"),
        steps=[{"name": name, "seconds": result["seconds"]} for name, result in lap.results.items()],
    )
    return report.as_json()


def _next_steps(lap: Lap, outcome: str, *, promoted: bool) -> list[NextStep]:
    collection = lap.config.collection
    if outcome == FAILED:
        again = f"nvr-rag retrain --resume --collection {collection}"
        return [NextStep(words="To go on once the cause is mended:", command=again)]
    if outcome == DRY_RUN:
        ready = not any("decision" in one for one in lap.results.values())
        return [NextStep(words="To do it:", command=f"nvr-rag retrain --collection {collection}")] if ready else []
    if outcome != Outcome.ACCEPT:
        return []
    if promoted:
        undo = f"nvr-rag deploy rollback --collection {collection}"
        return [NextStep(words="To go back to what served before:", command=undo)]
    candidate = lap.results["build"]["deployment"]
    promote = f"nvr-rag deploy promote {candidate} --collection {collection}"
    return [NextStep(words="To let the candidate serve:", command=promote)]


def _data(lap: Lap) -> Any:
    collected, judged = lap.results.get("collect"), lap.results.get("judge")
    if collected is None:
        return None
    return {
        "splits": collected["splits"],
        "judgments": {"training": collected["judgments"], **({"holdout": judged["judgments"]} if judged else {})},
        "hashes": {**collected["hashes"], **({"holdout": judged["hash"]} if judged else {})},
    }


def _mining(lap: Lap) -> dict[str, Any]:
    if "mine" not in lap.results:
        return {}
    content: dict[str, Any] = json.loads(lap.folder.mining.read_text(encoding="utf-8"))
    return content


def _training(lap: Lap) -> Any:
    trained = lap.results.get("train")
    if trained is None:
        return None
    shown = ("encoder", "examples", "steps", "device", "precision", "peak_memory_bytes", "curve")
    config = lap.config
    return {
        "recipe": config.recipe.as_json(),
        "base": config.base,
        "teacher": config.teacher,
        "seconds": trained["training_seconds"],
        **{name: trained[name] for name in shown},
    }


def _choice(lap: Lap) -> Any:
    choice = lap.results.get("choose")
    if choice is None:
        return None
    return {**{name: choice[name] for name in ("mode", "fusion", "queries", "tried")}, "measure": MEASURE}
