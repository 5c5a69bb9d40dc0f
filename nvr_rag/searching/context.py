"""The text around hits: places in documents go in, what stands before and after them comes out.

It reaches to the far end of the n-th neighbouring chunk, and ends where another hit of the answer begins, or what was
joined to a better one: spans decide, because the text of a chunk may repeat a table's header. Texts are cut out by the
database, and never leave it whole. What a reader may not see any more has nothing around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, select
from sqlalchemy.orm import aliased

from nvr_rag.access import reading
from nvr_rag.chunks import PlacedChunk
from nvr_rag.db import tables as t
from nvr_rag.types import Context, Reader

_LOOKUP = 500  # places in one statement

Span = tuple[int, int]  # of characters, half open
Place = tuple[int, int]  # version and ordinal


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """What is to be joined to hits."""

    chunking_id: int
    count: int  # on each side
    reader: Reader


def around(connection: Connection, hits: Sequence[PlacedChunk], wanted: Neighbours) -> list[Context]:
    """The context of each of these hits, which come in the order of the answer."""
    reach = _reach(connection, hits, wanted)
    contexts = []
    for hit, (start, end) in zip(hits, windows(hits, reach), strict=True):
        before, after = _cut(connection, hit, (start, end)) if start < hit.start or hit.end < end else ("", "")
        contexts.append(Context(before=before, after=after, start=start, end=end))
    return contexts


def windows(hits: Sequence[PlacedChunk], reach: Mapping[Place, Span]) -> list[Span]:
    """How far the context of each hit goes: no further than `reach`, into no other hit and into no better one's."""
    taken: dict[int, list[Span]] = {}
    for hit in hits:
        taken.setdefault(hit.version_id, []).append((hit.start, hit.end))
    found = []
    for hit in hits:
        start, end = reach.get((hit.version_id, hit.ordinal), (hit.start, hit.end))
        for other_start, other_end in taken[hit.version_id]:
            if other_start < hit.start:
                start = max(start, min(other_end, hit.start))
            if other_end > hit.end:
                end = min(end, max(other_start, hit.end))
        window = (min(start, hit.start), max(end, hit.end))
        taken[hit.version_id].append(window)
        found.append(window)
    return found


def _reach(connection: Connection, hits: Sequence[PlacedChunk], wanted: Neighbours) -> dict[Place, Span]:
    """From where to where the neighbours of each hit go; hits that the reader may not see any more are left out."""
    statement = _neighbours(connection.dialect.name, reading.shape(wanted.reader))
    values = {"chunking_id": wanted.chunking_id, "count": wanted.count, **reading.bound(wanted.reader)}
    found: dict[Place, Span] = {}
    for start in range(0, len(hits), _LOOKUP):
        part = hits[start : start + _LOOKUP]
        ids = {"chunk_ids": [hit.chunk_id for hit in part], "version_ids": list({hit.version_id for hit in part})}
        for row in connection.execute(statement, {**values, **ids}):
            found[row.version_id, row.ordinal] = (row.start, row.end)
    return found


@cache
def _neighbours(dialect: str, shape: reading.Shape) -> Any:
    """The statement of `_reach`, made once."""
    own, near, v, d = t.Placement, aliased(t.Placement), t.DocumentVersion, t.Document
    beside = and_(
        near.version_id == own.version_id,
        near.chunking_id == own.chunking_id,
        near.ordinal.between(own.ordinal - bindparam("count"), own.ordinal + bindparam("count")),
    )
    return (
        select(own.version_id, own.ordinal, func.min(near.start).label("start"), func.max(near.end).label("end"))
        .join(near, beside)
        .join(v, v.id == own.version_id)
        .join(d, d.id == v.document_id)
        .where(own.chunk_id.in_(bindparam("chunk_ids", expanding=True)))
        .where(own.version_id.in_(bindparam("version_ids", expanding=True)))
        .where(own.chunking_id == bindparam("chunking_id"), v.seq > d.deleted_seq, d.state != "deleted")
        .where(reading.readable(dialect, shape), reading.readable(dialect, shape, v.acl))
        .group_by(own.version_id, own.ordinal)
    )


def _cut(connection: Connection, hit: PlacedChunk, window: Span) -> tuple[str, str]:
    before, after = (window[0], hit.start), (hit.end, window[1])
    values = {"version_id": hit.version_id, "before": before[0] + 1, "after": after[0] + 1}
    lengths = {"before_length": before[1] - before[0], "after_length": after[1] - after[0]}
    row = connection.execute(_texts(), {**values, **lengths}).one()
    return str(row.before), str(row.after)


@cache
def _texts() -> Any:
    """The statement of `_cut`, made once."""
    v = t.DocumentVersion
    return select(
        func.substr(v.text, bindparam("before"), bindparam("before_length")).label("before"),
        func.substr(v.text, bindparam("after"), bindparam("after_length")).label("after"),
    ).where(v.id == bindparam("version_id"))
