"""What a lap tells people and programs: its results enter as plain values, report.json and report.html leave.

Every part but the head may be missing, because a lap may end early. Queries, documents and chunks are named by id: no
text of theirs enters. Knows no database, no model and no index.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

from training.data import write_json
from training.gate import MEASURE
from training.measures import means
from training.page import render
from training.plots import Histogram
from training.significance import PerQuery, paired_bootstrap

SHOWN_CHANGES = 10  # winners, and as many losers


class NextStep(TypedDict):
    """What a person may do now."""

    words: str  # as in "To go back to what served before:"
    command: str  # ready to be pasted into a shell


class DataUsed(TypedDict, total=False):
    """The judgments that the lap stood on."""

    splits: Mapping[str, int]  # "train", "dev", "holdout" -> judged queries
    judgments: Mapping[str, Mapping[str, Any]]  # "training", "holdout" -> fields of JudgmentCounts
    hashes: Mapping[str, str]  # what -> its sha256


class Trained(TypedDict, total=False):
    """How the candidate's encoder was made."""

    recipe: Mapping[str, str | int | float]  # Recipe.as_json
    base: str  # fingerprint of the encoder that training began with
    teacher: str  # fingerprint of the encoder that mined
    encoder: str  # fingerprint of the new one
    examples: int
    steps: int
    device: str
    precision: str
    seconds: float
    peak_memory_bytes: int
    curve: Sequence[Sequence[float]]  # (step from 1, loss in nats)


class Way(TypedDict):
    """A way to answer with the candidate's index, and how good it was on the dev queries."""

    mode: str
    fusion: Mapping[str, Any]  # FusionSettings.as_json
    value: float  # mean of Choice.measure


class Choice(TypedDict):
    """How the candidate answers, chosen on the dev queries."""

    mode: str
    fusion: Mapping[str, Any]
    measure: str
    queries: int  # dev queries
    tried: Sequence[Way]


class Figures(TypedDict):
    """Base and candidate over one group of holdout queries."""

    path: str  # "deployed" = as users get it; "dense" = the encoder alone
    group: str  # "all", "fresh" or "trained", see training.gate
    queries: int
    base: Mapping[str, float]  # measure -> mean
    candidate: Mapping[str, float]
    base_interval: Sequence[float]  # low and high of mean nDCG@10
    candidate_interval: Sequence[float]


class Latency(TypedDict):
    """Median answer, one query at a time."""

    base_ms: float
    candidate_ms: float


class Change(TypedDict):
    """A query that the two answer differently."""

    query: str  # id
    base: float  # nDCG@10
    candidate: float


class Changes(TypedDict):
    """What the candidate does to single holdout queries, by nDCG@10."""

    winners: Sequence[Change]  # largest gain first, ties by id
    losers: Sequence[Change]  # largest loss first
    differences: Sequence[float]  # of every query, descending


class Step(TypedDict):
    """A step of the lap."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LapReport:
    """A lap, from judgments to decision. Parts that were not reached are None or empty."""

    run: str  # id
    collection: str
    started_at: datetime
    finished_at: datetime
    outcome: str  # a gate.Outcome, or "failed"
    promoted: bool = False  # the candidate serves now
    error: str | None = None  # why a failed lap failed
    decision: Mapping[str, Any] | None = None  # GateDecision.as_json
    next_steps: Sequence[NextStep] = ()  # how to undo, promote or go on
    data: DataUsed | None = None
    mining: Mapping[str, Any] | None = None  # MiningReport.as_json
    scores: Histogram | None = None  # the teacher's, of positives and of negatives: plots.bin_values
    training: Trained | None = None
    choice: Choice | None = None
    figures: Sequence[Figures] = ()
    latency: Latency | None = None
    changes: Changes | None = None
    steps: Sequence[Step] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON: lists for tuples, ISO 8601 for times, None for numbers that are not finite."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write `LapReport.as_json` to report.json and report.html, each whole or not at all."""
    page = render(report)
    write_json(folder / "report.json", report)
    partial = folder / ".report.html.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / "report.html")


def figures(base: PerQuery, candidate: PerQuery, trained: frozenset[str], *, path: str, seed: int) -> list[Figures]:
    """Means over all, fresh and trained queries, where there are any; both sides were asked the same queries."""
    groups = {"all": base.keys(), "fresh": base.keys() - trained, "trained": base.keys() & trained}
    return [_figures(base, candidate, sorted(keys), path, name, seed) for name, keys in groups.items() if keys]


def changes(base: Mapping[str, float], candidate: Mapping[str, float], names: Mapping[str, str]) -> Changes:
    """Who won and who lost most, by nDCG@10. `names`: query key -> the id to show, or else the key is shown."""
    rows = [Change(query=names.get(key, key), base=base[key], candidate=candidate[key]) for key in base]
    won = sorted((row for row in rows if _gain(row) > 0), key=lambda row: (-_gain(row), row["query"]))
    lost = sorted((row for row in rows if _gain(row) < 0), key=lambda row: (_gain(row), row["query"]))
    return Changes(
        winners=won[:SHOWN_CHANGES],
        losers=lost[:SHOWN_CHANGES],
        differences=sorted(map(_gain, rows), reverse=True),
    )


def _figures(base: PerQuery, candidate: PerQuery, keys: Sequence[str], path: str, group: str, seed: int) -> Figures:
    return Figures(
        path=path,
        group=group,
        queries=len(keys),
        base=means({key: base[key] for key in keys}),
        candidate=means({key: candidate[key] for key in keys}),
        base_interval=_interval(base, keys, seed),
        candidate_interval=_interval(candidate, keys, seed),
    )


def _interval(side: PerQuery, keys: Sequence[str], seed: int) -> list[float]:
    found = paired_bootstrap([side[key][MEASURE] for key in keys], seed=seed)
    return [found.low, found.high]


def _gain(row: Change) -> float:
    return row["candidate"] - row["base"]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
