"""Chunks of the log become passages and hits, as they are handed out. No behaviour beyond that."""

from __future__ import annotations

from typing import Any

from nvr_rag.chunks import PlacedChunk
from nvr_rag.searching.candidates import Candidates
from nvr_rag.searching.ordering import Ordered
from nvr_rag.types import Context, Explanation, Hit, Passage


def passage(chunk: PlacedChunk, context: Context | None) -> Passage:
    """A chunk by itself."""
    return Passage(**_place(chunk), context=context)


def hit(
    rank: int, item: Ordered, candidates: Candidates, *, context: Context | None, explain: Explanation | None
) -> Hit:
    """A chunk that answers, `rank`-th in its answer."""
    dense = candidates.dense.get(item.chunk.chunk_id)
    lexical = candidates.lexical.get(item.chunk.chunk_id)
    return Hit(
        **_place(item.chunk),
        context=context,
        rank=rank,
        score=item.score,
        explain=explain,
        dense_rank=dense[0] if dense else None,
        dense_score=dense[1] if dense else None,
        lexical_rank=lexical[0] if lexical else None,
        lexical_score=lexical[1] if lexical else None,
    )


def _place(chunk: PlacedChunk) -> dict[str, Any]:
    return {
        "chunk_id": chunk.chunk_id,
        "text": chunk.text,
        "document_id": chunk.document_id,
        "uri": chunk.uri,
        "source": chunk.source,
        "title": chunk.title,
        "media_type": chunk.media_type,
        "metadata": chunk.metadata,
        "sha256": chunk.document_sha256,
        "updated_at": chunk.updated_at,
        "headings": chunk.headings,
        "page": chunk.page,
        "start": chunk.start,
        "end": chunk.end,
    }
