"""How a new index should answer: dense, lexical or fused, and with which weights; chosen on the dev queries.

Each query is asked once a side, as deep as a search fuses; the lists are fused in every way that is tried, and the best
mean nDCG@10 wins. The dev queries were not trained on: on trained ones the dense side would look better than it is.
Reads nothing of the holdout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nvr_rag.fusion import FusionSettings, fuse
from nvr_rag.types import Hit, Mode
from training.data import JudgedQuery
from training.evaluation import rank_targets
from training.gate import MEASURE
from training.measures import means, measure

MIN_QUERIES = 30  # with fewer, chance would choose
SHARES = (0.2, 0.35, 0.5, 0.65, 0.75, 0.85, 0.92)  # of the dense side's weight

Search = Callable[[str, Mode], Sequence[Hit]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A way to answer, and what it came to."""

    mode: Mode
    fusion: FusionSettings
    value: float  # mean nDCG@10 over the dev queries

    def as_json(self) -> dict[str, Any]:
        return {"mode": str(self.mode), "fusion": self.fusion.as_json(), "value": self.value}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    id: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sides:
    """What both sides answered to one query."""

    hits: Mapping[str, Hit]  # by chunk id
    dense: Sequence[_Scored]
    lexical: Sequence[_Scored]


def weigh(
    search: Search,
    queries: Sequence[JudgedQuery],
    now: tuple[Mode, FusionSettings],
    *,
    documents: Mapping[str, str],
    digests: Mapping[str, str],
    report: Callable[[int], None],
) -> list[Way]:
    """Every way that was tried, best first; of equally good ones `now`, how the collection answers today, comes first.

    `documents` and `digests` as for `rank_targets`; `report` hears how many queries were asked.
    """
    sides = []
    for count, query in enumerate(queries, start=1):
        sides.append(_ask(search, query.text))
        report(count)
    tried = []
    for mode, fusion in _ways(now):
        qrels, run = {}, {}
        for query, side in zip(queries, sides, strict=True):
            qrels[query.key], run[query.key] = rank_targets(
                query, _ranked(side, mode, fusion), documents=documents, digests=digests
            )
        tried.append(Way(mode=mode, fusion=fusion, value=means(measure(qrels, run))[MEASURE]))
    return sorted(tried, key=lambda way: -way.value)  # stable: the earlier of equals stays first


def _ways(now: tuple[Mode, FusionSettings]) -> list[tuple[Mode, FusionSettings]]:
    """Today's way, each side alone, and both methods of fusion over the shares of the dense side."""
    base = now[1]
    found = [now, (Mode.DENSE, base), (Mode.LEXICAL, base)]
    for share in SHARES:
        shared = replace(base, dense_weight=share, lexical_weight=round(1 - share, 2))
        found += [(Mode.HYBRID, replace(shared, method="rrf")), (Mode.HYBRID, replace(shared, method="weighted"))]
    return list(dict.fromkeys(found))


def _ask(search: Search, text: str) -> _Sides:
    dense, lexical = search(text, Mode.DENSE), search(text, Mode.LEXICAL)
    return _Sides(
        hits={hit.chunk_id: hit for hit in (*dense, *lexical)}, dense=_scored(dense), lexical=_scored(lexical)
    )


def _scored(hits: Sequence[Hit]) -> list[_Scored]:
    return [_Scored(id=hit.chunk_id, score=hit.score) for hit in hits]


def _ranked(side: _Sides, mode: Mode, fusion: FusionSettings) -> list[Hit]:
    if mode == Mode.HYBRID:
        return [side.hits[key] for key, _ in fuse(side.dense, side.lexical, fusion)]
    return [side.hits[one.id] for one in (side.dense if mode == Mode.DENSE else side.lexical)]
