"""Ranked lists in, one ranked list out. Pure; ties by id ascending, so that the same lists always fuse alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from nvr_rag.errors import InvalidInput


class Candidate(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def score(self) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionSettings:
    """How the dense and the lexical side become one ranking; part of a deployment."""

    method: Literal["rrf", "weighted"] = "rrf"
    dense_weight: float = 1.0
    lexical_weight: float = 1.0
    rank_constant: int = 60  # of reciprocal rank fusion; Cormack et al. 2009 use 60
    depth: int = 200  # candidates examined on each side, at least

    def __post_init__(self) -> None:
        if self.method not in ("rrf", "weighted"):
            raise InvalidInput(f"the fusion method is rrf or weighted, not {self.method!r}", field="method")
        weights = (self.dense_weight, self.lexical_weight)
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
            raise InvalidInput("fusion weights are finite, not negative, and not both 0", field="dense_weight")
        if self.rank_constant < 1 or self.depth < 1:
            raise InvalidInput("rank_constant and depth are at least 1", field="depth")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def fuse(dense: Sequence[Candidate], lexical: Sequence[Candidate], settings: FusionSettings) -> list[tuple[str, float]]:
    """(id, fused score), best first; every candidate of either list is in the answer once."""
    weighted = ((dense, settings.dense_weight), (lexical, settings.lexical_weight))
    if settings.method == "rrf":
        return reciprocal_rank_fusion(weighted, rank_constant=settings.rank_constant)
    return weighted_fusion(weighted)


def reciprocal_rank_fusion(
    lists: Sequence[tuple[Sequence[Candidate], float]], *, rank_constant: int
) -> list[tuple[str, float]]:
    """Sum over the lists of weight / (rank_constant + rank), rank from 1 (Cormack, Clarke, Buettcher, SIGIR 2009)."""
    scores: dict[str, float] = {}
    for candidates, weight in lists:
        for rank, candidate in enumerate(candidates, start=1):
            scores[candidate.id] = scores.get(candidate.id, 0.0) + weight / (rank_constant + rank)
    return _ranked(scores)


def weighted_fusion(lists: Sequence[tuple[Sequence[Candidate], float]]) -> list[tuple[str, float]]:
    """Weighted mean of scores, each list scaled so that its worst is 0 and its best 1; a missing candidate counts 0.

    A list whose scores are all equal counts 1 for each of them.
    """
    total = sum(weight for _, weight in lists)
    scores: dict[str, float] = {}
    for candidates, weight in lists:
        if not candidates:
            continue
        low = min(candidate.score for candidate in candidates)
        span = max(candidate.score for candidate in candidates) - low
        for candidate in candidates:
            scaled = (candidate.score - low) / span if span > 0 else 1.0
            scores[candidate.id] = scores.get(candidate.id, 0.0) + weight * scaled / total
    return _ranked(scores)


def _ranked(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
