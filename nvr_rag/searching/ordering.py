"""From the ranking to the order that is shown: reranked by a cross-encoder, cut at a score, made diverse; each step
only where it is asked for. Knows no index and no database."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nvr_rag.chunks import PlacedChunk
from nvr_rag.errors import EncoderError
from nvr_rag.searching.diversity import choose
from nvr_rag.searching.hydration import Shown
from nvr_rag.searching.timing import Watch
from nvr_rag.stores.base import Vector
from nvr_rag.types import Mmr, Standing

if TYPE_CHECKING:
    from nvr_rag.reranking import Reranker

_AT_A_TIME = 32  # texts reranked between two looks at the clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordered:
    """A chunk on its way into the answer."""

    chunk: PlacedChunk
    ranking: Standing  # among the chunks that may be shown
    score: float  # that it is shown with
    rerank: Standing | None = None
    mmr: Standing | None = None


def ranked(shown: Sequence[Shown]) -> list[Ordered]:
    """The ranking itself."""
    return [
        Ordered(chunk=item.chunk, ranking=Standing(rank=item.rank, score=item.score), score=item.score)
        for item in shown
    ]


def reranked(reranker: Reranker, query: str, items: Sequence[Ordered], watch: Watch) -> list[Ordered]:
    """By what a cross-encoder says, ties in the old order. Raises TimedOut, EncoderError."""
    scores: list[float] = []
    for start in range(0, len(items), _AT_A_TIME):
        with watch.timed("rerank"):
            part = [_text(item.chunk) for item in items[start : start + _AT_A_TIME]]
            scores += [float(score) for score in reranker.score(query, part)]
    if len(scores) != len(items) or not all(map(math.isfinite, scores)):
        raise EncoderError("the reranker gave scores that are none; check the model that NVR_RERANKER names")
    order = sorted(range(len(items)), key=lambda position: (-scores[position], position))
    return [
        replace(items[position], score=scores[position], rerank=Standing(rank=rank, score=scores[position]))
        for rank, position in enumerate(order, start=1)
    ]


def diverse(items: Sequence[Ordered], vectors: Mapping[str, Vector], k: int, mmr: Mmr) -> list[Ordered]:
    """k of the first candidates, none like those before it."""
    among = items[: max(k, mmr.candidates)]
    chosen = choose(
        [item.score for item in among], [vectors.get(item.chunk.chunk_id) for item in among], k, mmr.diversity
    )
    return [
        replace(among[position], mmr=Standing(rank=rank, score=margin))
        for rank, (position, margin) in enumerate(chosen, start=1)
    ]


def at_least(items: Sequence[Ordered], least: float | None) -> Sequence[Ordered]:
    """Those with at least this score."""
    return items if least is None else [item for item in items if item.score >= least]


def _text(chunk: PlacedChunk) -> str:
    """What is held against the query: the headings say what a paragraph is about."""
    return "\n".join((" > ".join(chunk.headings), chunk.text)) if chunk.headings else chunk.text
