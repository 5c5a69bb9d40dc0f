"""The report of a lap: what programs read, and the page that people read. Its parts are made by the real records of
the other modules, so that a field renamed there is a failure here."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nvr_rag.fusion import FusionSettings
from training import gate, page, plots, report
from training.judgments import JudgmentCounts, OriginCount
from training.mining.records import MiningSettings
from training.mining.report import KINDS, QUANTILES, REMOVALS, MiningReport, Shown
from training.recipe import load_recipe
from training.report import Changes, LapReport, write_report
from training.splits import Split

HOSTILE = "</script><b>"
HTML_HOSTILE = "&lt;/script&gt;&lt;b&gt;"
START = datetime(2025, 11, 21, 2, 0, tzinfo=UTC)
VOID = {"meta", "br", "hr", "link", "img"}


class Reader(HTMLParser):
    """Follows the tags of a page and remembers what a test wants to know."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.words.append(" ".join(data.split()))


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def headings(html: str) -> list[str]:
    return re.findall(r"<h[12]>(.*?)</h[12]>", html)


def head(**changes: Any) -> LapReport:
    """A lap that ended before it began."""
    lap = LapReport(
        run="run-7",
        collection="handbook",
        started_at=START,
        finished_at=START + timedelta(seconds=200),
        outcome="failed",
    )
    return replace(lap, **changes)


def decision() -> gate.GateDecision:
    keys = [f"q{i}" for i in range(8)]
    evidence = gate.Evidence(
        base=dict.fromkeys(keys, 0.5),
        candidate=dict.fromkeys(keys, 0.75),
        trained=frozenset(keys),
        base_latency_ms=100.0,
        candidate_latency_ms=200.0,
        base_judged=0.5,
        candidate_judged=0.5,
        candidate_lag=0,
        verified=True,
    )
    return gate.decide(evidence, gate.GateSettings(min_queries=5))


def mining(name: str = "key-of-a-query") -> MiningReport:
    shown = Shown(query=name, positive="chunk-p", positive_score=0.875, candidate="chunk-c", score=0.8125)
    quantiles = dict.fromkeys(QUANTILES, 0.25)
    return MiningReport(
        settings=MiningSettings(),
        queries=10,
        queries_without_positive=1,
        pairs=12,
        examined=1200,
        removed={reason: 100 + i for i, reason in enumerate(REMOVALS)},
        kept=690,
        emitted={"judged": 3, "mined": 40},
        short={0: 1, 2: 4},
        positive_scores=quantiles,
        negative_scores=quantiles,
        differences=quantiles,
        examples=dict.fromkeys((*REMOVALS, *KINDS), (shown,)),
    )


def counts(*splits: Split, origin: str = "import:helpdesk") -> JudgmentCounts:
    found = {"feedback": OriginCount(queries=640, judgments=1733), origin: OriginCount(queries=607, judgments=1402)}
    origins = {split: found if split in splits else {} for split in Split}
    return JudgmentCounts(origins=origins, contested=31, lifted=4, gone=17, forbidden=0, without_positive=9)


def whole(name: str = "query-1") -> LapReport:
    """A lap that went all the way; `name` is wherever strangers may choose one."""
    sides = [{f"q{i}": {"nDCG@10": value, "MRR@10": value} for i in range(4)} for value in (0.25, 0.5)]
    fusion = FusionSettings(method="weighted", lexical_weight=0.5).as_json()
    return head(
        run=name,
        collection=name,
        outcome="accept",
        promoted=True,
        decision=decision().as_json(),
        next_steps=[{"words": "To go back:", "command": f"nvr-rag deploy rollback --collection '{name}'"}],
        data={
            "splits": {"train": 1124, "dev": 123, "holdout": 312},
            "judgments": {
                "training": asdict(counts(Split.TRAIN, Split.DEV, origin=f"import:{name}")),
                "holdout": asdict(counts(Split.HOLDOUT)),
            },
            "hashes": {name: "5e884898"},
        },
        mining=mining(name).as_json(),
        scores=plots.bin_values({"positives": [0.5, 0.75], "negatives": [0.25]}),
        training={
            "recipe": {**load_recipe("quick").as_json(), "name": name},
            "base": "f-base",
            "teacher": "f-teacher",
            "encoder": "f-new",
            "examples": 1890,
            "steps": 2,
            "device": "cpu",
            "precision": "float32",
            "seconds": 421.0,
            "peak_memory_bytes": 2_300_000_000,
            "curve": [(1, 1.5), (2, 0.5)],
        },
        choice={
            "mode": "hybrid",
            "fusion": fusion,
            "measure": "nDCG@10",
            "queries": 123,
            "tried": [
                {"mode": "hybrid", "fusion": fusion, "value": 0.779},
                {"mode": "dense", "fusion": FusionSettings().as_json(), "value": 0.741},
            ],
        },
        figures=[
            *report.figures(*sides, frozenset({"q0"}), path="deployed", seed=0),
            *report.figures(*sides, frozenset({"q0"}), path="dense", seed=0),
        ],
        latency={"base_ms": 11.25, "candidate_ms": 12.5},
        changes=report.changes({name: 0.5, "b": 0.5}, {name: 1.0, "b": 0.25}, {}),
        steps=[{"name": "mine", "seconds": 61.0}, {"name": name, "seconds": 4000.0}],
    )


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    content = whole().as_json()
    write_report(tmp_path, content)
    assert json.loads((tmp_path / "report.json").read_text()) == content
    assert (tmp_path / "report.html").read_text() == page.render(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_report_can_be_drawn_again_from_its_json(tmp_path: Path) -> None:
    write_report(tmp_path, whole().as_json())
    again = json.loads((tmp_path / "report.json").read_text())
    assert page.render(again) == page.render(whole().as_json())


def test_a_report_that_cannot_be_drawn_leaves_what_was_there(tmp_path: Path) -> None:
    write_report(tmp_path, head().as_json())
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(KeyError):
        write_report(tmp_path, {"outcome": "accept"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_values_are_plain_and_finite() -> None:
    content = whole().as_json()
    assert content["started_at"] == "2025-11-21T02:00:00+00:00"
    assert content["training"]["curve"] == [[1, 1.5], [2, 0.5]]
    assert head(training={"curve": [(1, math.nan), (2, math.inf)]}).as_json()["training"]["curve"] == [
        [1, None],
        [2, None],
    ]
    assert content.keys() == {field.name for field in fields(LapReport)}


def test_the_page_is_balanced_and_calls_nobody() -> None:
    html = page.render(whole().as_json())
    found = read(html)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "form", "base", "a"}
    assert not [name for name, _ in found.attributes if name in ("src", "href") or name.startswith("on")]
    [policy] = [value for name, value in found.attributes if name == "content" and "src" in value]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert "url(" not in html
    assert "@import" not in html


def test_strangers_names_are_only_text() -> None:
    tame, hostile = (read(page.render(whole(name).as_json())) for name in ("query-1", HOSTILE))
    assert hostile.tags == tame.tags
    assert "b" in tame.tags  # which is why the count below is what tells
    html = page.render(whole(HOSTILE).as_json())
    assert HOSTILE not in html
    assert html.count("<b>") == page.render(whole().as_json()).count("<b>")
    # In title, head, command, origin, hash, examples, recipe, changes and steps.
    assert html.count(HTML_HOSTILE) == page.render(whole("query-1").as_json()).count("query-1") >= 9


def test_control_characters_do_not_reach_the_page() -> None:
    html = page.render(whole("\x1b[31mred\u202egnp.exe\ud800").as_json())
    assert not re.search("[\x1b\u202e\ud800]", html)
    assert "redgnp.exe" in html


def test_only_what_is_named_is_shown() -> None:
    secret = "how do I hide a body"
    content = whole().as_json()
    content["query"] = content["data"]["text"] = content["mining"]["text"] = secret
    content["training"]["examples_text"] = content["changes"]["texts"] = secret
    for rows in (content["changes"]["winners"], content["mining"]["examples"]["rule"]):
        rows[0]["text"] = secret
    assert secret not in page.render(content)


def test_the_decision_comes_first_then_how_to_undo_it() -> None:
    html = page.render(whole().as_json())
    assert headings(html) == [
        "Accepted: the candidate is better, and serves now",
        "How to undo it",
        "Before and candidate",
        "Winners and losers",
        "How it answers",
        "Data",
        "Mining of hard negatives",
        "Training",
        "Steps",
    ]
    words = read(html).words
    assert "nvr-rag deploy rollback --collection 'query-1'" in words
    slow = "too slow: the median answer takes 200.0 ms, 2.00 times the 100.0 ms before; 1.5 times is the limit "
    slow += "above 50 ms"
    assert slow in words
    assert [word for word in words if word in ("passed", "failed", "note")] == [
        *("passed", "passed", "note", "failed", "passed", "passed", "passed")
    ]


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"outcome": "accept"}, "Accepted: the candidate is better, and waits to be promoted"),
        ({"outcome": "reject"}, "Rejected: what served before goes on serving"),
        ({"outcome": "not_enough_evidence"}, "Not enough evidence: nothing was changed"),
        ({"outcome": "dry_run"}, "Dry run: nothing was trained, nothing was changed"),
        ({"outcome": "failed", "error": "no room"}, "Failed: nothing was changed"),
        ({"outcome": "cancelled"}, "cancelled"),
    ],
)
def test_a_lap_that_ended_early_leaves_out_what_it_did_not_reach(changes: dict[str, Any], headline: str) -> None:
    html = page.render(head(**changes).as_json())
    found = read(html)
    assert headings(html) == [headline]
    assert not found.tags & {"table", "svg", "dl", "section"}
    assert ("no room" in found.words) == ("error" in changes)
    assert "2025-11-21 02:00 UTC, took 3 min 20 s" in " ".join(found.words)


def test_every_outcome_of_the_gate_has_a_headline() -> None:
    assert {outcome.value for outcome in gate.Outcome} <= page.HEADLINES.keys()
    assert {verdict.value for verdict in gate.Verdict} == page.VERDICTS.keys()


@pytest.mark.parametrize("part", [field.name for field in fields(LapReport)][5:])
def test_each_part_may_be_missing(part: str) -> None:
    missing: Any = {field.name: field.default for field in fields(LapReport)}[part]
    read(page.render(replace(whole(), **{part: missing}).as_json()))


def test_parts_that_are_half_there_are_shown_as_far_as_they_go() -> None:
    html = page.render(head(data={"splits": {"train": 3}}, training={"seconds": 5.0}).as_json())
    assert headings(html)[1:] == ["Data", "Training"]
    assert {"train", "3", "5.0 s"} <= set(read(html).words)
    assert "<svg" not in html


def test_numbers_reach_the_reader() -> None:
    words = read(page.render(whole().as_json())).words
    for number in ("1,124", "1,733", "0.779", "2.3 GB", "7 min 1 s", "1 h 6 min", "0.875", "0.812", "104", "43"):
        assert number in words
    assert "hybrid search, weighted scores, dense 1 to lexical 0.5 (chosen)" in words
    assert "perc-pos, ratio 0.95" in words
    assert [word for word in words if word.startswith("for ")] == ["for train", "for dev", "for holdout"]
    assert "The median answer took 11.2 ms before and takes 12.5 ms with the candidate." in words
    assert {"all queries (4)", "fresh queries (3)", "trained queries (1)", "+0.250"} <= set(words)


def test_every_reason_of_the_other_modules_has_words() -> None:
    assert {*REMOVALS, *KINDS} == page.REMOVALS.keys()
    assert page.LEFT_OUT.keys() == {field.name for field in fields(JudgmentCounts)} - {"origins"}
    assert page.SCORES.keys() <= {field.name for field in fields(MiningReport)}
    assert page.QUANTILES.keys() <= QUANTILES.keys()


def test_figures_are_means_of_each_group() -> None:
    base = {"a": {"nDCG@10": 0.0, "R@10": 1.0}, "b": {"nDCG@10": 1.0, "R@10": 0.0}, "c": {"nDCG@10": 0.5, "R@10": 0.5}}
    candidate = {key: {"nDCG@10": 1.0, "R@10": 1.0} for key in base}
    all_, fresh, trained = report.figures(base, candidate, frozenset("ab"), path="dense", seed=0)
    assert [(one["group"], one["queries"]) for one in (all_, fresh, trained)] == [
        ("all", 3),
        ("fresh", 1),
        ("trained", 2),
    ]
    assert all_["base"] == {"nDCG@10": 0.5, "R@10": 0.5}
    assert fresh["base_interval"] == [0.5, 0.5]
    assert trained["base_interval"] == [0.0, 1.0]  # in a quarter of all draws it is the same one twice
    assert all_["candidate_interval"] == [1.0, 1.0]
    assert [one["group"] for one in report.figures(base, candidate, frozenset("abc"), path="dense", seed=0)] == [
        "all",
        "trained",
    ]


def test_winners_and_losers_are_those_who_moved_most() -> None:
    base = dict.fromkeys("abcdef", 0.5)
    candidate = {"a": 0.75, "b": 1.0, "c": 0.5, "d": 0.25, "e": 1.0, "f": 0.0}
    assert report.changes(base, candidate, {"b": "query-b"}) == Changes(
        winners=[
            {"query": "e", "base": 0.5, "candidate": 1.0},
            {"query": "query-b", "base": 0.5, "candidate": 1.0},
            {"query": "a", "base": 0.5, "candidate": 0.75},
        ],
        losers=[{"query": "f", "base": 0.5, "candidate": 0.0}, {"query": "d", "base": 0.5, "candidate": 0.25}],
        differences=[0.5, 0.5, 0.25, 0.0, -0.25, -0.5],
    )


def test_ten_winners_and_ten_losers_at_most() -> None:
    base = {f"q{i:02}": 0.5 for i in range(30)}
    found = report.changes(base, {key: 1.0 if i % 2 else 0.0 for i, key in enumerate(base)}, {})
    assert [row["query"] for row in found["winners"]] == [f"q{i:02}" for i in range(1, 20, 2)]
    assert [row["query"] for row in found["losers"]] == [f"q{i:02}" for i in range(0, 20, 2)]
    assert len(found["differences"]) == 30
