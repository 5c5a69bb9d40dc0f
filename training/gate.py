"""May a candidate deployment replace the one that serves? What was measured of both enters, a decision in words leaves.

Pure: nothing is promoted, read or written here. Knows per-query nDCG@10 on the holdout and a few plain facts about the
two deployments, but no query's text, no index and no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from nvr_rag.errors import InvalidInput
from training.significance import Comparison, paired_bootstrap, randomisation_test

MEASURE = "nDCG@10"
JUDGED_SHARE = 0.9  # of what served before: a candidate with less judged@10 is compared pessimistically
_ROUNDING = 1e-9  # that a mean may exceed 1 by


class Outcome(StrEnum):
    """What becomes of the candidate."""

    ACCEPT = "accept"  # it may be promoted
    REJECT = "reject"  # at least one rule is broken
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"  # nothing was judged: collect more judgments


class Verdict(StrEnum):
    """What a finding says."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOTE = "note"  # decides nothing, but a reader should know


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSettings:
    """What a candidate has to show."""

    min_queries: int = 200  # judged holdout queries; with fewer nothing is decided
    min_gain: float = 0.0  # mean nDCG@10, [0, 1); the whole interval of the gain must lie above it
    significance: float = 0.05  # (0, 1); p of the randomisation test must be below it
    min_fresh_queries: int = 30  # needed to tell learning from memory of the corpus
    max_latency_ratio: float = 1.5  # median answer of the candidate to the median before
    fast_enough_ms: float = 50.0  # a median answer up to this is never too slow; >= 0
    confidence: float = 0.95  # (0, 1), of the intervals
    resamples: int = 10_000  # of the bootstrap and of the randomisation test
    seed: int = 0  # of both

    def __post_init__(self) -> None:
        for name in ("significance", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidInput(f"{name} is between 0 and 1, not {getattr(self, name)}", field=name)
        for name, least in (("min_queries", 1), ("min_fresh_queries", 1), ("resamples", 100), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is at least {least}, not {getattr(self, name)}", field=name)
        if not 0 <= self.min_gain < 1:
            raise InvalidInput(f"min_gain is at least 0 and below 1, not {self.min_gain}", field="min_gain")
        if not 0 < self.max_latency_ratio < math.inf:
            raise InvalidInput(f"max_latency_ratio is above 0, not {self.max_latency_ratio}", field="max_latency_ratio")
        if not 0 <= self.fast_enough_ms < math.inf:
            raise InvalidInput(f"fast_enough_ms is at least 0, not {self.fast_enough_ms}", field="fast_enough_ms")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What was measured of the deployment that serves, the base, and of the candidate, by the path that users get."""

    base: Mapping[str, float]  # key of a holdout query -> nDCG@10, [0, 1]
    candidate: Mapping[str, float]  # the same queries
    trained: frozenset[str]  # those whose positives were all positives in training; the others are fresh
    base_latency_ms: float  # median answer, above 0
    candidate_latency_ms: float
    base_judged: float  # mean judged@10, [0, 1]
    candidate_judged: float
    candidate_lag: int  # changes that the candidate's index is behind the serving one; 0 or less: none
    verified: bool  # whether the candidate's index was compared with the corpus log and found right

    def __post_init__(self) -> None:
        if self.base.keys() != self.candidate.keys():
            one = min(self.base.keys() ^ self.candidate.keys())
            raise InvalidInput(f"only one of the two was asked query {one!r}; evaluate both on the same queries")
        if unknown := self.trained - self.base.keys():
            raise InvalidInput(f"query {min(unknown)!r} is named as trained but was not measured", field="trained")
        for name in ("base", "candidate"):
            _check_shares(name, getattr(self, name))
        _check_shares("judged@10", {"base": self.base_judged, "candidate": self.candidate_judged})
        for latency in (self.base_latency_ms, self.candidate_latency_ms):
            if not 0 < latency < math.inf:
                raise InvalidInput(f"a latency is a number above 0, not {latency}; measure it again")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one rule says of the candidate."""

    rule: str  # "queries", "gain", "fresh", "latency", "lag", "verified" or "judged"
    verdict: Verdict
    text: str  # the reason in words, with its numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class GateDecision:
    """Whether the candidate may serve, and why."""

    outcome: Outcome
    findings: tuple[Finding, ...]  # of every rule that was judged, in a fixed order
    comparisons: Mapping[str, Comparison]  # "all", "fresh", "trained": those that have queries

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(finding.text for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(evidence: Evidence, settings: GateSettings) -> GateDecision:
    """Judge a candidate by every rule. One broken rule rejects it, and all broken rules are named."""
    early = too_few(len(evidence.base), settings)
    if early is not None:
        return early
    comparisons = _comparisons(evidence, settings)
    findings = (
        _queries(len(evidence.base), settings),
        _gain(comparisons["all"], settings),
        _fresh(comparisons, settings),
        _latency(evidence, settings),
        *_index(evidence),
        _judged(evidence),
    )
    broken = any(finding.verdict == Verdict.FAIL for finding in findings)
    return GateDecision(
        outcome=Outcome.REJECT if broken else Outcome.ACCEPT, findings=findings, comparisons=comparisons
    )


def too_few(queries: int, settings: GateSettings) -> GateDecision | None:
    """The decision when there are too few judged holdout queries to judge anything by, else None: known before a
    candidate is made."""
    finding = _queries(queries, settings)
    if finding.verdict == Verdict.PASS:
        return None
    return GateDecision(outcome=Outcome.NOT_ENOUGH_EVIDENCE, findings=(finding,), comparisons={})


def _queries(count: int, settings: GateSettings) -> Finding:
    if count < settings.min_queries:
        return Finding(
            rule="queries",
            verdict=Verdict.FAIL,
            text=f"{count} judged holdout queries are too few to decide by: {settings.min_queries} are needed; "
            "collect feedback or import judgments",
        )
    text = f"{count} judged holdout queries are enough to decide by: {settings.min_queries} are needed"
    return Finding(rule="queries", verdict=Verdict.PASS, text=text)


def _gain(all_: Comparison, settings: GateSettings) -> Finding:
    text = f"{MEASURE} on {all_.n} holdout queries {_change(all_, settings)}"
    if all_.difference.low > settings.min_gain and all_.p < settings.significance:
        return Finding(rule="gain", verdict=Verdict.PASS, text=text)
    if all_.difference.high < 0:
        return Finding(rule="gain", verdict=Verdict.FAIL, text=f"worse: {text}")
    wanted = f"the interval must lie above {_signed(settings.min_gain)} and p below {settings.significance:g}"
    return Finding(rule="gain", verdict=Verdict.FAIL, text=f"no reliable gain: {text}; {wanted}")


def _fresh(comparisons: Mapping[str, Comparison], settings: GateSettings) -> Finding:
    """Fresh queries ask for something that training had not seen: they tell learning from memory, and forgetting."""
    fresh = comparisons.get("fresh")
    count = fresh.n if fresh else 0
    if fresh is None or count < settings.min_fresh_queries:
        text = (
            f"learning could not be told from memory of the corpus: {count} holdout queries have an answer that was "
            f"not trained on, {settings.min_fresh_queries} are needed"
        )
        return Finding(rule="fresh", verdict=Verdict.NOTE, text=text)
    text = f"{MEASURE} on {count} queries with an answer that was not trained on {_change(fresh, settings)}"
    if fresh.difference.high < 0:
        return Finding(rule="fresh", verdict=Verdict.FAIL, text=f"forgetting: {text}")
    return Finding(rule="fresh", verdict=Verdict.PASS, text=f"no sign of forgetting: {text}")


def _latency(evidence: Evidence, settings: GateSettings) -> Finding:
    ratio = evidence.candidate_latency_ms / evidence.base_latency_ms
    slow = ratio > settings.max_latency_ratio and evidence.candidate_latency_ms > settings.fast_enough_ms
    text = (
        f"{'too slow' if slow else 'fast enough'}: the median answer takes {evidence.candidate_latency_ms:.1f} ms, "
        f"{ratio:.2f} times the {evidence.base_latency_ms:.1f} ms before; "
        f"{settings.max_latency_ratio:g} times is the limit above {settings.fast_enough_ms:g} ms"
    )
    return Finding(rule="latency", verdict=Verdict.FAIL if slow else Verdict.PASS, text=text)


def _index(evidence: Evidence) -> Iterable[Finding]:
    lag = evidence.candidate_lag
    if lag > 0:
        text = f"the candidate's index is {lag} changes behind the serving one; let it catch up"
    else:
        text = "the candidate's index has every change that the serving one has"
    yield Finding(rule="lag", verdict=Verdict.FAIL if lag > 0 else Verdict.PASS, text=text)
    if evidence.verified:
        text = "the candidate's index was verified against the corpus log"
    else:
        text = "the candidate's index was not verified, or differs from the corpus log; verify or rebuild it"
    yield Finding(rule="verified", verdict=Verdict.PASS if evidence.verified else Verdict.FAIL, text=text)


def _judged(evidence: Evidence) -> Finding:
    text = f"judged@10 is {evidence.candidate_judged:.3f} for the candidate and {evidence.base_judged:.3f} before"
    if evidence.candidate_judged < JUDGED_SHARE * evidence.base_judged:
        text += (
            ": it shows more results that nobody has judged, which count as wrong, so it may be better than it looks"
        )
        return Finding(rule="judged", verdict=Verdict.NOTE, text=text)
    return Finding(rule="judged", verdict=Verdict.PASS, text=f"{text}: unjudged results do not tilt the comparison")


def _comparisons(evidence: Evidence, settings: GateSettings) -> dict[str, Comparison]:
    """Candidate against base over all queries and over each group that has any."""
    groups = {
        "all": evidence.base.keys(),
        "fresh": evidence.base.keys() - evidence.trained,
        "trained": evidence.trained,
    }
    return {name: _comparison(evidence, sorted(keys), settings) for name, keys in groups.items() if keys}


def _comparison(evidence: Evidence, keys: list[str], settings: GateSettings) -> Comparison:
    """`significance.compare` with the confidence and the resamples of the settings; keys sorted, so that the order of
    the evidence changes nothing."""
    differences = [evidence.candidate[key] - evidence.base[key] for key in keys]
    chance = {"seed": settings.seed, "resamples": settings.resamples}
    return Comparison(
        measure=MEASURE,
        n=len(keys),
        base=math.fsum(evidence.base[key] for key in keys) / len(keys),
        other=math.fsum(evidence.candidate[key] for key in keys) / len(keys),
        difference=paired_bootstrap(differences, **chance, confidence=settings.confidence),
        p=randomisation_test(differences, **chance),
        wins=sum(one > 0 for one in differences),
        losses=sum(one < 0 for one in differences),
        ties=sum(one == 0 for one in differences),
        only_base=0,
        only_other=0,
    )


def _change(comparison: Comparison, settings: GateSettings) -> str:
    """As in "rose from 0.712 to 0.801 (+0.089, 95 % interval +0.071 to +0.108, p = 0.0001)"."""
    gain = comparison.difference
    if gain.mean == 0:
        moved = f"stayed at {comparison.other:.3f}"
    else:
        moved = f"{'rose' if gain.mean > 0 else 'fell'} from {comparison.base:.3f} to {comparison.other:.3f}"
    chance = f"p = {comparison.p:.4f}" if comparison.p >= 0.0001 else "p < 0.0001"
    interval = f"{100 * settings.confidence:g} % interval {_signed(gain.low)} to {_signed(gain.high)}"
    return f"{moved} ({_signed(gain.mean)}, {interval}, {chance})"


def _signed(value: float) -> str:
    """Three decimals with a sign; more precisely what would read as 0 and is not."""
    return f"{value:+.1e}" if 0 < abs(value) < 0.0005 else f"{value + 0.0:+.3f}"


def _check_shares(name: str, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        if not 0 <= value <= 1 + _ROUNDING:  # no number fails every comparison
            raise InvalidInput(f"{name} of {key!r} is {value}, not a number from 0 to 1; measure it again", field=name)
