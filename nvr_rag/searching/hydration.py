"""What may be shown: ids enter, chunks of the log leave, under the visibility rule of `nvr_rag.chunks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from nvr_rag import chunks
from nvr_rag.chunks import PlacedChunk, View
from nvr_rag.filters import Filter, matches
from nvr_rag.types import GroupBy

SLACK = 8  # candidates looked at beyond those wanted: a few are usually invisible while an index lags
_LOOKUP = 2000  # ids in one hydration


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is looked for among the candidates."""

    count: int  # so many are enough
    where: Filter | None
    group_by: GroupBy | None = None
    least: float | None = None  # score of the ranking; None = any
    slack: int = SLACK  # more than are wanted that are looked at first


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A candidate that may be shown."""

    chunk: PlacedChunk
    rank: int  # from 1, among those that may be shown
    score: float  # of the ranking


def visible(
    connection: Connection,
    ranked: Sequence[tuple[str, float]],
    wanted: Wanted,
    view: View,
    known: Mapping[str, PlacedChunk] | None = None,
) -> list[Shown]:
    """The first candidates that may be shown, as many as wanted; of each document the best, where that is asked.

    `known` are all of them that may be shown, where somebody has looked already.
    """
    # When the index moved, a document's versions are told apart by all of its candidates; see _one_version.
    size = wanted.count + wanted.slack if view.until == view.since else len(ranked)
    start, rank, shown, documents = 0, 0, list[Shown](), set[str]()
    while part := ranked[start : start + size]:
        start, size = start + size, wanted.count + SLACK
        found = known if known is not None else _hydrate(connection, [key for key, _ in part], view)
        for key, score in part:
            if wanted.least is not None and score < wanted.least:
                return shown
            chunk = found.get(key)
            if chunk is None or not _matches(wanted.where, chunk):
                continue
            rank += 1
            if wanted.group_by is None or chunk.document_id not in documents:
                documents.add(chunk.document_id)
                shown.append(Shown(chunk=chunk, rank=rank, score=score))
            if len(shown) == wanted.count:
                return shown
    return shown


def allowed(connection: Connection, ids: Sequence[str], where: Filter | None, view: View) -> dict[str, PlacedChunk]:
    """Those of the chunks that may be shown."""
    found = _hydrate(connection, ids, view)
    return {key: chunk for key, chunk in found.items() if _matches(where, chunk)}


def any_unsettled(
    connection: Connection, collection_id: int, ids: Sequence[str], seq: int, *, once_restricted: bool
) -> bool:
    """Whether the document of any of these chunks has changed after `seq`; see `chunks.unsettled`."""
    parts = (ids[start : start + _LOOKUP] for start in range(0, len(ids), _LOOKUP))
    return any(
        chunks.unsettled(connection, collection_id, part, seq, once_restricted=once_restricted) for part in parts
    )


def _matches(where: Filter | None, chunk: PlacedChunk) -> bool:
    return where is None or matches(where, chunk.fields())


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
