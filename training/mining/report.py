"""What mining did, in numbers that add up and examples that a person can look at. Nothing here decides anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from training.mining.closure import RuledOut
from training.mining.records import Kind, MinedPair, MiningSettings

Removal = RuledOut | Literal["rule", "copy_of_negative"]

REMOVALS: Sequence[Removal] = ("known_positive", "copy_of_positive", "neighbour", "rule", "copy_of_negative")
KINDS: Sequence[Kind] = ("judged", "mined")
QUANTILES: Mapping[str, float] = {"min": 0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1}
EXAMPLES = 2  # of each kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A candidate of a pair, as an example."""

    query: str  # key
    positive: str  # chunk id
    positive_score: float
    candidate: str  # chunk id
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningReport:
    """How many of what. Counts of candidates are over pairs: a chunk examined for two positives counts twice."""

    settings: MiningSettings
    queries: int  # handed in
    queries_without_positive: int  # in the corpus; they are not mined
    pairs: int
    examined: int  # candidates: sum of removed + kept
    removed: Mapping[Removal, int]  # by the first reason that held; every reason is there
    kept: int  # could be negatives
    emitted: Mapping[Kind, int]  # became one, at most `settings.negatives` a pair
    short: Mapping[int, int]  # pairs with so many negatives, for each number that occurs and is less than wanted
    positive_scores: Mapping[str, float]  # quantiles over pairs; empty without any
    negative_scores: Mapping[str, float]  # over emitted negatives
    differences: Mapping[str, float]  # positive - negative, over emitted negatives
    examples: Mapping[Removal | Kind, Sequence[Shown]]  # the first by query key, one a query

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "short": {str(count): pairs for count, pairs in self.short.items()}}


class Tally:
    """Collects while mining goes from query to query in order of their keys."""

    def __init__(self, settings: MiningSettings) -> None:
        self._settings = settings
        self._queries = self._without = self._pairs = self._examined = self._kept = 0
        self._removed: Counter[Removal] = Counter()
        self._emitted: Counter[Kind] = Counter()
        self._sizes: Counter[int] = Counter()
        self._positives: list[float] = []
        self._negatives: list[float] = []
        self._differences: list[float] = []
        self._examples: dict[Removal | Kind, list[Shown]] = {kind: [] for kind in (*REMOVALS, *KINDS)}

    def query(self, *, answered: bool) -> None:
        self._queries += 1
        self._without += not answered

    def pair(self, pair: MinedPair, examined: Iterable[tuple[str, float, Removal | None]]) -> None:
        """`examined`: chunk id, score and why it was removed, None where it was kept."""
        for id_, score, removed in examined:
            self._examined += 1
            if removed is None:
                self._kept += 1
            else:
                self._removed[removed] += 1
                self._show(removed, pair, id_, score)
        self._emit(pair)

    def _emit(self, pair: MinedPair) -> None:
        self._pairs += 1
        self._sizes[len(pair.negatives)] += 1
        self._positives.append(pair.positive_score)
        for id_, score, why in pair.negatives:
            self._emitted[why] += 1
            self._negatives.append(score)
            self._differences.append(pair.positive_score - score)
            self._show(why, pair, id_, score)

    def report(self) -> MiningReport:
        wanted = self._settings.negatives
        return MiningReport(
            settings=self._settings,
            queries=self._queries,
            queries_without_positive=self._without,
            pairs=self._pairs,
            examined=self._examined,
            removed={reason: self._removed[reason] for reason in REMOVALS},
            kept=self._kept,
            emitted={kind: self._emitted[kind] for kind in KINDS},
            short={count: pairs for count, pairs in sorted(self._sizes.items()) if count < wanted},
            positive_scores=_quantiles(self._positives),
            negative_scores=_quantiles(self._negatives),
            differences=_quantiles(self._differences),
            examples={kind: tuple(shown) for kind, shown in self._examples.items()},
        )

    def _show(self, kind: Removal | Kind, pair: MinedPair, id_: str, score: float) -> None:
        examples = self._examples[kind]
        if len(examples) < EXAMPLES and all(example.query != pair.query_key for example in examples):
            shown = Shown(
                query=pair.query_key,
                positive=pair.positive,
                positive_score=pair.positive_score,
                candidate=id_,
                score=score,
            )
            examples.append(shown)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Linear between neighbours, as NumPy's default is."""
    if not values:
        return {}
    return dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))
