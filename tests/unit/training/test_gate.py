"""The gate, by hand. Equal differences make every interval a point and every p-value a power of two: with n queries
that all change by the same amount, only 2 of the 2**n sign patterns are as far from zero."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvr_rag.errors import InvalidInput
from training.gate import Evidence, GateDecision, GateSettings, Outcome, Verdict, decide, too_few
from training.significance import compare

SMALL = GateSettings(min_queries=5, min_fresh_queries=3, resamples=1000)


def evidence(changes: list[float], *, base: float = 0.5, fresh: int = 0, **facts: Any) -> Evidence:
    """A query for each change, of which the last `fresh` were not trained on; nothing else speaks against it."""
    keys = [f"q{i:03}" for i in range(len(changes))]
    plain: dict[str, Any] = {
        "base_latency_ms": 10.0,
        "candidate_latency_ms": 10.0,
        "base_judged": 0.5,
        "candidate_judged": 0.5,
        "candidate_lag": 0,
        "verified": True,
    }
    return Evidence(
        base=dict.fromkeys(keys, base),
        candidate={key: base + change for key, change in zip(keys, changes, strict=True)},
        trained=frozenset(keys[: len(keys) - fresh]),
        **{**plain, **facts},
    )


def failed(decision: GateDecision) -> list[str]:
    return [finding.rule for finding in decision.findings if finding.verdict == Verdict.FAIL]


def text(decision: GateDecision, rule: str) -> str:
    [found] = [finding.text for finding in decision.findings if finding.rule == rule]
    return found


def test_a_reliable_gain_is_accepted_and_every_rule_says_why() -> None:
    decision = decide(evidence([0.25] * 8, fresh=3), SMALL)
    assert decision.outcome == Outcome.ACCEPT
    assert decision.reasons == (
        "8 judged holdout queries are enough to decide by: 5 are needed",
        "nDCG@10 on 8 holdout queries rose from 0.500 to 0.750 "
        "(+0.250, 95 % interval +0.250 to +0.250, p = 0.0078)",  # 2 / 256
        "no sign of forgetting: nDCG@10 on 3 queries with an answer that was not trained on rose from 0.500 to 0.750 "
        "(+0.250, 95 % interval +0.250 to +0.250, p = 0.2500)",  # 2 / 8
        "fast enough: the median answer takes 10.0 ms, 1.00 times the 10.0 ms before; 1.5 times is the limit "
        "above 50 ms",
        "the candidate's index has every change that the serving one has",
        "the candidate's index was verified against the corpus log",
        "judged@10 is 0.500 for the candidate and 0.500 before: unjudged results do not tilt the comparison",
    )
    assert {finding.verdict for finding in decision.findings} == {Verdict.PASS}


def test_too_few_queries_decide_nothing_and_nothing_else_is_judged() -> None:
    decision = decide(evidence([-0.5] * 4, verified=False, candidate_latency_ms=99.0), SMALL)
    assert decision.outcome == Outcome.NOT_ENOUGH_EVIDENCE
    assert decision.reasons == (
        "4 judged holdout queries are too few to decide by: 5 are needed; collect feedback or import judgments",
    )
    assert decision.comparisons == {}
    assert decide(evidence([0.25] * 5), SMALL).outcome != Outcome.NOT_ENOUGH_EVIDENCE


def test_a_lap_can_ask_before_it_trains() -> None:
    early = too_few(199, GateSettings())
    assert early is not None
    assert early.outcome == Outcome.NOT_ENOUGH_EVIDENCE
    assert too_few(200, GateSettings()) is None
    assert decide(evidence([]), GateSettings()).outcome == Outcome.NOT_ENOUGH_EVIDENCE


def test_the_p_value_must_be_small_too() -> None:
    decision = decide(evidence([0.25] * 5), SMALL)  # p = 2 / 32, though the interval is a point above 0
    assert decision.outcome == Outcome.REJECT
    assert text(decision, "gain") == (
        "no reliable gain: nDCG@10 on 5 holdout queries rose from 0.500 to 0.750 "
        "(+0.250, 95 % interval +0.250 to +0.250, p = 0.0625); the interval must lie above +0.000 and p below 0.05"
    )
    assert decide(evidence([0.25] * 5), replace(SMALL, significance=0.07)).outcome == Outcome.ACCEPT


@pytest.mark.parametrize(("min_gain", "outcome"), [(0.24, Outcome.ACCEPT), (0.25, Outcome.REJECT)])
def test_the_whole_interval_must_lie_above_the_least_gain(min_gain: float, outcome: Outcome) -> None:
    decision = decide(evidence([0.25] * 8), replace(SMALL, min_gain=min_gain))
    assert decision.outcome == outcome
    assert failed(decision) == ([] if outcome == Outcome.ACCEPT else ["gain"])


def test_an_interval_around_zero_is_no_reliable_gain() -> None:
    decision = decide(evidence([0.5, -0.5, 0.5, -0.5, 0.25, -0.125]), SMALL)
    assert failed(decision) == ["gain"]
    assert text(decision, "gain").startswith("no reliable gain: nDCG@10 on 6 holdout queries rose from 0.500 to 0.521")
    assert decision.comparisons["all"].difference.low < 0 < decision.comparisons["all"].difference.high


def test_a_loss_that_may_be_chance_is_not_called_worse() -> None:
    decision = decide(evidence([0.5, -0.5, 0.5, -0.5, -0.25, 0.125]), SMALL)
    assert text(decision, "gain").startswith("no reliable gain: nDCG@10 on 6 holdout queries fell from 0.500 to 0.479")


def test_worse_is_said_so() -> None:
    decision = decide(evidence([-0.25] * 8), SMALL)
    assert decision.outcome == Outcome.REJECT
    assert text(decision, "gain") == (
        "worse: nDCG@10 on 8 holdout queries fell from 0.500 to 0.250 "
        "(-0.250, 95 % interval -0.250 to -0.250, p = 0.0078)"
    )


def test_no_change_is_no_gain() -> None:
    decision = decide(evidence([0.0] * 8), SMALL)
    assert failed(decision) == ["gain"]
    assert "stayed at 0.500 (+0.000, 95 % interval +0.000 to +0.000, p = 1.0000)" in text(decision, "gain")


def test_a_gain_too_small_to_print_does_not_read_as_zero() -> None:
    decision = decide(evidence([2**-12] * 8), SMALL)
    assert decision.outcome == Outcome.ACCEPT
    assert "(+2.4e-04, 95 % interval +2.4e-04 to +2.4e-04" in text(decision, "gain")


def test_forgetting_rejects_though_all_queries_together_gain() -> None:
    decision = decide(evidence([0.5] * 17 + [-0.25] * 3, fresh=3), SMALL)
    assert decision.outcome == Outcome.REJECT
    assert failed(decision) == ["fresh"]
    assert text(decision, "fresh") == (
        "forgetting: nDCG@10 on 3 queries with an answer that was not trained on fell from 0.500 to 0.250 "
        "(-0.250, 95 % interval -0.250 to -0.250, p = 0.2500)"
    )


def test_fresh_queries_that_only_may_have_lost_are_no_forgetting() -> None:
    decision = decide(evidence([0.5] * 17 + [-0.25, -0.25, 0.25], fresh=3), SMALL)
    assert decision.outcome == Outcome.ACCEPT
    assert text(decision, "fresh").startswith("no sign of forgetting")
    assert decision.comparisons["fresh"].difference.high == 0.25  # drawn three times


@pytest.mark.parametrize("fresh", [0, 2])
def test_with_few_fresh_queries_learning_is_not_told_from_memory(fresh: int) -> None:
    decision = decide(evidence([0.5] * 20 + [-0.25] * fresh, fresh=fresh), SMALL)
    assert decision.outcome == Outcome.ACCEPT
    [finding] = [finding for finding in decision.findings if finding.rule == "fresh"]
    assert finding.verdict == Verdict.NOTE
    assert finding.text == (
        f"learning could not be told from memory of the corpus: {fresh} holdout queries have an answer that was not "
        "trained on, 3 are needed"
    )


def test_the_groups_are_compared_apart() -> None:
    decision = decide(evidence([0.25] * 5 + [0.0, 0.125, -0.125], fresh=3), SMALL)
    assert {name: found.n for name, found in decision.comparisons.items()} == {"all": 8, "fresh": 3, "trained": 5}
    fresh = decision.comparisons["fresh"]
    assert (fresh.base, fresh.other, fresh.wins, fresh.losses, fresh.ties) == (0.5, 0.5, 1, 1, 1)
    assert decision.comparisons["all"].difference.mean == pytest.approx(1.25 / 8)
    assert decide(evidence([0.25] * 8), SMALL).comparisons.keys() == {"all", "trained"}


def test_comparisons_are_those_of_significance() -> None:
    given = evidence([0.25, -0.125, 0.5, 0.0, 0.375] * 5)
    sides = ({key: {"nDCG@10": value} for key, value in side.items()} for side in (given.base, given.candidate))
    expected = compare(*sides, "nDCG@10", seed=7)
    found = decide(given, GateSettings(min_queries=5, seed=7)).comparisons["all"]
    assert found == expected


@pytest.mark.parametrize(("candidate_ms", "outcome"), [(150.0, Outcome.ACCEPT), (151.0, Outcome.REJECT)])
def test_latency_has_a_limit(candidate_ms: float, outcome: Outcome) -> None:
    decision = decide(evidence([0.25] * 8, base_latency_ms=100.0, candidate_latency_ms=candidate_ms), SMALL)
    assert decision.outcome == outcome
    if outcome == Outcome.REJECT:
        assert text(decision, "latency") == (
            "too slow: the median answer takes 151.0 ms, 1.51 times the 100.0 ms before; 1.5 times is the limit "
            "above 50 ms"
        )


@pytest.mark.parametrize(("candidate_ms", "outcome"), [(50.0, Outcome.ACCEPT), (50.5, Outcome.REJECT)])
def test_an_answer_that_is_fast_by_itself_is_fast_enough(candidate_ms: float, outcome: Outcome) -> None:
    """Lexical search answers in 2 ms; whatever reads the query with an encoder would be too slow beside it."""
    given = evidence([0.25] * 8, base_latency_ms=2.0, candidate_latency_ms=candidate_ms)
    assert decide(given, SMALL).outcome == outcome


@pytest.mark.parametrize(("lag", "outcome"), [(-2, Outcome.ACCEPT), (0, Outcome.ACCEPT), (1, Outcome.REJECT)])
def test_an_index_that_lags_is_not_promoted(lag: int, outcome: Outcome) -> None:
    decision = decide(evidence([0.25] * 8, candidate_lag=lag), SMALL)
    assert decision.outcome == outcome
    assert failed(decision) == (["lag"] if lag > 0 else [])


def test_an_index_that_is_not_verified_is_not_promoted() -> None:
    decision = decide(evidence([0.25] * 8, verified=False), SMALL)
    assert failed(decision) == ["verified"]
    assert decision.outcome == Outcome.REJECT


@pytest.mark.parametrize(("judged", "verdict"), [(0.45, Verdict.PASS), (0.44, Verdict.NOTE), (0.9, Verdict.PASS)])
def test_fewer_judged_hits_are_noted_and_decide_nothing(judged: float, verdict: Verdict) -> None:
    decision = decide(evidence([0.25] * 8, candidate_judged=judged), SMALL)
    assert decision.findings[-1].verdict == verdict
    assert f"judged@10 is {judged:.3f} for the candidate and 0.500 before" in decision.reasons[-1]
    assert decision.outcome == Outcome.ACCEPT


def test_all_failures_are_listed() -> None:
    given = evidence([-0.25] * 8, fresh=3, candidate_latency_ms=99.0, candidate_lag=4, verified=False)
    decision = decide(given, SMALL)
    assert decision.outcome == Outcome.REJECT
    assert failed(decision) == ["gain", "fresh", "latency", "lag", "verified"]
    assert "4 changes behind" in text(decision, "lag")
    assert len(decision.findings) == 7  # what passed is said too


def test_confidence_and_resamples_are_those_of_the_settings() -> None:
    given = evidence([0.5, -0.25] * 10)
    wide, narrow = (decide(given, replace(SMALL, confidence=one)) for one in (0.99, 0.5))
    assert wide.comparisons["all"].difference.low < narrow.comparisons["all"].difference.low
    assert "99 % interval" in text(wide, "gain")
    sure = decide(evidence([0.25] * 20), replace(SMALL, resamples=100))
    assert sure.comparisons["all"].p == 1 / 101


@pytest.mark.parametrize(
    "facts",
    [
        {"base_latency_ms": math.nan},
        {"base_latency_ms": 0.0},
        {"candidate_latency_ms": math.inf},
        {"base_judged": math.nan},
        {"candidate_judged": 1.1},
        {"base": 1.5},
        {"base": math.nan},
    ],
)
def test_evidence_that_is_no_evidence_is_refused(facts: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="measure it again"):
        evidence([0.0] * 8, **facts)


def test_one_value_that_is_not_a_number_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="candidate of 'q001' is nan"):
        evidence([0.0, math.nan, 0.0])


def test_both_sides_must_have_been_asked_the_same() -> None:
    given = evidence([0.25] * 3)
    with pytest.raises(InvalidInput, match="'q002'"):
        replace(given, candidate={"q000": 0.5, "q001": 0.5}, trained=frozenset())
    with pytest.raises(InvalidInput, match="'q9'"):
        replace(given, trained=frozenset({"q9", "q000"}))


@pytest.mark.parametrize(
    "values",
    [
        {"min_queries": 0},
        {"min_fresh_queries": 0},
        {"min_gain": -0.1},
        {"min_gain": 1.0},
        {"min_gain": math.nan},
        {"significance": 0.0},
        {"significance": math.nan},
        {"confidence": 1.0},
        {"max_latency_ratio": 0.0},
        {"max_latency_ratio": math.nan},
        {"fast_enough_ms": -1.0},
        {"fast_enough_ms": math.inf},
        {"resamples": 99},
        {"seed": -1},
    ],
)
def test_settings_that_decide_nothing_are_refused(values: dict[str, Any]) -> None:
    [name] = values
    with pytest.raises(InvalidInput, match=name) as caught:
        GateSettings(**values)
    assert caught.value.field == name


def test_a_decision_is_json() -> None:
    content = json.loads(json.dumps(decide(evidence([0.25] * 8), SMALL).as_json(), allow_nan=False))
    assert content["outcome"] == "accept"
    assert content["findings"][0] == {
        "rule": "queries",
        "verdict": "pass",
        "text": "8 judged holdout queries are enough to decide by: 5 are needed",
    }
    assert content["comparisons"]["all"]["difference"] == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert content["comparisons"]["all"]["p"] == 2 / 256


# Hundredths, and gains of half a hundredth more: no difference is or becomes zero, so that the same signs are drawn.
HUNDREDTHS = st.integers(-40, 40).filter(bool).map(lambda number: number / 100)


@given(changes=st.lists(HUNDREDTHS, min_size=5, max_size=24), gain=st.integers(0, 9), fresh=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_gain_for_everybody_never_turns_acceptance_into_rejection(
    changes: list[float], gain: int, fresh: int
) -> None:
    before = decide(evidence(changes, fresh=fresh), SMALL)
    after = decide(evidence([change + gain / 100 + 0.005 for change in changes], fresh=fresh), SMALL)
    assert before.outcome == Outcome.REJECT or after.outcome == Outcome.ACCEPT
    assert after.comparisons["all"].p <= before.comparisons["all"].p or before.comparisons["all"].difference.mean < 0


@given(changes=st.lists(HUNDREDTHS, min_size=5, max_size=24), fresh=st.integers(0, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_queries_changes_nothing(changes: list[float], fresh: int, data: st.DataObject) -> None:
    given = evidence(changes, fresh=fresh)
    one, other = (data.draw(st.permutations(sorted(given.base))) for _ in range(2))
    shuffled = replace(
        given, base={key: given.base[key] for key in one}, candidate={key: given.candidate[key] for key in other}
    )
    assert decide(shuffled, SMALL) == decide(given, SMALL)
