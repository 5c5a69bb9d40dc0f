"""Why a hit ranks: what each stage knew of it goes in, an explanation comes out.

A hit that one side had not among its candidates gets that side's score all the same: the dense one from its vector, the
lexical one from the store, which alone knows how rare words are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nvr_rag.chunks import PlacedChunk
from nvr_rag.filters import In
from nvr_rag.fusion import FusionSettings
from nvr_rag.indexes import LiveIndex
from nvr_rag.searching.candidates import Asked, Candidates
from nvr_rag.stores.base import Vector
from nvr_rag.types import Explanation, Standing

_DEEPEST = 10_000  # chunks of the hits' documents that are looked at for a lexical score


@dataclass(frozen=True, kw_only=True, slots=True)
class Beyond:
    """Scores by chunk id that a side would have given to those that were not among its candidates."""

    dense: Mapping[str, float] = field(default_factory=dict)
    lexical: Mapping[str, float] = field(default_factory=dict)


def look_beyond(
    index: LiveIndex,
    asked: Asked,
    candidates: Candidates,
    chunks: Sequence[PlacedChunk],
    vectors: Mapping[str, Vector],
) -> Beyond:
    """What both sides say of the chunks that they did not propose."""
    unranked = [chunk for chunk in chunks if chunk.chunk_id not in candidates.lexical]
    return Beyond(
        dense=_dense(asked, [c.chunk_id for c in chunks if c.chunk_id not in candidates.dense], vectors),
        lexical=_lexical(index, asked, unranked) if asked.lexical is not None and unranked else {},
    )


def _dense(asked: Asked, ids: Iterable[str], vectors: Mapping[str, Vector]) -> dict[str, float]:
    if asked.dense is None:
        return {}
    return {key: float(np.dot(asked.dense, vectors[key])) for key in ids if key in vectors}


def _lexical(index: LiveIndex, asked: Asked, chunks: Sequence[PlacedChunk]) -> dict[str, float]:
    """A chunk that is not found shares no word with the query, unless there were too many to look at."""
    assert asked.lexical is not None
    documents = In(field="document_id", values=tuple(sorted({chunk.document_id for chunk in chunks})))
    found = index.points.search_lexical(asked.lexical, _DEEPEST, documents)
    scores = {item.id: item.score for item in found}
    whole = len(found) < _DEEPEST
    return {c.chunk_id: scores.get(c.chunk_id, 0.0) for c in chunks if whole or c.chunk_id in scores}


def sides(
    chunk_id: str, asked: Asked, candidates: Candidates, beyond: Beyond
) -> tuple[Standing | None, Standing | None]:
    """Where the dense and the lexical side have a chunk; None for a side that was not asked."""
    dense = _standing(candidates.dense.get(chunk_id), beyond.dense.get(chunk_id))
    lexical = _standing(candidates.lexical.get(chunk_id), beyond.lexical.get(chunk_id))
    return dense if asked.dense is not None else None, lexical if asked.lexical is not None else None


def explain(
    both: tuple[Standing | None, Standing | None],
    ranking: Standing,
    fusion: FusionSettings | None,
    *,
    rerank: Standing | None,
    mmr: Standing | None,
) -> Explanation:
    """`fusion` is None where only one side was asked: then its ranking is all there was."""
    return Explanation(
        dense=both[0],
        lexical=both[1],
        fused=ranking if fusion is not None else None,
        rerank=rerank,
        mmr=mmr,
        weights=fusion.as_json() if fusion is not None else None,
    )


def _standing(known: tuple[int, float] | None, beyond: float | None) -> Standing:
    return Standing(rank=known[0], score=known[1]) if known else Standing(rank=None, score=beyond)
