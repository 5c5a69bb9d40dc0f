"""The report adds up, and says it in JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.unit.training.mining.corpora import corpus, judged
from training.mining.miner import mine
from training.mining.records import MiningSettings
from training.mining.report import MiningReport

# Scores with the query 1 (k1, k2, k3) and 0.5 (k4)
TABLE = corpus(
    {
        "a0": ("da", 0, "answer", 0.75),
        "a1": ("da", 1, "next", 0.25),
        "b": ("db", 0, "answer", 0.75),
        "c": ("dc", 0, "close", 0.6875),
        "d": ("dd", 0, "hard", 0.5),
        "e": ("de", 0, "hard", 0.5),
        "f": ("df", 0, "far", -0.25),
    }
)


@pytest.fixture
def report() -> MiningReport:
    queries = [
        judged("k1", {"a0": 1}),
        judged("k2", {"a0": 1, "c": 0}),
        judged("k3", {"gone": 1}),
        judged("k4", {"d": 1}),
    ]
    settings = MiningSettings(rule="margin-pos", margin=0.125, depth=7, negatives=2, neighbours=1)
    return mine(queries, np.array([[1], [1], [1], [0.5]], np.float32), TABLE, settings).report


def test_counts_by_hand(report: MiningReport) -> None:
    assert (report.queries, report.queries_without_positive, report.pairs) == (4, 1, 3)
    # k1: a0 known, b copy, a1 neighbour, c rule, d kept, e copy of d, f kept
    # k2: c judged and kept, a0 known, b copy, a1 neighbour, d kept, e copy of d, f kept
    # k4 (0.25 - 0.125 = 0.125): d known, e copy, a0 b c rule, a1 (0.125) rule, f kept
    assert report.removed == {
        "known_positive": 3,
        "copy_of_positive": 3,
        "neighbour": 2,
        "rule": 5,
        "copy_of_negative": 2,
    }
    assert (report.examined, report.kept) == (21, 6)
    assert report.examined == sum(report.removed.values()) + report.kept
    # k1: d, f; k2: c, d (f is one too many); k4: f
    assert report.emitted == {"judged": 1, "mined": 4}
    assert report.short == {1: 1}


def test_quantiles_by_hand(report: MiningReport) -> None:
    # positives .25 .75 .75; linear between neighbours: p05 at place 0.1, p25 at 0.5
    assert report.positive_scores == pytest.approx(
        {"min": 0.25, "p05": 0.30, "p25": 0.5, "p50": 0.75, "p75": 0.75, "p95": 0.75, "max": 0.75}
    )
    # negatives -.25 -.125 .5 .5 .6875; p05 at place 0.2, p95 at 3.8
    assert report.negative_scores == pytest.approx(
        {"min": -0.25, "p05": -0.225, "p25": -0.125, "p50": 0.5, "p75": 0.5, "p95": 0.65, "max": 0.6875}
    )
    # differences .0625 .25 .25 .375 1.0
    assert report.differences == pytest.approx(
        {"min": 0.0625, "p05": 0.1, "p25": 0.25, "p50": 0.25, "p75": 0.375, "p95": 0.875, "max": 1.0}
    )


def test_examples_are_the_first_of_each_kind_one_a_query(report: MiningReport) -> None:
    shown = {
        kind: [(one.query, one.positive, one.positive_score, one.candidate, one.score) for one in examples]
        for kind, examples in report.examples.items()
    }
    assert shown == {
        "known_positive": [("k1", "a0", 0.75, "a0", 0.75), ("k2", "a0", 0.75, "a0", 0.75)],
        "copy_of_positive": [("k1", "a0", 0.75, "b", 0.75), ("k2", "a0", 0.75, "b", 0.75)],
        "neighbour": [("k1", "a0", 0.75, "a1", 0.25), ("k2", "a0", 0.75, "a1", 0.25)],
        "rule": [("k1", "a0", 0.75, "c", 0.6875), ("k4", "d", 0.25, "a0", 0.375)],
        "copy_of_negative": [("k1", "a0", 0.75, "e", 0.5), ("k2", "a0", 0.75, "e", 0.5)],
        "judged": [("k2", "a0", 0.75, "c", 0.6875)],
        "mined": [("k1", "a0", 0.75, "d", 0.5), ("k2", "a0", 0.75, "d", 0.5)],
    }


def test_json(report: MiningReport) -> None:
    content: dict[str, Any] = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert content["settings"] == {
        "rule": "margin-pos",
        "margin": 0.125,
        "ratio": 0.95,
        "depth": 7,
        "negatives": 2,
        "neighbours": 1,
    }
    assert content["removed"]["rule"] == 5
    assert content["short"] == {"1": 1}
    assert content["examples"]["judged"] == [
        {"query": "k2", "positive": "a0", "positive_score": 0.75, "candidate": "c", "score": 0.6875}
    ]


def test_json_of_nothing() -> None:
    empty = mine([], np.empty((0, 1), np.float32), TABLE, MiningSettings()).report
    content = json.loads(json.dumps(empty.as_json(), allow_nan=False))
    assert content["positive_scores"] == content["differences"] == content["short"] == {}
    assert set(content["removed"].values()) == {0}
    assert content["examined"] == content["kept"] == 0
