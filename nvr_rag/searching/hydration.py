"""What may be shown: ids enter, chunks of the log leave, under the visibility rule of `nvr_rag.chunks`."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from nvr_rag import chunks
from nvr_rag.chunks import PlacedChunk, View
from nvr_rag.filters import Filter, matches
from nvr_rag.searching.candidates import Candidates

SLACK = 8  # candidates hydrated beyond those wanted at first: a few are usually invisible while an index lags
_LOOKUP = 2000  # ids in one hydration


def visible(
    connection: Connection, candidates: Candidates, k: int, view: View, where: Filter | None
) -> list[tuple[PlacedChunk, float]]:
    """The first k candidates that may be shown, with their scores."""
    shown: list[tuple[PlacedChunk, float]] = []
    # When the index moved, a document's versions are told apart by all of its candidates; see _one_version.
    size = k + SLACK if view.until == view.since else max(1, len(candidates.ranked))
    for start in range(0, len(candidates.ranked), size):
        part = candidates.ranked[start : start + size]
        found = _hydrate(connection, [key for key, _ in part], view)
        for key, score in part:
            chunk = found.get(key)
            if chunk is not None and matches(where, chunk.fields()):
                shown.append((chunk, score))
        if len(shown) >= k:
            break
    return shown[:k]


def _hydrate(connection: Connection, ids: Sequence[str], view: View) -> dict[str, PlacedChunk]:
    rows: list[PlacedChunk] = []
    for start in range(0, len(ids), _LOOKUP):
        rows += chunks.visible(connection, ids[start : start + _LOOKUP], view)
    return {row.chunk_id: row for row in _one_version(rows)}


def _one_version(rows: Sequence[PlacedChunk]) -> list[PlacedChunk]:
    """Of each document one version only.

    When the index never stood still during a search, both the version before and the one after may be allowed, and
    the store was seen at some moment between: it held all points of the one, of the other, or of both. The version that
    has most of the candidates was whole at that moment; when two have as many, the newer one.
    """
    support: dict[str, dict[int, int]] = {}
    for row in rows:
        versions = support.setdefault(row.document_id, {})
        versions[row.version_seq] = versions.get(row.version_seq, 0) + 1
    chosen = {key: max(seen, key=lambda seq: (seen[seq], seq)) for key, seen in support.items()}
    return [row for row in rows if row.version_seq == chosen[row.document_id]]
